"""Message passing in edge-aligned frames: eSEN's pair of SO(2) convolutions.

For the edge u -> v: rotate h_u and h_v into the edge's frame, keep |m| <= mmax, multiply by radial weights,
convolve (eqs. 20-22), gate, convolve, multiply by the envelope, rotate back and sum at v. Features in the
edge frame are m-major (so3.py), so that a convolution is one matrix product per |m| on a run of columns.

``message`` is this in differentiable steps. ``fast_message`` computes the same on blocks of edges that stay in
a CPU's cache and keeps only the first convolution's output for its backward pass; it takes the frames as
constants and has no second derivatives, which is all that direct forces need.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from symscale.models.common import scatter_sum

CPU_BLOCK = 512  # edges; at C = 16, lmax 4, hidden 32 the tensors of a block are 1 to 2 MB each


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

    def columns(self, width: int, extra: int = 0) -> list[slice]:
        """The columns of every |m| in (n, R * width + extra); m = 0 has the ``extra`` ones at its end."""
        ends = [self.degrees[0] * width + extra]
        for k in self.degrees[1:]:
            ends.append(ends[-1] + 2 * k * width)
        return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    def radial_columns(self, width: int) -> list[slice]:
        """The columns of every |m| in (n, sum(degrees) * width): one radial weight serves +m and -m."""
        ends = [width * sum(self.degrees[: m + 1]) for m in range(self.mmax + 1)]
        return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class Edges:
    """What all layers share. ``wigner`` and ``envelope`` may carry gradients with respect to positions."""

    src: Tensor  # (E,)
    dst: Tensor  # (E,)
    wigner: Tensor  # (E, R, K)
    envelope: Tensor  # (E,)
    rows: Tensor  # (E, K, 2), where coefficient k of u and of v is in h.view(N * K, C)


def make_edges(src: Tensor, dst: Tensor, wigner: Tensor, envelope: Tensor) -> Edges:
    size = wigner.shape[2]
    rows = torch.stack([src, dst], 1)[:, None] * size + torch.arange(size, device=src.device)[:, None]
    return Edges(src, dst, wigner, envelope, rows)


def complex_matrix(weight: Tensor) -> Tensor:
    """eq. (22) as one real matrix: rows w_r, w_i, (2 out, in) -> [[w_r, -w_i], [w_i, w_r]], (2 out, 2 in)."""
    real, imag = weight.chunk(2)
    return torch.cat([torch.cat([real, -imag], 1), torch.cat([imag, real], 1)])


def message(layout: Layout, edges: Edges, h: Tensor, hidden: Tensor, weights: list[Tensor]) -> Tensor:
    """Sum of the messages at every node, (N, K, C), from node features h (N, K, C).

    hidden (E, c) is the input of the radial Linear. ``weights``: the radial Linear's weight and bias, the biases
    of m = 0 of both convolutions, then for each convolution one matrix for every |m|.
    """
    w_radial, b_radial, bias1, bias2, *matrices = weights
    orders = len(matrices) // 2
    width, size = 2 * h.shape[2], layout.hidden
    x = h.flatten(0, 1).index_select(0, edges.rows.flatten()).view(*edges.rows.shape[:2], width)  # (E, K, 2C)
    x = torch.bmm(edges.wigner, x).flatten(1)  # (E, R * 2C)
    r = F.linear(hidden, w_radial, b_radial)  # (E, sum(degrees) * 2C)
    u = []
    for m, (i, j) in enumerate(zip(layout.columns(width), layout.radial_columns(width), strict=True)):
        x_m = x[:, i] * torch.cat([r[:, j]] * (2 if m else 1), 1)
        u.append(F.linear(x_m, matrices[m], None if m else bias1))
    scalars, others, gates = u[0].split([size, layout.lmax * size, layout.lmax * size], 1)
    gates = gates.sigmoid()
    v = [F.linear(torch.cat([F.silu(scalars), others * gates], 1), matrices[orders], bias2)]
    for m in range(1, orders):
        gate = gates[:, (m - 1) * size :]
        v.append(F.linear(u[m] * torch.cat([gate, gate], 1), matrices[orders + m]))
    v = (torch.cat(v, 1) * edges.envelope[:, None]).unflatten(1, (layout.rows, -1))  # (E, R, C)
    return scatter_sum(torch.bmm(edges.wigner.transpose(1, 2), v), edges.dst, h.shape[0])


def fast_message(layout: Layout, edges: Edges, h: Tensor, hidden: Tensor, weights: list[Tensor]) -> Tensor:
    """``message`` without gradients for the frames: less memory, and about twice as fast on a CPU."""
    return _FastMessage.apply(layout, edges, h, hidden, *weights)


class _FastMessage(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layout, edges, h, hidden, *weights):
        w_radial, b_radial, bias1, bias2, *matrices = weights
        orders, gates = len(matrices) // 2, layout.lmax * layout.hidden
        kept = h.new_empty(len(hidden), layout.rows * layout.hidden + gates)  # the first convolution's output
        out = torch.zeros_like(h)
        for e in _blocks(hidden):
            x = _in_frame(edges, h, e).flatten(1)  # (n, R * 2C)
            _scale(layout, x, torch.addmm(b_radial, hidden[e], w_radial.t()))
            u = _convolve(layout, x, bias1, matrices[:orders], kept[e], gates)
            act, _ = _gate(layout, u)
            v = h.new_empty(len(u), layout.rows * h.shape[2])
            v = _convolve(layout, act, bias2, matrices[orders:], v).mul_(edges.envelope[e, None])
            y = torch.bmm(edges.wigner[e].transpose(1, 2), v.unflatten(1, (layout.rows, -1)))  # (n, K, C)
            out.index_add_(0, edges.dst[e], y)
        ctx.save_for_backward(h, hidden, kept, *weights)
        ctx.layout, ctx.edges = layout, edges
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        layout, edges = ctx.layout, ctx.edges
        h, hidden, kept, *weights = ctx.saved_tensors
        w_radial, b_radial, _, _, *matrices = weights
        orders, gates, channels = len(matrices) // 2, layout.lmax * layout.hidden, h.shape[2]
        d_h, d_hidden = torch.zeros_like(h), torch.empty_like(hidden)
        d_weights = [torch.zeros_like(w) for w in weights]
        d_w_radial, d_b_radial, d_bias1, d_bias2, *d_matrices = d_weights
        for e in _blocks(hidden):
            u = kept[e]
            dv = torch.bmm(edges.wigner[e], grad.index_select(0, edges.dst[e])).flatten(1)  # (n, R * C)
            dv.mul_(edges.envelope[e, None])
            act, gate = _gate(layout, u)
            d_act = _convolve_backward(layout, act, dv, matrices[orders:], d_bias2, d_matrices[orders:])
            du = _gate_backward(layout, u, gate, d_act)
            x = _in_frame(edges, h, e).flatten(1)  # (n, R * 2C)
            r = torch.addmm(b_radial, hidden[e], w_radial.t())
            scaled = _scale(layout, x.clone(), r)
            dx = _convolve_backward(
                layout, scaled, du, matrices[:orders], d_bias1, d_matrices[:orders], gates
            )
            dr = _scale_backward(layout, x, r, dx)
            torch.mm(dr, w_radial, out=d_hidden[e])
            d_w_radial.addmm_(dr.t(), hidden[e])
            d_b_radial.add_(dr.sum(0))
            _scale(layout, dx, r)
            dx = torch.bmm(edges.wigner[e].transpose(1, 2), dx.unflatten(1, (layout.rows, -1)))  # (n, K, 2C)
            d_h.index_add_(0, edges.src[e], dx[..., :channels].contiguous())
            d_h.index_add_(0, edges.dst[e], dx[..., channels:].contiguous())
        return None, None, d_h, d_hidden, *d_weights


def _blocks(hidden: Tensor) -> list[slice]:
    edges = len(hidden)
    block = CPU_BLOCK if hidden.device.type == "cpu" else max(edges, 1)
    return [slice(start, min(start + block, edges)) for start in range(0, edges, block)]


def _in_frame(edges: Edges, h: Tensor, e: slice) -> Tensor:
    """Features of both ends in the edge's frame: (n, R, 2C)."""
    rows = edges.rows[e]
    x = h.flatten(0, 1).index_select(0, rows.flatten()).view(*rows.shape[:2], -1)  # (n, K, 2C)
    return torch.bmm(edges.wigner[e], x)


