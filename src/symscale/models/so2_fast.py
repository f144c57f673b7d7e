"""``so2.message`` for constant frames (direct forces): the same arithmetic, faster and in a fraction of the memory.

Edges go through in blocks, and within a block every |m| by itself, so that what one product writes is still in a
CPU's cache when the next one reads it; buffers are allocated once. (A GPU takes all edges as one block.) Of the
intermediate results only the first convolution's output is kept for the backward pass, which computes the cheap rest
again. All heavy work is plain torch matrix products, so FLOP counters see it. No second derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from symscale.models.so2 import Edges, Layout

CPU_BLOCK = 20_000_000  # bytes that a block of edges takes in all


def message(layout: Layout, edges: Edges, h: Tensor, hidden: Tensor, weights: list[Tensor]) -> Tensor:
    """As ``so2.message``; no gradient for ``edges``."""
    return _Message.apply(layout, edges, h, hidden, *weights)


class _Message(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layout, edges, h, hidden, *weights):
        w_radial, *matrices = (w.detach() for w in weights)
        orders = layout.mmax + 1
        transposed = [w.t().contiguous() for w in matrices]  # MKL is faster on these
        w_radial = [w.t().contiguous() for w in _split_radial(layout, w_radial)]
        out, kept = torch.zeros_like(h), []
        for block, b in _blocks(layout, edges, h, hidden):
            b.rotate_in(h, block)
            for m in range(orders):
                torch.mm(block.hidden, w_radial[m], out=b.r[m])
                torch.mul(b.x_pairs[m], b.r_pairs[m], out=b.scaled_pairs[m])
                u = torch.mm(b.scaled[m], transposed[m])
                if m == 0:
                    b.gate_scalars(u)
                else:
                    torch.mul(u.unflatten(1, (2, -1)), b.shared[m], out=b.act_pairs[m])
                torch.mm(b.act[m], transposed[orders + m], out=b.v[m])
                kept.append(u)
            out.index_add_(0, block.dst, torch.bmm(block.back, b.v_rows, out=b.y))
        ctx.save_for_backward(h, hidden, *weights, *kept)
        ctx.layout, ctx.edges, ctx.weights = layout, edges, len(weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        layout, edges = ctx.layout, ctx.edges
        h, hidden, *saved = ctx.saved_tensors
        (w_radial, *matrices), kept = saved[: ctx.weights], saved[ctx.weights :]
        orders, size, gates, channels = layout.mmax + 1, layout.hidden, layout.gates, h.shape[2]
        d_hidden = torch.zeros_like(hidden)
        d_ends = [h.new_zeros(*h.shape[:2], 2 * channels) for _ in range(2)]  # by source, by target
        d_w_radial, *d_matrices = d_weights = [torch.zeros_like(w) for w in saved[: ctx.weights]]
        d_w_radial, w_radial = _split_radial(layout, d_w_radial), _split_radial(layout, w_radial)
        transposed = [w.t().contiguous() for w in w_radial]
        inputs = [w[:, :-1] if m in (0, orders) else w for m, w in enumerate(matrices)]  # without the biases
        for i, (block, b) in enumerate(_blocks(layout, edges, h, hidden, d_hidden)):
            torch.bmm(
                block.back.transpose(1, 2), torch.index_select(grad, 0, block.dst, out=b.y), out=b.v_rows
            )
            b.rotate_in(h, block)
            us = kept[i * orders : (i + 1) * orders]
            b.gate_scalars(us[0])
            d_gates = b.d_gates.zero_()
            for m in reversed(range(orders)):  # m = 0 last: it needs the gates' gradient of all others
                u, du, dv = us[m], b.du[m], b.v[m]
                if m == 0:
                    d_act = torch.mm(dv, inputs[orders], out=b.d_act0)
                    d_gates.addcmul_(u[:, size + gates :], d_act[:, size:])
                    torch.mul(d_act[:, size:], b.gates, out=du[:, size + gates :])
                    aten, scalars = torch.ops.aten, slice(0, size)
                    aten.silu_backward.grad_input(d_act[:, scalars], u[:, scalars], grad_input=du[:, scalars])
                    aten.sigmoid_backward.grad_input(d_gates, b.gates, grad_input=du[:, size : size + gates])
                else:
                    torch.mul(u.unflatten(1, (2, -1)), b.shared[m], out=b.act_pairs[m])
                    torch.mm(dv, inputs[orders + m], out=du)
                    for part, d_part in zip(u.chunk(2, 1), b.du_halves[m], strict=True):
                        b.d_shared[m].addcmul_(part, d_part)
                    b.du_pairs[m].mul_(b.shared[m])
                d_matrices[orders + m].addmm_(dv.t(), b.act[m])
                torch.mm(block.hidden, transposed[m], out=b.r[m])
                torch.mul(b.x_pairs[m], b.r_pairs[m], out=b.scaled_pairs[m])
                d_matrices[m].addmm_(du.t(), b.scaled[m])
                torch.mm(du, inputs[m], out=b.dx[m])
                dr = torch.mul(b.x_halves[m][0], b.dx_halves[m][0])
                if m:
                    dr.addcmul_(b.x_halves[m][1], b.dx_halves[m][1])
                d_w_radial[m].addmm_(dr.t(), block.hidden)
                block.d_hidden.addmm_(dr, w_radial[m])
                torch.mul(b.dx_pairs[m], b.r_pairs[m], out=b.x_pairs[m])
            torch.bmm(block.wigner.transpose(1, 2), b.x_rows, out=b.ends)
            d_ends[0].index_add_(0, block.src, b.ends)
            d_ends[1].index_add_(0, block.dst, b.ends)
        d_h = d_ends[0][..., :channels] + d_ends[1][..., channels:]
        return None, None, d_h, d_hidden, *d_weights


class _Buffers:
    """Room for n edges. Lists have one entry for every |m|; pairs are (n, 1 or 2, columns), +m and -m."""

    def __init__(self, layout: Layout, h: Tensor, n: int):
        (coefficients, channels), size, gates = h.shape[1:], layout.hidden, layout.gates
        columns, hidden_columns = layout.columns(2 * channels), layout.columns(size)

        def pairs(parts):
            return [part.unflatten(1, (2 if m else 1, -1)) for m, part in enumerate(parts)]

        def halves(parts):
            return [part.unbind(1) for part in pairs(parts)]

        def room(columns):  # the |m| take turns in one piece of memory
            memory = h.new_empty(n * max(columns))
            return [memory[: n * count].view(n, count) for count in columns]

        def room_and_one(columns):  # m = 0 ends with a column of ones, for the bias
            first, others = h.new_ones(n, columns[0] + 1), room(columns)[1:]
            return [first, *others], pairs([first[:, :-1], *others])

        self.size = size
        self.ends = h.new_empty(n, coefficients, 2 * channels)
        self.y = h.new_empty(n, coefficients, channels)
        x = h.new_empty(n, layout.rows * 2 * channels)
        self.x_rows = x.unflatten(1, (layout.rows, -1))
        self.x_pairs, self.x_halves = pairs(x.split(columns, 1)), halves(x.split(columns, 1))
        self.r = room([k * 2 * channels for k in layout.degrees])
        self.r_pairs = [r[:, None] for r in self.r]
        self.squashed = h.new_empty(n, size + gates)
        self.gates, self.d_gates = self.squashed[:, size:], h.new_empty(n, gates)
        self.shared = [None, *(self.gates[:, None, m * size :] for m in range(layout.mmax))]
        self.d_shared = [None, *(self.d_gates[:, m * size :] for m in range(layout.mmax))]
        self.scaled, self.scaled_pairs = room_and_one(columns)
        self.act, self.act_pairs = room_and_one(hidden_columns)
        self.dx, self.du = room(columns), room([size + 2 * gates, *hidden_columns[1:]])
        self.dx_pairs, self.dx_halves = pairs(self.dx), halves(self.dx)
        self.du_pairs, self.du_halves = pairs(self.du), [du.chunk(2, 1) for du in self.du]
        self.d_act0 = h.new_empty(n, size + gates)
        v = h.new_empty(n, layout.rows * channels)
        self.v, self.v_rows = v.split(layout.columns(channels), 1), v.unflatten(1, (layout.rows, -1))

    def rotate_in(self, h: Tensor, block: _Block) -> None:
        """x = features of both ends in the edge's frame, (n, R * 2C)."""
        channels = h.shape[2]
        torch.index_select(h.view(-1, channels), 0, block.ends, out=self.ends.view(-1, channels))
        torch.bmm(block.wigner, self.ends, out=self.x_rows)

    def gate_scalars(self, u: Tensor) -> None:
        """The gates, and act of m = 0: SiLU of the scalars, the gated degrees l > 0."""
        size, stop = self.size, self.squashed.shape[1]
        torch.sigmoid(u[:, :stop], out=self.squashed)
        torch.mul(u[:, :size], self.squashed[:, :size], out=self.act[0][:, :size])
        torch.mul(u[:, stop:], self.gates, out=self.act[0][:, size:-1])


