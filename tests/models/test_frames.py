"""Frame averaging and canonicalisation: where they are exact, where symmetry forbids it, what they cost."""

import dataclasses

import numpy as np
import pytest
import torch
from contract import CHECKS, DEGENERATE, batch_of, distance, model_of, objective, rotation_error, small_spec
from contract import some_molecules as several
from molecules import make_batch, moved, rotation

from symscale.coordcheck import coordinates
from symscale.flops import count_flops, count_parameters
from symscale.models import build_model, frames
from symscale.models.conservative import Conservative
from symscale.models.frames import FrameAverage, centred, jacobi, principal_frames
from symscale.mup import parameter_groups
from symscale.symmetry import GroupAverage

KINDS = ("frames", "canonical")


def around(kind, arch="mpnn", **changes):
    return small_spec(arch, equivariant_by=kind, **changes)


@pytest.mark.parametrize("check", [name for name in CHECKS if name != "every_parameter_learns"])
@pytest.mark.parametrize("arch", ["mpnn", "transformer"])
@pytest.mark.parametrize("kind", KINDS)
def test_contract_holds_around_models_without_symmetry(kind, arch, check):
    """Exact rotations, translations and permutations, finite on degenerate molecules; conservative too."""
    CHECKS[check](around(kind, arch))


@pytest.mark.parametrize("check", ["rotations", "degenerate_molecules"])
@pytest.mark.parametrize("kind", KINDS)
def test_conservative_forces_of_an_averaged_energy_are_equivariant(kind, check):
    """The frame's own derivative is part of the gradient: without it forces would not turn with the molecule."""
    CHECKS[check](around(kind, conservative=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind, monkeypatch):
    """All but a constant force, which four frames average to nothing."""
    idle = {"mpnn": {"model.force_head.2.bias": "cancels"}} if kind == "frames" else {}
    monkeypatch.setattr("contract.WITHOUT_GRADIENT", idle)
    CHECKS["every_parameter_learns"](around(kind))


def test_the_model_alone_is_not_equivariant_nor_with_a_frame_dropped():
    """Negative controls: the bare MPNN, and averages over one, two of the wrong kind, or three of the four frames."""
    data, bare = batch_of(small_spec("mpnn"), several()), model_of(small_spec("mpnn"))
    errors = {"bare": rotation_error(bare, data)}
    for kept in (frames.SIGNS[:3], frames.SIGNS[1:], frames.SIGNS[:1]):
        # a frame's axes have signs by chance; here that chance is drawn for either side
        errors[kept] = max(
            distance(FrameAverage(bare, kept)(moved(data, m)), turned(FrameAverage(bare, kept)(data), m))
            for m in map(rotation, range(4))
        )
    errors["all four"] = rotation_error(FrameAverage(bare), data)
    print({str(k): f"{e:.1e}" for k, e in errors.items()})
    assert errors.pop("all four") < 1e-12 and min(errors.values()) > 1e-2


def turned(outputs, matrix):
    return outputs[0], outputs[1] @ matrix.T


def test_average_over_frames_is_its_formula():
    """By hand, with numpy's eigenvectors: the mean of four model calls, forces turned back."""
    (z, x), bare = several()[1], model_of(small_spec("mpnn"))
    x = x + np.array([1.0, -2.0, 0.5])
    centre = x.mean(0)
    _, axes = np.linalg.eigh((x - centre).T @ (x - centre))
    axes[:, 2] *= np.linalg.det(axes)
    energies, forces = [], []
    for signs in ([1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]):
        u = axes * signs
        e, f = bare(make_batch([(z, (x - centre) @ u)]))
        energies.append(e)
        forces.append(f @ torch.as_tensor(u).T)
    by_hand = sum(energies) / 4, sum(forces) / 4
    error = distance(FrameAverage(bare)(make_batch([(z, x)])), by_hand)
    print(f"error {error:.1e}")
    assert error < 1e-12


WATER = ([8, 1, 1], [[0.0, 0.0, 0.12], [0.0, 0.76, -0.47], [0.0, -0.76, -0.47]])
HOF = ([8, 9, 1], [[0.0, 0.0, 0.0], [1.44, 0.0, 0.0], [-0.13, 0.95, 0.0]])  # planar, no rotation of its own
HCN = ([6, 7, 1], [[0.0, 0, 0], [0, 0, 1.16], [0, 0, -1.07]])
AMMONIA = (
    [7, 1, 1, 1],
    [[0.0, 0.0, 0.2], *([0.94 * np.cos(a), 0.94 * np.sin(a), -0.1] for a in 2 * np.pi * np.arange(3) / 3)],
)
MOLECULES = DEGENERATE | {"water": WATER, "HOF": HOF, "HCN": HCN, "ammonia": AMMONIA}
EXACT = {
    "frames": ["water", "HOF", "one atom", "two atoms", "two atoms out of reach", "in line", "HCN"],
    "canonical": ["HOF"],
}
EXACT_ENERGY = {"frames": [], "canonical": ["one atom", "two atoms", "two atoms out of reach", "HCN"]}


def symmetric_errors(kind, molecule):
    """Largest equivariance errors of energy and forces over some rotations, at a tilted start."""
    model = model_of(around(kind))
    data = moved(make_batch([molecule]), rotation(11))
    energy, forces = model(data)
    found = [model(moved(data, m)) for m in map(rotation, range(4))]
    by_energy = max(distance([e], [energy]) for e, _ in found)
    return by_energy, max(
        distance([f], [forces @ m.T]) for (_, f), m in zip(found, map(rotation, range(4)), strict=True)
    )


@pytest.mark.parametrize("name", MOLECULES)
@pytest.mark.parametrize("kind", KINDS)
def test_where_a_molecules_own_symmetry_allows_frames(kind, name):
    """As docs/architecture.md says: exact where it says so, and not where it does not."""
    energy, forces = symmetric_errors(kind, MOLECULES[name])
    print(f"{kind}, {name}: energy {energy:.1e}, forces {forces:.1e}")
    if name in EXACT[kind]:
        assert max(energy, forces) < 1e-10
    elif name in EXACT_ENERGY[kind]:
        assert energy < 1e-10 and forces > 1e-3
    else:
        assert forces > 1e-3 and energy > 1e-6


@pytest.mark.parametrize("name", ["water", "ammonia", "methane", "benzene", "in line"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_displacement_makes_frames_exact(kind, name):
    """Atoms moved by 0.02 Angstrom, which no thermal molecule is without."""
    z, x = MOLECULES[name]
    x = np.asarray(x, dtype=float) + np.random.default_rng(0).normal(scale=0.02, size=(len(z), 3))
    energy, forces = symmetric_errors(kind, (z, x))
    print(f"{kind}, {name} displaced: energy {energy:.1e}, forces {forces:.1e}")
    assert max(energy, forces) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_nearly_symmetric_molecules_have_bounded_gradients(kind):
    """Methane off by 1e-7 Angstrom: forces and gradients stay within STEADY^-1 of those of a distorted one."""
    z, x = MOLECULES["methane"]
    noise = np.random.default_rng(0).normal(size=x.shape)
    largest = []
    for scale in (0.1, 1e-7):
        model = model_of(around(kind, conservative=True))
        data = make_batch([(z, x + scale * noise)])
        _, forces = model(data)
        objective(model, data).backward()
        gradients = [p.grad.abs().max() for p in model.parameters() if p.grad is not None]
        largest.append((forces.abs().max().item(), max(gradients).item()))
    print(kind, [f"forces {f:.1e}, gradients {g:.1e}" for f, g in largest])
    assert all(near < 1e3 * far for far, near in zip(*largest, strict=True))


def mirrored(data):
    return moved(data, torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)))


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_proper_and_a_mirror_image_stays_one(kind):
    """SO(3), not O(3): frames have determinant 1, and the two hands of a molecule may differ."""
    data, model = batch_of(small_spec("mpnn"), several()), model_of(around(kind))
    x = centred(data)
    frame = principal_frames(x, data) if kind == "frames" else model.canonicaliser(data, x)
    eye = torch.eye(3, dtype=torch.float64)
    assert (frame.transpose(1, 2) @ frame - eye).abs().max() < 1e-12
    assert (torch.linalg.det(frame) - 1).abs().max() < 1e-12
    difference = distance([model(mirrored(data))[0]], [model(data)[0]])
    print(f"{kind}: energies of mirror images differ by {difference:.1e}")
    assert difference > 1e-4


def test_the_canonical_frame_turns_with_the_molecule():
    """R(g x) = g R(x); and it is learned: it moves with the canonicaliser's weights."""
    data, model, matrix = batch_of(small_spec("mpnn"), several()), model_of(around("canonical")), rotation(3)
    frame = model.canonicaliser(data, centred(data))
    there = moved(data, matrix)
    error = (model.canonicaliser(there, centred(there)) - matrix @ frame).abs().max().item()
    print(f"error {error:.1e}")
    assert error < 1e-12
    with torch.no_grad():
        model.canonicaliser.head.weight[0] *= -1
    assert (model.canonicaliser(data, centred(data)) - frame).abs().max() > 0.1


def test_jacobi_diagonalises_whatever_the_eigenvalues():
    """Distinct, repeated, nearly repeated, zero: orthogonal, proper, ascending, as torch.linalg.eigvalsh."""
    rng = torch.Generator().manual_seed(0)
    spectra = [
        [1, 2, 5],
        [1, 1, 3],
        [2, 3, 3],
        [4, 4, 4],
        [0, 0, 1],
        [0, 0, 0],
        [1, 1 + 1e-9, 2],
        [1e-12, 1e-6, 1],
    ]
    values = torch.tensor(spectra, dtype=torch.float64).repeat_interleave(50, 0)
    q = torch.linalg.qr(torch.randn(len(values), 3, 3, generator=rng, dtype=torch.float64))[0]
    matrix = q @ torch.diag_embed(values) @ q.mT
    u = jacobi((matrix + matrix.mT) / 2)
    assert (u.mT @ matrix @ u - torch.diag_embed(values)).abs().max() < 1e-13
    assert (torch.linalg.det(u) - 1).abs().max() < 1e-13


def test_derivative_of_the_principal_axes():
    """Perturbation theory against finite differences."""
    data = batch_of(small_spec("mpnn"), several())

    def axes(x):
        return principal_frames(x - x.new_tensor(0.0), data)

    assert torch.autograd.gradcheck(axes, (centred(data).requires_grad_(),))


def test_around_an_equivariant_model_frames_change_nothing():
    """EGNN: to rounding. eSEN: its sphere grid's error goes."""
    for arch, expected in (("egnn", 1e-12), ("esen", 2e-2)):
        data, bare = batch_of(small_spec(arch), several()), model_of(small_spec(arch))
        averaged = model_of(around("frames", arch))
        change, error = distance(averaged(data), bare(data)), rotation_error(averaged, data)
        print(f"{arch}: changed by {change:.1e}, rotation error {error:.1e}")
        assert change < expected and error < 1e-11
    assert change > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_group_averaging_changes_nothing(kind):
    """Appendix H on top of exact equivariance."""
    data, model = batch_of(small_spec("mpnn"), several()), model_of(around(kind))
    assert distance(GroupAverage(model, 3)(data), model(data)) < 1e-12


def test_four_frames_cost_four_passes():
    """FLOPs of a step, forward and backward: four times, and the small matrices that turn positions."""
    data = batch_of(small_spec("mpnn"), several(), torch.float32)
    steps = []
    for spec in (small_spec("mpnn", width=64), around("frames", width=64)):
        model = build_model(spec)
        steps.append(count_flops(lambda model=model: objective(model, data).backward()))
    print(f"ratio {steps[1] / steps[0]:.4f}")
    assert 4 * steps[0] < steps[1] < 4.02 * steps[0]


def test_the_canonicaliser_is_counted():
    """FLOPs are the model's, the canonicaliser's own and those of turning; N is both."""
    data = batch_of(small_spec("mpnn"), several(), torch.float32)
    bare, model = build_model(small_spec("mpnn", width=64)), build_model(around("canonical", width=64))
    parts = [lambda: bare(data), lambda: model.canonicaliser(data, centred(data)), lambda: model(data)]
    inner, frame, whole = map(count_flops, parts)
    assert frame > 0 and whole == inner + frame + 2 * 2 * 9 * data.z.shape[0]
    c, radial, depth = 32, 16, 2
    own = 100 * c + depth * (radial * c + c + 2 * (c * c + c)) + 2 * c
    assert count_parameters(model) == count_parameters(bare) + own
    assert count_parameters(build_model(around("frames", width=64))) == count_parameters(bare)
    wide = build_model(around("canonical", options=(("canonicaliser", 8),)))
    assert wide.canonicaliser.head.weight.shape == (2, 8)


@pytest.mark.parametrize("changes", [{}, {"conservative": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_mup_finds_the_same_matrices_inside(kind, changes):
    """Rates and starting weights of the model inside are as without; the canonicaliser keeps eta*."""
    specs = [
        small_spec("mpnn", width=32, mup="parameter", **changes),
        around(kind, width=32, mup="parameter", **changes),
    ]
    rates, weights = [], []
    for spec in specs:
        model = build_model(spec)
        names = {id(p): n.replace("model.", "") for n, p in model.named_parameters()}
        rates.append({names[id(p)]: g["lr"] for g in parameter_groups(model, spec) for p in g["params"]})
        weights.append({names[id(p)]: p for p in model.parameters()})
    assert len(set(rates[0].values())) == 2
    assert {n: rate for n, rate in rates[1].items() if n in rates[0]} == rates[0]
    assert {rate for n, rate in rates[1].items() if n not in rates[0]} <= {specs[0].lr}
    assert all(torch.equal(p, weights[1][n]) for n, p in weights[0].items())


@pytest.mark.parametrize(
    "changes", [{"equivariant_by": "frames"}, {"equivariant_by": "canonical", "conservative": True}]
)
def test_coordinate_check_looks_inside(changes):
    """It watches the layers of the model, whatever stands around it."""
    spec = small_spec("mpnn", **changes)
    seen = coordinates(spec, batch_of(spec, several(), torch.float32), steps=1)
    assert {"layers[-1]", "forces", "energy / atom"} == set(seen["quantity"])


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_reaches_the_model_inside(kind):
    """GemNet-OC's scale factors are set through everything around it; for others it is nothing."""
    spec = around(kind, "gemnet", conservative=True)
    model = build_model(spec)
    model.calibrate([batch_of(spec, several(), torch.float32)])
    factors = [value for name, value in model.state_dict().items() if name.endswith("scale_sum.value")]
    assert len(factors) > 2 and all(factor != 1 for factor in factors)
    assert build_model(around(kind)).calibrate([]) is None and isinstance(model, Conservative)


def test_frames_under_autocast_are_exact():
    """bfloat16 is for the model's products: positions are turned in full precision."""
    data = batch_of(small_spec("mpnn"), several(), torch.float32)
    x = centred(data)
    frame = principal_frames(x, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = principal_frames(x, data)
        poses = []
        frames.in_frame(lambda d: (poses.append(d.pos), (d.energy, d.forces))[1], data, x, frame)
    assert torch.equal(again, frame)
    by_hand = torch.stack([frame[g].T.float() @ v for g, v in zip(data.batch, x, strict=True)])
    assert poses[0].dtype == torch.float32 and torch.allclose(poses[0], by_hand, atol=1e-5)
    assert dataclasses.replace(data, pos=poses[0]).pos is poses[0]
