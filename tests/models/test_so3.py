"""Harmonics, Wigner matrices and edge frames, with e3nn as the oracle."""

import numpy as np
import pytest
import torch
from e3nn import o3
from molecules import rotation

from symscale.models import so3

LMAX = 6


def random_frames(count, seed=0):
    return torch.stack([rotation(seed + i) for i in range(count)])


@pytest.mark.parametrize("lmax", [2, 3, 4, LMAX])
def test_wigner_matrices_are_those_of_e3nn(lmax):
    """D(R) Y(x) = Y(R x) with e3nn's harmonics to rounding, and e3nn's own matrices to the 1e-5 they are good for."""
    frames = random_frames(8)
    rows = so3.m_major(lmax, lmax)
    got = so3.Wigner(lmax, lmax)(frames)  # every |m| is kept: (E, K, K), rows m-major
    points = torch.nn.functional.normalize(torch.randn(30, 3, dtype=torch.float64), dim=1)
    degrees = list(range(lmax + 1))
    y = o3.spherical_harmonics(degrees, points, False, "component")  # (P, K)
    turned = o3.spherical_harmonics(degrees, points @ frames.transpose(1, 2), False, "component")[..., rows]
    error = (y @ got.transpose(1, 2) - turned).abs().max().item()
    print(f"lmax {lmax}: {error:.1e}")
    assert error < 1e-10
    matrices = o3.Irreps.spherical_harmonics(lmax).D_from_matrix(frames)[:, rows]
    assert (got - matrices).abs().max() < 2e-5
    assert (got - matrices.flip(0)).abs().max() > 0.1, "another rotation has other matrices"


def test_kept_rows_are_rows_of_the_whole_matrix():
    """mmax leaves rows out and changes none."""
    frames = random_frames(5)
    whole, kept = so3.Wigner(4, 4)(frames), so3.Wigner(4, 2)(frames)
    at = [so3.m_major(4, 4).index(i) for i in so3.m_major(4, 2)]
    assert kept.shape == (5, 19, 25)
    assert torch.equal(kept, whole[:, at])


def test_harmonics_are_those_of_e3nn():
    """Component normalisation, polar axis y, m from -l to l."""
    points = np.random.default_rng(0).normal(size=(20, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    expected = o3.spherical_harmonics(list(range(LMAX + 1)), torch.tensor(points), False, "component")
    assert np.abs(so3.harmonics(points, LMAX) - expected.numpy()).max() < 1e-10


def test_edge_frames_turn_every_edge_to_the_y_axis():
    """Proper rotations, also for edges along the axes and for edges of length 0."""
    r_uv = torch.cat([torch.randn(20, 3, dtype=torch.float64), torch.eye(3).double(), -torch.eye(3).double()])
    r_uv = torch.cat([r_uv, torch.zeros(1, 3).double()])
    d = r_uv.norm(dim=1)
    frames = so3.edge_frames(r_uv, d)
    assert (frames @ frames.transpose(1, 2) - torch.eye(3).double()).abs().max() < 1e-12
    assert (torch.linalg.det(frames) - 1).abs().max() < 1e-12
    turned = torch.einsum("eij,ej->ei", frames, r_uv)[:-1] / d[:-1, None]
    assert (turned - torch.tensor([0.0, 1.0, 0.0]).double()).abs().max() < 1e-12


@pytest.mark.parametrize("lmax", [2, 4])
def test_coefficients_come_back_from_the_grid(lmax):
    """Grid and back is the identity with more rings than degrees, and is not with fewer."""
    for rings, exact in ((lmax + 1, True), (lmax + 4, True), (lmax, False)):
        grid = so3.SphereGrid(lmax, rings)
        error = (grid.from_grid @ grid.to_grid - torch.eye((lmax + 1) ** 2).double()).abs().max()
        assert (error < 1e-10) == exact, (rings, error)
