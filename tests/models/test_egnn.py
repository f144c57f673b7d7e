"""MC-EGNN: published sizes, equality with the plain equations, exact symmetry."""

import math

import pytest
import torch
from egnn_oracle import egnn_oracle
from molecules import make_batch, moved, rotation

from symscale.models.egnn import EGNN

# Table 4; counts above 2^24 were published after float32 rounding, and 800 is a known misprint
TABLE_4 = {
    32: 156358,
    48: 306199,
    56: 403992,
    64: 516553,
    81: 786925,
    102: 1195553,
    120: 1590131,
    160: 2745453,
    200: 4231015,
    300: 9214218,
    500: 24959524,
    600: 35673024,
    721: 51092972,
}


def small(width=12, depth=3, **options):
    torch.manual_seed(1)
    return EGNN(width=width, depth=depth, **options).double()


def count(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("width", [*TABLE_4, 800])
def test_every_row_of_table_4(width):
    """Counts equal the table (w = 800 the formula), after float32 rounding where they exceed 2^24."""
    with torch.device("meta"):
        n, channels = count(EGNN(width=width)), math.isqrt(width)
    formula = 85 * width**2 + 11 * width * channels**2 + 12 * width * channels + 1831 * width + channels + 1
    assert n == formula
    if width in TABLE_4:
        assert int(torch.tensor(float(n))) == TABLE_4[width]


@pytest.mark.parametrize("channels", [0, 1, 5])
def test_equals_the_plain_equations(molecules, channels):
    """Energies, forces and all gradients are those of the transcription in egnn_oracle, E tied to w or not."""
    data, model = make_batch(molecules, max_neighbors=7), small(vector_channels=channels)
    results = []
    for forward in (model, lambda d: egnn_oracle(model, d)):
        energy, forces = forward(data)
        model.zero_grad()
        (energy * data.energy).sum().add((forces * data.forces).sum()).backward()
        results.append([energy, forces, *(p.grad for p in model.parameters())])
    errors = [
        float(((a - b).abs().max() / b.abs().max().clamp(min=1e-9)).detach())
        for a, b in zip(*results, strict=True)
    ]
    print(f"relative errors: energy {errors[0]:.1e}, forces {errors[1]:.1e}, gradients {max(errors[2:]):.1e}")
    assert max(errors) < 1e-10


def test_rotation_and_translation(molecules):
    """Energies do not change and forces turn with the molecule; a shift by exact binary amounts changes nothing."""
    data, model, turn = make_batch(molecules), small(width=40, depth=12), rotation(3)
    with torch.no_grad():
        energy, forces = model(data)
        turned = model(moved(data, turn))
        pos = (data.pos * 2**20).round() / 2**20
        there = model(moved(data.__class__(**{**vars(data), "pos": pos})))
        shifted = model(
            moved(data.__class__(**{**vars(data), "pos": pos}), shift=torch.tensor([8.0, -4.0, 16.0]))
        )
    errors = float((turned[0] - energy).abs().max()), float((turned[1] - forces @ turn.T).abs().max())
    print(f"rotation: energy {errors[0]:.1e}, forces {errors[1]:.1e}")
    assert max(errors) < 1e-12 * float(energy.abs().max()) + 1e-13
    assert torch.equal(shifted[0], there[0]) and torch.equal(shifted[1], there[1])


def test_gradients_by_finite_differences(molecules):
    """The hand-written backward pass agrees with finite differences, for positions too."""
    data, model = make_batch(molecules[:1]), small(width=4, depth=2)
    names = ["layers.0.edge1.weight", "layers.1.edge1.weight", "layers.1.mix2.weight", "layers.1.mix1.bias"]
    values = [dict(model.named_parameters())[n].detach().clone().requires_grad_() for n in names]

    def outputs(pos, *values):
        moved_data = data.__class__(**{**vars(data), "pos": pos})
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (moved_data,))

    assert torch.autograd.gradcheck(
        outputs, (data.pos.clone().requires_grad_(), *values), atol=1e-6, fast_mode=True
    )


@pytest.mark.parametrize(
    "pos",
    [[[0.0, 0, 0]], [[0.0, 0, 0], [0, 0, 1.1]], [[0.0, 0, 0], [0, 0, 1.2], [0, 0, -1.2]], [[0.0, 0, 0]] * 2],
    ids=["one atom", "two atoms", "in line", "coincident"],
)
def test_degenerate_molecules_stay_finite(pos):
    """Values and gradients are finite, and forces on atoms in line point along the line."""
    data, model = make_batch([([8, 6, 8][: len(pos)], pos), ([1], [[0.0, 0, 0]])]), small()
    energy, forces = model(data)
    (energy.sum() + forces.square().sum()).backward()
    assert torch.isfinite(energy).all() and torch.isfinite(forces).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert forces[:, :2].abs().max() == 0


def test_fewer_values_are_kept_than_by_the_plain_equations(molecules):
    """What a forward pass saves for the backward pass is at most 70 % of the plain version's."""
    data, model = make_batch(molecules * 4), small(width=64, depth=4)

    def saved(forward):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.data_ptr(): t.nbytes}) or t, lambda t: t
        ):
            keep = forward(data)
        assert keep[0].requires_grad
        return sum(sizes.values())

    ours, plain = saved(model), saved(lambda d: egnn_oracle(model, d))
    print(f"saved for backward: {ours / 1e6:.2f} MB, plain {plain / 1e6:.2f} MB")
    assert ours < 0.7 * plain


def test_bfloat16_autocast_stays_near(molecules):
    """A forward and backward pass under autocast is finite and within bfloat16's few digits of float32."""
    data, model = make_batch(molecules, dtype=torch.float32), small(width=32).float()
    energy, _ = model(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse, forces = model(data)
    (coarse.float().sum() + forces.float().square().sum()).backward()
    error = float(((coarse - energy).abs().max() / energy.abs().max()).detach())
    print(f"bfloat16 energy: relative error {error:.1e}")
    assert 1e-7 < error < 0.1
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
