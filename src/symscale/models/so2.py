"""Message passing in edge-aligned frames: eSEN's pair of SO(2) convolutions.

For the edge u -> v: rotate h_u and h_v into the edge's frame, keep |m| <= mmax, multiply by radial weights,
convolve (eqs. 20-22), gate, convolve, multiply by the envelope, rotate back and sum at v. Features in the
edge frame are m-major (so3.py), so that a convolution is one matrix product per |m| on a run of columns.

Everything here is differentiable, also twice and also with respect to positions; so2_fast.py computes the same
for constant frames, faster and with less memory.
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

    @property
    def degrees(self) -> list[int]:
        """How many degrees l have an order m, for m = 0 ... mmax."""
        return [self.lmax + 1 - m for m in range(self.mmax + 1)]

    @property
    def rows(self) -> int:
        return 2 * sum(self.degrees) - self.degrees[0]

    @property
    def gates(self) -> int:
        return self.lmax * self.hidden

    def columns(self, x: Tensor, extra: int = 0) -> list[Tensor]:
        """Views of x (n, R * width + extra), one for every |m|; m = 0 has the ``extra`` columns."""
        width = (x.shape[1] - extra) // self.rows
        first, *others = [k * width for k in self.degrees]
        return list(x.split([first + extra, *(2 * size for size in others)], 1))

    def gated(self, x: Tensor, start: int) -> list[Tensor]:
        """Views of x from column ``start``, (n, copies, columns): what shares gates 0: (l > 0 of m = 0 and
        +-1), then H: (m = +-2), 2H: (m = +-3) and so on.
        """
        copies = [3 if self.mmax else 1] + [2] * (self.mmax - 1)
        sizes = [n * (self.lmax - i) * self.hidden for i, n in enumerate(copies)]
        parts = x[:, start:].split(sizes, 1)
        return [part.unflatten(1, (n, -1)) for part, n in zip(parts, copies, strict=True)]


@dataclass(frozen=True)
class Edges:
    """What all layers share. ``wigner`` and ``envelope`` may carry gradients with respect to positions."""

    src: Tensor  # (E,)
    dst: Tensor  # (E,)
    wigner: Tensor  # (E, R, K)
    envelope: Tensor  # (E,)
    ends: Tensor  # (E, K * 2), where coefficient k of u and of v is in h.view(N * K, C)


def make_edges(src: Tensor, dst: Tensor, wigner: Tensor, envelope: Tensor) -> Edges:
    size = wigner.shape[2]
    ends = torch.stack([src, dst], 1)[:, None] * size + torch.arange(size, device=src.device)[:, None]
    return Edges(src, dst, wigner, envelope, ends.flatten(1))


def complex_matrix(weight: Tensor) -> Tensor:
    """eq. (22) as one real matrix: rows w_r, w_i, (2 out, in) -> [[w_r, -w_i], [w_i, w_r]], (2 out, 2 in)."""
    real, imag = weight.chunk(2)
    return torch.cat([torch.cat([real, -imag], 1), torch.cat([imag, real], 1)])


def both_signs(layout: Layout, x: Tensor) -> Tensor:
    """Radial weights or biases, (sum(degrees) * width, ...), repeated for -m: (R * width, ...)."""
    width = len(x) // sum(layout.degrees)
    first, *others = x.split([k * width for k in layout.degrees])
    return torch.cat([first, *(part for part in others for _ in range(2))])


def message(layout: Layout, edges: Edges, h: Tensor, hidden: Tensor, weights: list[Tensor]) -> Tensor:
    """Sum of the messages at every node, (N, K, C), from node features h (N, K, C).

    hidden (E, c) is the input of the radial Linear. ``weights``: the radial Linear's weight and bias, the biases
    of m = 0 of both convolutions, then for each convolution one matrix for every |m|. The first convolution
    yields, for m = 0, H scalars, lmax * H gates and the degrees l > 0.
    """
    w_radial, b_radial, bias1, bias2, *matrices = weights
    orders, size, gates = len(matrices) // 2, layout.hidden, layout.gates
    coefficients, channels = h.shape[1:]
    x = h.flatten(0, 1).index_select(0, edges.ends.flatten()).view(-1, coefficients, 2 * channels)
    x = torch.bmm(edges.wigner, x).flatten(1) * F.linear(hidden, w_radial, b_radial)  # (E, R * 2C)
    biases = [bias1, *[None] * layout.mmax]
    u = [F.linear(*args) for args in zip(layout.columns(x), matrices[:orders], biases, strict=True)]
    u = torch.cat(u, 1)  # (E, R * H + gates)
    gate = u[:, size : size + gates].sigmoid()
    parts = [F.silu(u[:, :size])]
    for i, part in enumerate(layout.gated(u, size + gates)):
        parts.append((part * gate[:, None, i * size :]).flatten(1))
    v = layout.columns(torch.cat(parts, 1))
    biases[0] = bias2
    v = torch.cat(
        [F.linear(*args) for args in zip(v, matrices[orders:], biases, strict=True)], 1
    )  # (E, R * C)
    v = (v * edges.envelope[:, None]).unflatten(1, (layout.rows, -1))
    return scatter_sum(torch.bmm(edges.wigner.transpose(1, 2), v), edges.dst, h.shape[0])
