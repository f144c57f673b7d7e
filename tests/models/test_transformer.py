"""Vanilla transformer: what it is claimed to be, and the symmetry it is claimed not to have."""

import numpy as np
import pytest
import torch
from molecules import make_batch, moved, rotation

from symscale.models.transformer import Transformer, heads_of


def small(width=12, depth=2):
    torch.manual_seed(1)
    return Transformer(width=width, depth=depth).double()


def test_parameter_count():
    """Depth (12 w^2 + 13 w), tokens, final norm, and the MPNN's two heads."""
    for width, depth in ((48, 3), (37, 1)):
        want = depth * (12 * width**2 + 13 * width) + 100 * width + width * (width + 3) + width + 2 * width
        want += width + 1 + width * (width + 1) + 3 * (width + 1)
        assert sum(p.numel() for p in Transformer(width=width, depth=depth).parameters()) == want


def test_rotations_change_it_and_atom_order_does_not(molecules):
    """Negative control: energies move under rotation and shift; permutation symmetry is exact."""
    data, model, turn = make_batch(molecules), small(), rotation(3)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(z)) for z, _ in molecules]
    shuffled = make_batch([(z[o], p[o]) for (z, p), o in zip(molecules, orders, strict=True)])
    start = np.cumsum([0, *(len(o) for o in orders)])
    where = torch.as_tensor(np.concatenate([o + s for o, s in zip(orders, start, strict=False)]))
    with torch.no_grad():
        energy, forces = model(data)
        turned, shifted = model(moved(data, turn)), model(moved(data, shift=torch.ones(3)))
        permuted, alone = model(shuffled), model(make_batch(molecules[1:2]))
    changes = [float((out[0] - energy).abs().max()) for out in (turned, shifted)]
    print(f"energy changes by {changes[0]:.1e} on rotation, {changes[1]:.1e} on a shift")
    assert min(changes) > 1e-3
    assert (turned[1] - forces @ turn.T).abs().max() > 1e-3
    assert (permuted[0] - energy).abs().max() < 1e-11
    assert (permuted[1] - forces[where]).abs().max() < 1e-11
    assert (alone[0] - energy[1:2]).abs().max() < 1e-11
    assert (alone[1] - forces[start[1] : start[2]]).abs().max() < 1e-11


def test_attention_is_global(molecules):
    """Without any edge, a far atom still changes every force of its molecule, and of no other."""
    z, pos = molecules[2]
    far = pos.copy()
    far[0] += 50.0
    model = small()
    with torch.no_grad():
        near_forces = model(make_batch([(z, pos), molecules[0]]))[1]
        far_forces = model(make_batch([(z, far), molecules[0]]))[1]
    change = (near_forces - far_forces).abs().amax(1)
    assert (change[: len(z)] > 1e-6).all()
    assert change[len(z) :].max() < 1e-12


@pytest.mark.parametrize("width", [1, 7, 32, 96, 100, 128, 257, 768])
def test_any_width_has_heads(width):
    """Heads divide the width and hold at least 32 channels wherever the width does."""
    heads = heads_of(width)
    assert width % heads == 0
    assert heads == 1 or width // heads >= 32


def test_gradients_by_finite_differences(molecules):
    """Gradients of both outputs by position agree with finite differences, with padding in the batch."""
    data, model = make_batch([molecules[0], ([1], [[0.0, 0, 0]])]), small(width=6, depth=1)

    def outputs(pos):
        return model(data.__class__(**{**vars(data), "pos": pos}))

    assert torch.autograd.gradcheck(outputs, (data.pos.clone().requires_grad_(),))