class _Block:
    """A run of edges: views of what belongs to them."""

    def __init__(self, src, dst, wigner, back, ends, hidden, d_hidden=None):
        self.edges, self.src, self.dst, self.wigner = len(src), src, dst, wigner
        self.back, self.ends, self.hidden, self.d_hidden = (
            back.transpose(1, 2),
            ends.flatten(),
            hidden,
            d_hidden,
        )


def _blocks(layout: Layout, edges: Edges, h: Tensor, *per_edge: Tensor):
    """Pairs of a block, all alike but for the last, and its buffers."""
    count, buffers = len(edges.src), {}
    size = max(count, 1)
    if h.device.type == "cpu":
        room = layout.rows * (2 * h.shape[1] + 6 * h.shape[2] + 3 * layout.hidden) * h.element_size()
        size = -(-size // -(-size * room // CPU_BLOCK))
    tensors = (edges.src, edges.dst, edges.wigner, edges.back, edges.ends, *per_edge)
    for parts in zip(*(t.split(size) for t in tensors), strict=True) if count else ():
        block = _Block(*parts)
        if block.edges not in buffers:
            buffers[block.edges] = _Buffers(layout, h, block.edges)
        yield block, buffers[block.edges]


def _split_radial(layout: Layout, weight: Tensor) -> list[Tensor]:
    rows = len(weight) // sum(layout.degrees)
    return list(weight.split([k * rows for k in layout.degrees]))
