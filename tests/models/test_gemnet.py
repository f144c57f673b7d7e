"""GemNet-OC: published sizes, equality with the equations by enumeration, exact symmetry, calibration."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from gemnet_oracle import gemnet_oracle
from molecules import make_batch, moved, random_molecule, rotation

from symscale.models.gemnet import GemNetOC
from symscale.models.gemnet_layers import ScaleFactor

TABLE_6 = {
    32: 312992,
    48: 575472,
    64: 937280,
    80: 1398416,
    96: 1958880,
    112: 2618672,
    128: 3377792,
    144: 4236240,
    160: 5194016,
    176: 6251120,
    192: 7407552,
    204: 8340060,
}
BOTH = pytest.mark.parametrize("quadruplets", [False, True], ids=["triplets", "quadruplets"])


def small(quadruplets=False, width=8, depth=2):
    torch.manual_seed(1)
    model = GemNetOC(width=width, depth=depth, quadruplets=quadruplets).double()
    for i, factor in enumerate(m for m in model.modules() if isinstance(m, ScaleFactor)):
        factor.value.fill_(0.6 + 0.05 * i)  # distinct, so that each must be in its place
    return model


def batch(molecules, **options):
    return make_batch(molecules, **{"cutoff": 10.0, "max_neighbors": 50, "symmetric": True} | options)


@pytest.mark.parametrize(("width", "published"), TABLE_6.items())
def test_every_row_of_table_6(width, published):
    """Trainable parameters equal the table; at w = 64, quadruplets add 4 w^2 + 448 w + 350208."""
    with torch.device("meta"):
        models = [GemNetOC(width=width, quadruplets=q) for q in ((False, True) if width == 64 else (False,))]
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in models]
    assert counts[0] == published
    assert counts[-1] - published == (350208 + 448 * width + 4 * width**2 if width == 64 else 0)


@BOTH
@pytest.mark.parametrize("max_neighbors", [50, 4])
def test_equals_the_equations_by_enumeration(molecules, quadruplets, max_neighbors):
    """Energies, forces and all gradients are those of gemnet_oracle, also where the graph is cut at 4 neighbours."""
    data, model = batch(molecules[:4], max_neighbors=max_neighbors), small(quadruplets)
    results = []
    for forward in (model, lambda d: gemnet_oracle(model, d, quadruplets)):
        energy, forces = forward(data)
        model.zero_grad()
        (energy * data.energy).sum().add((forces * data.forces).sum()).backward()
        results.append([energy.detach(), forces.detach(), *(p.grad for p in model.parameters())])
    errors = [
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in zip(*results, strict=True)
    ]
    print(f"relative errors: energy {errors[0]:.1e}, forces {errors[1]:.1e}, gradients {max(errors[2:]):.1e}")
    # with quadruplets, dihedral angles are smoothed where three atoms are nearly in line
    assert max(errors[:2]) < (1e-8 if quadruplets else 1e-11)
    assert max(errors[2:]) < (1e-6 if quadruplets else 1e-10)


@BOTH
def test_rotation_translation_and_order(molecules, quadruplets):
    """Invariant energies and equivariant forces; a molecule's result depends on nothing else in the batch."""
    data, model, turn = batch(molecules), small(quadruplets, depth=4), rotation(3)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(z)) for z, _ in molecules]
    shuffled = batch([(z[o], p[o]) for (z, p), o in zip(molecules, orders, strict=True)])
    start = np.cumsum([0, *(len(o) for o in orders)])
    where = torch.as_tensor(np.concatenate([o + s for o, s in zip(orders, start, strict=False)]))
    with torch.no_grad():
        energy, forces = model(data)
        turned = model(moved(data, turn, torch.tensor([1.3, -0.4, 2.1], dtype=torch.float64)))
        permuted, alone = model(shuffled), model(batch(molecules[1:2]))
    errors = {
        "rotation and shift, energy": turned[0] - energy,
        "rotation and shift, forces": turned[1] - forces @ turn.T,
        "order, energy": permuted[0] - energy,
        "order, forces": permuted[1] - forces[where],
        "alone, energy": alone[0] - energy[1:2],
        "alone, forces": alone[1] - forces[start[1] : start[2]],
    }
    for name, error in errors.items():
        print(f"{name}: {float(error.abs().max()):.1e}")
        assert error.abs().max() < 1e-10
    mirrored = model(moved(data, -torch.eye(3, dtype=torch.float64)))  # angles, not signed volumes
    assert (mirrored[0] - energy).abs().max() < 1e-10


