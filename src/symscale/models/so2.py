"""Message passing in edge-aligned frames: eSEN's pair of SO(2) convolutions.

For the edge u -> v: rotate h_u and h_v into the edge's frame, keep |m| <= mmax, multiply by radial weights,
convolve (eqs. 20-22), gate, convolve, multiply by the envelope, rotate back and sum at v. Features in the
edge frame are m-major (so3.py), so that a convolution is one matrix product per |m| on a run of columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from symscale.models.common import scatter_sum


@dataclass(frozen=True)
class Layout:
    """Where things are: K = (lmax + 1)^2 coefficients, of which an edge frame keeps R = ``rows``."""

    lmax: int
    mmax: int
    hidden: int  # H

    def degrees(self, m: int) -> int:
        """Number of degrees l that have an order m."""
        return self.lmax + 1 - m

    @property
    def rows(self) -> int:
        return sum(self.degrees(m) * (2 if m else 1) for m in range(self.mmax + 1))

    @property
    def radial_rows(self) -> int:
        return sum(self.degrees(m) for m in range(self.mmax + 1))

    def split(self, x: Tensor, width: int, gates: bool = False) -> list[Tensor]:
        """Views of x (n, R * width), one for every |m|: (n, 1 or 2, degrees(m) * width).

        With ``gates`` the columns of m = 0 are followed by those of the gates, lmax * width, which come last.
        """
        sizes = [self.degrees(m) * width * (2 if m else 1) for m in range(self.mmax + 1)]
        if gates:
            sizes.insert(1, self.lmax * width)
        parts = list(x.split(sizes, 1))
        if gates:
            parts.append(parts.pop(1))
        return [part.unflatten(1, (2 if 0 < m <= self.mmax else 1, -1)) for m, part in enumerate(parts)]

    def split_radial(self, r: Tensor, width: int) -> list[Tensor]:
        """Views of r (n, radial_rows * width), one for every |m|: (n, 1, degrees(m) * width)."""
        sizes = [self.degrees(m) * width for m in range(self.mmax + 1)]
        return [part.unsqueeze(1) for part in r.split(sizes, 1)]


@dataclass(frozen=True)
class Edges:
    """What all layers share. ``wigner`` and ``envelope`` may carry gradients with respect to positions."""

    src: Tensor  # (E,)
    dst: Tensor  # (E,)
    wigner: Tensor  # (E, R, K)
    envelope: Tensor  # (E,)


def complex_matrix(weight: Tensor) -> Tensor:
    """eq. (22) as one real matrix: rows w_r, w_i, (2 out, in) -> [[w_r, -w_i], [w_i, w_r]], (2 out, 2 in)."""
    real, imag = weight.chunk(2)
    return torch.cat([torch.cat([real, -imag], 1), torch.cat([imag, real], 1)])


def message(layout: Layout, edges: Edges, h, hidden, radial, first, second) -> Tensor:
    """Sum of the messages at every node, in plain differentiable steps: (N, K, C).

    h (N, K, C) node features; hidden (E, c) and radial, a pair (weight, bias), give the radial weights
    (E, radial_rows * 2C); first and second are lists: the bias of m = 0, then a matrix for every |m|.
    """
    x = torch.cat([h.index_select(0, edges.src), h.index_select(0, edges.dst)], -1)  # (E, K, 2C)
    x = torch.bmm(edges.wigner, x)  # (E, R, 2C)
    r = F.linear(hidden, *radial)  # (E, radial_rows * 2C)
    width = x.shape[-1]
    parts = zip(layout.split(x.flatten(1), width), layout.split_radial(r, width), strict=True)
    u = _convolve([(a * b).flatten(1) for a, b in parts], first)  # (E, (R + lmax) * H)
    *parts, gates = layout.split(u, layout.hidden, gates=True)
    gates = gates.sigmoid()
    scalars, others = parts[0].split([layout.hidden, layout.lmax * layout.hidden], -1)
    acted = [torch.cat([F.silu(scalars), others * gates], -1)]
    acted += [part * gates[..., (m - 1) * layout.hidden :] for m, part in enumerate(parts[1:], 1)]
    v = _convolve([part.flatten(1) for part in acted], second)  # (E, R * C)
    y = torch.bmm(edges.wigner.transpose(1, 2), v.view(v.shape[0], layout.rows, -1))  # (E, K, C)
    return scatter_sum(y * edges.envelope[:, None, None], edges.dst, h.shape[0])


def _convolve(parts: list[Tensor], weights: list[Tensor]) -> Tensor:
    bias, zero, *others = weights
    out = [torch.addmm(bias, parts[0], zero.t())]
    out += [x @ w.t() for x, w in zip(parts[1:], others, strict=True)]
    return torch.cat(out, 1)