def _scale(layout: Layout, x: Tensor, r: Tensor) -> Tensor:
    """Multiply x (n, R * 2C) in place by the radial weights r (n, sum(degrees) * 2C)."""
    width = x.shape[1] // layout.rows
    for m, (i, j) in enumerate(zip(layout.columns(width), layout.radial_columns(width), strict=True)):
        x[:, i].unflatten(1, (2 if m else 1, -1)).mul_(r[:, None, j])
    return x


def _scale_backward(layout: Layout, x: Tensor, r: Tensor, dx: Tensor) -> Tensor:
    """Gradient (n, sum(degrees) * 2C) of the radial weights."""
    width, out = x.shape[1] // layout.rows, torch.empty_like(r)
    product = x.mul_(dx)
    for m, (i, j) in enumerate(zip(layout.columns(width), layout.radial_columns(width), strict=True)):
        if m:
            plus, minus = product[:, i].chunk(2, 1)
            torch.add(plus, minus, out=out[:, j])
        else:
            out[:, j] = product[:, i]
    return out


def _convolve(layout, x: Tensor, bias: Tensor, matrices: list[Tensor], out: Tensor, extra: int = 0) -> Tensor:
    rows = layout.rows
    ins, outs = layout.columns(x.shape[1] // rows), layout.columns((out.shape[1] - extra) // rows, extra)
    torch.addmm(bias, x[:, ins[0]], matrices[0].t(), out=out[:, outs[0]])
    for m in range(1, len(matrices)):
        torch.mm(x[:, ins[m]], matrices[m].t(), out=out[:, outs[m]])
    return out


def _convolve_backward(layout, x, dy, matrices, d_bias, d_matrices, extra: int = 0) -> Tensor:
    """Gradient of the input; those of bias and matrices are added to d_bias and d_matrices."""
    rows, dx = layout.rows, torch.empty_like(x)
    ins, outs = layout.columns(x.shape[1] // rows), layout.columns((dy.shape[1] - extra) // rows, extra)
    d_bias.add_(dy[:, outs[0]].sum(0))
    for m, matrix in enumerate(matrices):
        dy_m = dy[:, outs[m]]
        d_matrices[m].addmm_(dy_m.t(), x[:, ins[m]])
        torch.mm(dy_m, matrix, out=dx[:, ins[m]])
    return dx


def _gate(layout: Layout, u: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU on scalars, sigmoid gates (one per degree and channel) on the rest: (n, R * H), (n, lmax * H)."""
    size, gates = layout.hidden, layout.lmax * layout.hidden
    ins, outs = layout.columns(size, gates), layout.columns(size)
    out, gate = u.new_empty(len(u), layout.rows * size), u[:, gates + size : ins[0].stop].sigmoid()
    torch.mul(u[:, :size], u[:, :size].sigmoid(), out=out[:, :size])
    torch.mul(u[:, size : gates + size], gate, out=out[:, size : gates + size])
    for m in range(1, layout.mmax + 1):
        pair = (2, -1)
        part = u[:, ins[m]].unflatten(1, pair)
        torch.mul(part, gate[:, None, (m - 1) * size :], out=out[:, outs[m]].unflatten(1, pair))
    return out, gate


def _gate_backward(layout: Layout, u: Tensor, gate: Tensor, d_out: Tensor) -> Tensor:
    size, gates = layout.hidden, layout.lmax * layout.hidden
    ins, outs = layout.columns(size, gates), layout.columns(size)
    du = torch.empty_like(u)
    scalars, others = slice(0, size), slice(size, size + gates)
    du[:, scalars] = torch.ops.aten.silu_backward(d_out[:, scalars], u[:, scalars])
    d_gate = u[:, others] * d_out[:, others]
    torch.mul(d_out[:, others], gate, out=du[:, others])
    for m in range(1, layout.mmax + 1):
        pair = (2, -1)
        part, d_part = u[:, ins[m]].unflatten(1, pair), d_out[:, outs[m]].unflatten(1, pair)
        d_gate[:, (m - 1) * size :] += (part * d_part).sum(1)
        torch.mul(d_part, gate[:, None, (m - 1) * size :], out=du[:, ins[m]].unflatten(1, pair))
    du[:, gates + size : ins[0].stop] = torch.ops.aten.sigmoid_backward(d_gate, gate)
    return du
