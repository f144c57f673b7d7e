"""The MPNN's hand-written edge part: no state between passes, and little that is kept."""

import numpy as np
import pytest
import torch
from molecules import make_batch, random_molecule

from symscale.models.common import twice_differentiable
from symscale.models.mpnn import MPNN
from symscale.models.mpnn_kernels import empty_rows


def small(width=16, depth=3):
    torch.manual_seed(1)
    return MPNN(width=width, depth=depth).double()


def objective(model, data):
    energy, forces = model(data)
    return (energy * data.energy).sum() + (forces * data.forces).sum()


def test_backward_passes_are_independent(molecules):
    """Tokens carry the gradient of e: a second backward pass, and one of another loss, start from nothing."""
    data, model = make_batch(molecules), small()
    parameters = list(model.parameters())
    energy, forces = model(data)
    losses = (energy * data.energy).sum(), (forces * data.forces).sum()
    both = torch.autograd.grad(sum(losses), parameters, retain_graph=True)
    again = torch.autograd.grad(sum(losses), parameters, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(both, again, strict=True))
    parts = [
        torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True) for loss in losses
    ]
    for a, b, whole in zip(*parts, both, strict=True):
        assert torch.allclose(a + b, whole, rtol=1e-9, atol=1e-12)
    assert any(not torch.allclose(a, whole) for a, whole in zip(parts[0], both, strict=True))


def test_gradients_reach_positions(molecules):
    """By positions as by autograd's own backward pass: the vector's and the radial functions' part."""
    data, model = make_batch(molecules), small()
    data.pos.requires_grad_()
    (found,) = torch.autograd.grad(objective(model, data), data.pos)
    with twice_differentiable():
        (wanted,) = torch.autograd.grad(objective(model, data), data.pos)
    error = float((found - wanted).abs().max() / wanted.abs().max())
    print(f"relative error {error:.1e}")
    assert 0 < error < 1e-10


def test_no_edge_tensor_is_kept_for_each_layer():
    """What is saved for the backward pass grows by less than one (E, w) tensor a layer; autograd's own by more."""
    rng = np.random.default_rng(0)
    data = make_batch([random_molecule(rng, 28) for _ in range(4)])
    edge_tensor = data.edge_index.shape[1] * 64 * 8

    def saved(depth):
        sizes, model = {}, small(64, depth)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t,
            lambda t: t,
        ):
            keep = model(data)
        assert keep[0].requires_grad
        return sum(sizes.values()) - sum(p.nbytes for p in model.parameters())

    ours = saved(6) - saved(2)
    with twice_differentiable():
        plain = saved(6) - saved(2)
    print(f"in (E, w) tensors a layer: {ours / 4 / edge_tensor:.2f}, plain {plain / 4 / edge_tensor:.2f}")
    assert ours < 4 * edge_tensor < plain


@pytest.mark.parametrize(("width", "column"), [(517, 0), (517, 258), (16, 0), (1, 5)])
def test_rows_start_cache_lines(width, column):
    """The chosen column of every row is a multiple of 64 bytes away from the first row's."""
    rows = empty_rows(torch.empty(0), 7, width, column)
    assert rows.shape == (7, width) and rows.stride(1) == 1
    assert (rows.storage_offset() + column) % 16 == 0 and rows.stride(0) % 16 == 0
