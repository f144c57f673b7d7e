"""Radial functions by bands, and the order in which a CPU visits edges: nothing is lost but rounding."""

import math

import numpy as np
import pytest
import torch
from molecules import make_batch, random_molecule

from symscale.models.common import GaussianRBF, edge_vectors, in_given_order, radial_bands
from symscale.models.egnn import EGNN
from symscale.models.egnn_edges import arrange


def left_out(rbf, d, bands, narrower=0):
    """Largest radial function outside of the bands, which may be cut by some columns at either end."""
    rest = rbf(d)
    for band in bands:
        rest[band.rows, band.columns.start + narrower : band.columns.stop - narrower] = 0
    return float(rest.max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1.0, 2.0])
def test_bands_leave_out_only_what_is_below_rounding(dtype, width):
    """A few Gaussians of 136 are kept, and none above half an epsilon is left out; two columns fewer lose some."""
    rbf = GaussianRBF(136, 6.0, width)
    d = torch.from_numpy(np.sort(np.random.default_rng(0).uniform(0, 6, 2000))).to(dtype)
    bands, values = radial_bands(rbf, d, [slice(i, i + 100) for i in range(0, 2000, 100)])
    kept = max(v.shape[1] for v in values)
    lost, eps = left_out(rbf, d, bands), torch.finfo(dtype).eps
    print(f"at most {kept} columns; left out: at most {lost:.1e}")
    assert kept < 70
    assert lost < eps / 2 < 10 * eps < left_out(rbf, d, bands, narrower=2)
    for band, v in zip(bands, values, strict=True):
        assert torch.equal(v, rbf(d)[band.rows, band.columns])


def test_in_the_given_order_a_band_is_everything():
    """Negative control: where values may not be read, all columns are kept, of distances in any order."""
    rbf, d = GaussianRBF(136, 6.0), torch.rand(50) * 6
    with in_given_order():
        bands, values = radial_bands(rbf, d, [slice(0, 50)])
    assert bands[0].columns == slice(0, 136) and torch.equal(values[0], rbf(d))


def test_order_of_visits_changes_nothing():
    """MC-EGNN in several blocks, atoms by neighbours and edges by length, equals itself in the order of the batch."""
    rng = np.random.default_rng(5)
    data = make_batch([random_molecule(rng, n) for n in (24, 3, 30, 1, 27, 18, 22, 25, 28)])
    torch.manual_seed(0)
    model = EGNN(width=64, depth=3).double()
    edges = arrange(data, *edge_vectors(data), model.rbf, 64)
    assert len(edges.blocks) > 1 and not torch.equal(edges.data.z, data.z)
    assert sum(len(block.src) for block in edges.blocks) == data.edge_index.shape[1]
    taken = max(band.columns.stop - band.columns.start for block in edges.blocks for band in block.bands)
    assert taken < 136

    def results():
        model.zero_grad()
        energy, forces = model(data)
        ((energy * data.energy).sum() + (forces * data.forces).sum()).backward()
        return [energy.detach(), forces.detach(), *(p.grad.clone() for p in model.parameters())]

    visited = results()
    with in_given_order():
        given = results()
    errors = [
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-9))
        for a, b in zip(visited, given, strict=True)
    ]
    print(f"relative errors: energy {errors[0]:.1e}, forces {errors[1]:.1e}, gradients {max(errors[2:]):.1e}")
    assert 0 < max(errors) < 1e-10  # 0: nothing was arranged


def test_padding_holds_every_edge_once():
    """In the padded layout of a block an edge stands with its atom, and empty places are zeros."""
    rng = np.random.default_rng(1)
    data = make_batch([random_molecule(rng, n) for n in (24, 5, 30, 28, 29, 30)])
    edges = arrange(data, *edge_vectors(data), GaussianRBF(), 64)
    for block in edges.blocks:
        x = torch.stack([block.dst + 1.0, torch.ones(len(block.dst))], 1)
        padded = block.pad(x)  # (n, degree, 2)
        atoms = torch.arange(block.atoms.start, block.atoms.stop) + 1.0
        assert torch.equal(padded[..., 0], padded[..., 1] * atoms[:, None])
        assert padded[..., 1].sum() == len(block.dst)
        assert torch.equal(block.unpad(padded), x)
        assert math.prod(block.shape) < 1.5 * len(block.dst)


def test_positions_that_are_no_numbers_spoil_their_molecule_alone():
    """NaN gives NaN rather than an error, and the order of visits stays one of whole blocks."""
    rng = np.random.default_rng(2)
    data = make_batch([random_molecule(rng, n) for n in (24, 30, 28, 29, 30)])
    torch.manual_seed(0)
    model = EGNN(width=64, depth=2).double()
    energy, _ = model(data)
    data.pos[data.batch == 1] = math.nan
    spoilt, forces = model(data)
    assert spoilt[1].isnan() and forces[data.batch == 1].isnan().any()
    others = torch.tensor([0, 2, 3, 4])
    assert torch.allclose(spoilt[others], energy[others], rtol=1e-10)
