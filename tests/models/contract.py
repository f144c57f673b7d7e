"""What every architecture in MODELS is held to: functions of a spec that raise AssertionError, listed in CHECKS."""

import dataclasses

import numpy as np
import torch
from molecules import make_batch, moved, random_molecule, rotation
from torch._subclasses import FakeTensorMode

from symscale.cells import CellSpec
from symscale.models import MODELS, build_model
from symscale.models.common import graph_sum

# Options that differ from those of any other architecture; one of your own works without an entry.
SMALL = {
    "egnn": {"width": 9, "depth": 3},
    "gemnet": {"depth": 2, "cutoff": 10.0, "max_neighbors": 50},
    "esen": {"width": 4, "lmax": 2, "hidden_channels": 4},
}
# The point-wise MLP of eSEN on a sphere grid is equivariant up to aliasing; all else is held to rounding.
ROTATION_TOLERANCE = {"esen": 2e-2}
# Parameters that never get a gradient, with the reason.
WITHOUT_GRADIENT = {
    "esen": {"force_bias": "degree 0 of the force readout: counted in Table 5, without effect"}
}


def small_spec(arch, **changes):
    values = {"width": 8, "depth": 2, "base_width": 8, "dataset": "none"} | SMALL.get(arch, {}) | changes
    return CellSpec(name=f"{arch}_small", arch=arch, **values)


def model_of(spec):
    return build_model(spec).double()


def batch_of(spec, molecules, dtype=torch.float64):
    symmetric = MODELS[spec.arch].symmetric_edges
    return make_batch(molecules, spec.cutoff, spec.max_neighbors, symmetric, dtype)


def some_molecules(seed=7, sizes=(3, 11, 6)):
    rng = np.random.default_rng(seed)
    return [random_molecule(rng, n) for n in sizes]


def distance(a, b):
    """Largest difference of (energies, forces), each relative to its own size."""
    return max(
        ((x - y).abs().max() / y.abs().max().clamp(min=1e-6)).item() for x, y in zip(a, b, strict=True)
    )


def objective(model, data):
    """A scalar that depends on every output with weights of its own."""
    energy, forces = model(data)
    return (energy * data.energy).sum() + (forces * data.forces).sum()


def permutation(spec):
    """Energies do not depend on the order of the atoms, forces go with them."""
    molecules, rng = some_molecules(), np.random.default_rng(0)
    orders = [rng.permutation(len(z)) for z, _ in molecules]
    shuffled = [(z[o], pos[o]) for (z, pos), o in zip(molecules, orders, strict=True)]
    model = model_of(spec)
    energy, forces = model(batch_of(spec, molecules))
    starts = np.cumsum([0] + [len(o) for o in orders[:-1]])
    order = torch.as_tensor(np.concatenate([o + s for o, s in zip(orders, starts, strict=True)]))
    error = distance(model(batch_of(spec, shuffled)), (energy, forces[order]))
    print(f"{spec.arch}: permutation error {error:.1e}")
    assert error < 1e-10


def translation(spec):
    """Nothing changes under a shift where that is claimed; something does where it is not."""
    model, data = model_of(spec), batch_of(spec, some_molecules())
    shift = torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64)
    error = distance(model(moved(data, shift=shift)), model(data))
    print(f"{spec.arch}: translation error {error:.1e}")
    assert error < 1e-10 if model.translation_invariant else error > 1e-4


def rotation_error(model, data):
    matrix = rotation(3)
    energy, forces = model(data)
    return distance(model(moved(data, matrix)), (energy, forces @ matrix.T))


def rotations(spec):
    """Energies stay and forces turn with the molecule where that is claimed; they do not where it is not."""
    model, data = model_of(spec), batch_of(spec, some_molecules())
    error = rotation_error(model, data)
    print(f"{spec.arch}: rotation error {error:.1e}")
    if model.rotation_equivariant:
        assert error < ROTATION_TOLERANCE.get(spec.arch, 1e-10)
    else:
        assert error > 1e-2


def batch_independence(spec):
    """A molecule alone gives what it gives between others."""
    molecules, model = some_molecules(), model_of(spec)
    together = batch_of(spec, molecules)
    energy, forces = model(together)
    for g, molecule in enumerate(molecules):
        error = distance(model(batch_of(spec, [molecule])), (energy[g : g + 1], forces[together.batch == g]))
        assert error < 1e-10, f"molecule {g}: {error:.1e}"


def _ring(n, radius):
    angle = 2 * np.pi * np.arange(n) / n
    return radius * np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)


TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 0.63
DEGENERATE = {
    "one atom": ([8], np.zeros((1, 3))),
    "two atoms": ([1, 8], np.array([[0.0, 0, 0], [0, 0, 0.97]])),
    "two atoms out of reach": ([1, 8], np.array([[0.0, 0, 0], [0, 0, 40.0]])),
    "in line": ([8, 6, 6, 8], np.array([[0, 0, 1.2 * i] for i in range(4)])),
    "methane": ([6, 1, 1, 1, 1], np.concatenate([np.zeros((1, 3)), TETRAHEDRON])),
    "benzene": ([6] * 6 + [1] * 6, np.concatenate([_ring(6, 1.39), _ring(6, 2.48)])),
}


def degenerate_molecules(spec):
    """No NaN in values or gradients: few atoms, no edges, atoms in line, equal distances; alone and together."""
    model = model_of(spec)
    cases = {name: [molecule] for name, molecule in DEGENERATE.items()} | {"all": list(DEGENERATE.values())}
    for name, molecules in cases.items():
        data = batch_of(spec, molecules)
        model.zero_grad()
        energy, forces = model(data)
        assert energy.shape == (len(molecules),) and forces.shape == data.pos.shape, name
        objective(model, data).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(t.isfinite().all() for t in (energy, forces, *gradients)), name


def gradients(spec):
    """Derivatives along random directions of all parameters agree with central differences."""
    model, data = model_of(spec), batch_of(spec, some_molecules())
    parameters = [p for p in model.parameters() if p.requires_grad]
    objective(model, data).backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        direction = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in parameters]
        expected = sum((g * v).sum() for g, v in zip(found, direction, strict=True))
        step, values = 1e-6, []
        with torch.no_grad():
            for scale in (1, -2, 1):  # +step, then -step, then back
                for p, v in zip(parameters, direction, strict=True):
                    p.add_(v, alpha=scale * step)
                values.append(objective(model, data))
        numerical = (values[0] - values[1]) / (2 * step)
        error = (abs(numerical - expected) / abs(expected)).item()
        assert error < 1e-5, f"direction {seed}: {error:.1e}"


def single_precision(spec):
    """float32 gives the float64 result to a part in a thousand, on parameters drawn alike."""
    molecules = some_molecules()
    single = build_model(spec)(batch_of(spec, molecules, torch.float32))
    error = distance(single, model_of(spec)(batch_of(spec, molecules)))
    print(f"{spec.arch}: float32 error {error:.1e}")
    assert all(t.dtype == torch.float32 for t in single) and error < 1e-3


def every_parameter_learns(spec):
    """Each trainable parameter gets a gradient that is not 0, or stands in WITHOUT_GRADIENT with the reason."""
    model = model_of(spec)
    objective(model, batch_of(spec, some_molecules())).backward()
    idle = {
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    }
    assert idle == set(WITHOUT_GRADIENT.get(spec.arch, {}))


def no_host_sync(spec):
    """A step runs on tensors without values: nothing asks one for a size or a number, which would stall a GPU."""
    data = batch_of(spec, some_molecules(), torch.float32)
    with FakeTensorMode() as fake:
        tensors = {k: fake.from_tensor(v) for k, v in vars(data).items() if isinstance(v, torch.Tensor)}
        model = build_model(spec)
        objective(model, dataclasses.replace(data, **tensors)).backward()


def conservative(spec):
    """With ``conservative`` set, forces are the energy's gradient, evaluated or trained, and can be trained on."""
    spec = dataclasses.replace(spec, conservative=True)
    model, data = model_of(spec), batch_of(spec, some_molecules())
    with torch.no_grad():
        _, evaluated = model(data)
    _, forces = model(data)
    error = distance([evaluated], [forces])
    for seed in range(3):
        rng, step = torch.Generator().manual_seed(seed), 1e-5
        direction = torch.randn(data.pos.shape, generator=rng, dtype=data.pos.dtype)
        with torch.no_grad():
            there, back = (model(moved(data, shift=s * step * direction))[0] for s in (1, -1))
        work = -graph_sum((forces * direction).sum(1), data)  # (G,)
        error = max(error, distance([(there - back) / (2 * step)], [work]))
    print(f"{spec.arch}: forces and finite differences of the energy, error {error:.1e}")
    assert forces.abs().max() > 1e-3 and error < 1e-6
    gradients(spec)


CHECKS = {
    check.__name__: check
    for check in (
        permutation,
        translation,
        rotations,
        batch_independence,
        degenerate_molecules,
        gradients,
        single_precision,
        every_parameter_learns,
        no_host_sync,
        conservative,
    )
}
