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

    def columns(self, width: int) -> list[int]:
        """Number of columns of every |m| in (n, R * width); those of +m come before those of -m."""
        return [k * width * (2 if m else 1) for m, k in enumerate(self.degrees)]

    def both_signs(self, per_order: Tensor) -> Tensor:
        """Rows for every |m| and l, (sum(degrees) * c, ...), repeated for +m and -m: (R * c, ...), m-major."""
        each = per_order.unflatten(0, (sum(self.degrees), -1)).split(self.degrees)
        return torch.cat([each[0], *(part for part in each[1:] for _ in range(2))]).flatten(0, 1)

    @property
    def first_outputs(self) -> list[int]:
        """Outputs of the first convolution for every |m|; for m = 0 H scalars, gates, then the degrees l > 0."""
        first, *others = self.columns(self.hidden)
        return [first + self.gates, *others]


@dataclass(frozen=True)
class Edges:
    """What all layers share. The matrices may carry gradients with respect to positions."""

    src: Tensor  # (E,)
    dst: Tensor  # (E,)
    wigner: Tensor  # (E, R, K), into the edge's frame
    back: Tensor  # (E, R, K), its transpose leads back; includes the envelope
    ends: Tensor  # (E, K * 2), where coefficient k of u and of v is in h.view(N * K, C)


def make_edges(src: Tensor, dst: Tensor, wigner: Tensor, envelope: Tensor) -> Edges:
    size = wigner.shape[2]
    ends = torch.stack([src, dst], 1)[:, None] * size + torch.arange(size, device=src.device)[:, None]
    return Edges(src, dst, wigner, wigner * envelope[:, None, None], ends.flatten(1))


def complex_matrix(weight: Tensor) -> Tensor:
    """eq. (22) as one real matrix: rows w_r, w_i, (2 out, in) -> [[w_r, -w_i], [w_i, w_r]], (2 out, 2 in)."""
    real, imag = weight.chunk(2)
    return torch.cat([torch.cat([real, -imag], 1), torch.cat([imag, real], 1)])


def message(layout: Layout, edges: Edges, h: Tensor, hidden: Tensor, weights: list[Tensor]) -> Tensor:
    """Sum of the messages at every node, (N, K, C), from node features h (N, K, C).

    hidden (E, c) is the input of the radial Linear. ``weights``: the radial Linear's (sum(degrees) * 2C, c), then for
    each convolution the bias of m = 0 and one matrix for every |m|, those of m > 0 as rows w_r, w_i of eq. (22).
    """
    w_radial, *convolutions = weights
    orders, (coefficients, channels), size = layout.mmax + 2, h.shape[1:], layout.hidden
    (bias1, *first), (bias2, *second) = convolutions[:orders], convolutions[orders:]
    x = h.flatten(0, 1).index_select(0, edges.ends.flatten()).view(-1, coefficients, 2 * channels)
    x = torch.bmm(edges.wigner, x).flatten(1) * (hidden @ layout.both_signs(w_radial).t())  # (E, R * 2C)
    v = []
    for m, x_m in enumerate(x.split(layout.columns(2 * channels), 1)):
        if m == 0:
            scalars, gates, u = F.linear(x_m, first[0], bias1).split([size, layout.gates, layout.gates], 1)
            gates = gates.sigmoid()
            v.append(F.linear(torch.cat([F.silu(scalars), u * gates], 1), second[0], bias2))
        else:  # +m and -m share gates
            u = F.linear(x_m, complex_matrix(first[m])).unflatten(1, (2, -1))
            u = (u * gates[:, None, (m - 1) * size :]).flatten(1)
            v.append(F.linear(u, complex_matrix(second[m])))
    v = torch.cat(v, 1).unflatten(1, (layout.rows, -1))  # (E, R, C)
    return scatter_sum(torch.bmm(edges.back.transpose(1, 2), v), edges.dst, h.shape[0])
