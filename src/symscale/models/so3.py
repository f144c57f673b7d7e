"""Rotations of spherical-harmonic coefficients, edge-aligned frames and the sphere grid of eSEN.

Conventions, those of e3nn, which the tests use as oracle: real harmonics; degree l at indices
l^2 ... (l + 1)^2 - 1 with orders m = -l ... l; polar axis y, so that degree 1 is (x, y, z); component
normalisation, sum_m Y_lm^2 = 2l + 1; coefficients transform as f -> D(R) f. "m-major" orders the
coefficients with |m| <= mmax as the SO(2) convolutions use them: m = 0 (l = 0 ... lmax), then for every
m > 0 the +m block (l = m ... lmax) and the -m block.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn


def quadrature(rings: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre rings x (2 rings) longitudes: unit vectors (P, 3), weights (P,) that sum to 1.

    Integrates every polynomial of degree at most 2 rings - 1 over the sphere exactly (as an average).
    """
    y, weight = np.polynomial.legendre.leggauss(rings)
    phi = (np.arange(2 * rings) + 0.5) * math.pi / rings
    radius = np.sqrt(1 - y * y)[:, None]
    points = [radius * np.sin(phi), np.broadcast_to(y[:, None], (rings, 2 * rings)), radius * np.cos(phi)]
    return np.stack(points, -1).reshape(-1, 3), np.repeat(weight / (4 * rings), 2 * rings)


def harmonics(points: np.ndarray, lmax: int) -> np.ndarray:
    """Real spherical harmonics up to lmax at unit vectors (P, 3), component-normalised: (P, (lmax + 1)^2)."""
    x, y, z = points.T
    out = np.empty((len(points), (lmax + 1) ** 2))
    azimuth = np.ones_like(y, dtype=complex)  # (z + i x)^m = sin(beta)^m exp(i m alpha)
    top = np.ones_like(y)  # P_m^m / sin(beta)^m = (2m - 1)!!
    for m in range(lmax + 1):
        below, legendre = np.zeros_like(y), top  # P_{l-1}^m and P_l^m, both without sin(beta)^m
        for l in range(m, lmax + 1):
            scale = math.sqrt((2 * l + 1) * math.factorial(l - m) / math.factorial(l + m) * (2 if m else 1))
            out[:, l * l + l - m] = scale * legendre * azimuth.imag
            out[:, l * l + l + m] = scale * legendre * azimuth.real
            below, legendre = legendre, ((2 * l + 1) * y * legendre - (l + m) * below) / (l - m + 1)
        azimuth = azimuth * (z + 1j * x)
        top = top * (2 * m + 1)
    return out


def coupling(l: int) -> np.ndarray:
    """The isometry of degree l into degrees (l - 1) x 1: (2l - 1, 3, 2l + 1), columns of norm 1.

    It makes Wigner matrices polynomials in the entries of R: D_l = Q^T (D_{l-1} x R) Q.
    """
    points, weight = quadrature(l + 1)
    y = harmonics(points, l)
    lower, upper = y[:, (l - 1) ** 2 : l * l], y[:, l * l :]
    q = np.einsum("p,pa,pi,pm->aim", weight, lower, points, upper)
    q[np.abs(q) < 1e-12] = 0
    return q / math.sqrt(np.square(q).sum() / (2 * l + 1))


def m_major(lmax: int, mmax: int) -> list[int]:
    """Positions, in the usual order, of the coefficients with |m| <= mmax, m-major."""
    order = [l * l + l for l in range(lmax + 1)]
    for m in range(1, mmax + 1):
        order += [l * l + l + m for l in range(m, lmax + 1)] + [l * l + l - m for l in range(m, lmax + 1)]
    return order


def edge_frames(r_uv: Tensor, d: Tensor) -> Tensor:
    """Rotations R (E, 3, 3) with R r_uv / d = (0, 1, 0), from edge vectors (E, 3) and lengths (E,).

    The roll about the edge is arbitrary: it is fixed by the coordinate axis least aligned with the edge,
    so R and its derivative are bounded for every direction. An edge of length 0 counts as lying along y.
    """
    zero = (d == 0)[:, None]
    y_axis = r_uv.new_zeros(3)
    y_axis[1] = 1.0
    y = torch.where(zero, y_axis, r_uv / d.masked_fill(d == 0, 1.0)[:, None])  # (E, 3), the edge's direction
    axis = nn.functional.one_hot(y.detach().abs().argmin(-1), 3).to(y)  # (E, 3)
    x = torch.linalg.cross(axis, y)
    x = x / x.norm(dim=-1, keepdim=True)  # at least sqrt(2/3) long before
    return torch.stack([x, y, torch.linalg.cross(x, y)], 1)


class Wigner(nn.Module):
    """Wigner matrices in the rows an edge frame keeps, m-major: R (E, 3, 3) -> (E, rows, (lmax + 1)^2).

    Polynomials in the entries of R, hence differentiable everywhere. The constants stay in float64 and are
    cast when used: a model that is created in float32 and doubled later is exact.
    """

    def __init__(self, lmax: int, mmax: int):
        super().__init__()
        self.lmax = lmax
        order = m_major(lmax, mmax)
        self.rows = len(order)
        for l in range(1, lmax + 1):
            # The last degree is needed only in its kept rows, the others whole, for the next degree.
            kept = [i - l * l for i in order if l * l <= i < (l + 1) ** 2]
            self.register_buffer(f"kept_{l}", torch.tensor(kept), persistent=False)
            at = [order.index(l * l + i) for i in kept]
            self.register_buffer(f"at_{l}", torch.tensor(at), persistent=False)
            if l > 1:
                q = coupling(l)
                left = q[:, :, kept] if l == lmax else q
                product = np.einsum("aim,bjn->aibjmn", left, q).reshape((6 * l - 3) ** 2, -1)
                self.register_buffer(f"product_{l}", torch.tensor(product), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        edges, size = frames.shape[0], (self.lmax + 1) ** 2
        frames = frames.permute(1, 2, 0).contiguous()  # edges last: element-wise work runs along them
        out = frames.new_zeros(self.rows, size, edges)
        out[0, 0] = 1.0
        block = frames
        for l in range(1, self.lmax + 1):
            if l > 1:
                kron = block[:, None, :, None] * frames[None, :, None]  # (2l-1, 3, 2l-1, 3, E)
                product = getattr(self, f"product_{l}").to(frames.dtype)
                block = (product.t() @ kron.flatten(0, 3)).unflatten(0, (-1, 2 * l + 1))
            last = l == self.lmax and l > 1
            kept = block if last else block.index_select(0, getattr(self, f"kept_{l}"))
            out[getattr(self, f"at_{l}"), l * l : (l + 1) ** 2] = kept
        return out.flatten(0, 1).t().contiguous().view(edges, self.rows, size)


class SphereGrid(nn.Module):
    """Values on a sphere grid from coefficients, and back: matrices (P, K) and (K, P), K = (lmax + 1)^2.

    ``rings`` latitudes x 2 rings longitudes. Harmonics up to lmax come back exactly if rings > lmax; the
    more rings, the less a point-wise non-linearity aliases.
    """

    def __init__(self, lmax: int, rings: int):
        super().__init__()
        points, weight = quadrature(rings)
        y = harmonics(points, lmax)  # (P, K)
        self.register_buffer("to_grid", torch.tensor(y), persistent=False)
        self.register_buffer("from_grid", torch.tensor((y * weight[:, None]).T.copy()), persistent=False)