def test_only_quadruplets_see_a_dihedral_angle():
    """Twisting a chain of three bonds about the middle one changes no distance or angle between edges."""
    bent = [[-0.5, 1.0, 0.0], [0.0, 0, 0], [1.4, 0, 0], [1.9, 1.0, 0.0]]
    twist = [*bent[:3], [1.9, np.cos(1.0), np.sin(1.0)]]
    for quadruplets in (False, True):
        model = small(quadruplets)
        with torch.no_grad():
            # neighbours nearer than 1.5: the chain's three bonds; 1-3 and 1-4 pairs have no edge
            energies = [model(batch([([1, 6, 6, 1], p)], cutoff=1.5))[0] for p in (bent, twist)]
        change = float((energies[0] - energies[1]).abs())
        print(f"quadruplets {quadruplets}: energy changes by {change:.1e} on twisting")
        assert (change > 1e-9) if quadruplets else (change < 1e-12)


@BOTH
@pytest.mark.parametrize(
    "pos",
    [[[0.0, 0, 0]], [[0.0, 0, 0], [0, 0, 1.1]], [[0, 0, 1.2 * i] for i in range(4)], [[0.0, 0, 0]] * 2],
    ids=["one atom", "two atoms", "in line", "coincident"],
)
def test_degenerate_molecules_stay_finite(pos, quadruplets):
    """Values and gradients are finite alone and in a batch, and atoms in line keep exact rotation invariance."""
    for extra in ([], [([1], [[0.0, 0, 0]])]):
        data, model = batch([([8, 6, 6, 8][: len(pos)], pos), *extra]), small(quadruplets)
        where = data.pos.clone().requires_grad_()
        energy, forces = model(dataclasses.replace(data, pos=where))
        (energy.sum() + forces.square().sum()).backward()
        assert (
            torch.isfinite(energy).all() and torch.isfinite(forces).all() and torch.isfinite(where.grad).all()
        )
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        turn = rotation(5)
        with torch.no_grad():
            turned = model(moved(data, turn))
        assert (turned[0] - energy).abs().max() < 1e-9
        assert (turned[1] - forces @ turn.T).abs().max() < 1e-9


@BOTH
def test_gradients_by_finite_differences(molecules, quadruplets):
    """Position and weight gradients agree with finite differences."""
    data, model = batch(molecules[:1]), small(quadruplets, width=4, depth=1)
    names = [
        "interactions.0.triplets.bilinear.weight",
        "interactions.0.concat.linear.weight",
        "outputs.1.radial.weight",
    ]
    if quadruplets:
        names += ["interactions.0.quadruplets.circular.weight", "interactions.0.quadruplets.radial.weight"]
    values = [dict(model.named_parameters())[n].detach().clone().requires_grad_() for n in names]

    def outputs(pos, *values):
        weights = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, weights, (dataclasses.replace(data, pos=pos),))

    where = data.pos.clone().requires_grad_()
    assert torch.autograd.gradcheck(outputs, (where, *values), atol=1e-5, rtol=1e-3, fast_mode=True)


@BOTH
def test_calibration_evens_out_variances(quadruplets):
    """Factors are set once, deterministically, kept in the state dict, and untouched by training steps."""
    rng = np.random.default_rng(3)
    batches = [batch([random_molecule(rng, n) for n in (5, 9)], dtype=torch.float32) for _ in range(2)]
    torch.manual_seed(0)
    model = GemNetOC(width=16, depth=2, quadruplets=quadruplets)
    twin, other = copy.deepcopy(model), copy.deepcopy(model)
    model.calibrate(batches)
    twin.calibrate(iter(batches))
    factors = {k: v for k, v in model.state_dict().items() if k.endswith(".value")}
    print({k: round(float(v), 3) for k, v in factors.items()})
    assert len(factors) == 2 * (6 if quadruplets else 3) + 3 * 2
    assert all(0.01 < v < 100 and v != 1 for v in factors.values())
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in factors.items())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batches[0])[0], model(batches[0])[0])
    model.calibrate(batches)  # a second time starts from 1 again
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in factors.items())
    assert not any(k.endswith(".value") for k, _ in model.named_parameters())


@BOTH
def test_bfloat16_autocast_stays_near(molecules, quadruplets):
    """A forward and backward pass under autocast is finite and within bfloat16's few digits of float32."""
    data = batch(molecules, dtype=torch.float32)
    model = small(quadruplets).float()
    energy, _ = model(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse, forces = model(data)
    (coarse.float().sum() + forces.float().square().sum()).backward()
    error = float(((coarse - energy).abs().max() / energy.abs().max()).detach())
    print(f"bfloat16 energy: relative error {error:.1e}")
    assert 1e-7 < error < 0.1
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
