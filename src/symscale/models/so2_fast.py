"""``so2.message`` for constant frames (direct forces), faster and in less memory; no second derivatives.

On a CPU edges go through in blocks, whose intermediate results lie in the same few buffers every time and so stay in
cache; a GPU takes all edges as one block. Only what the rotations give, x, and what the first convolution gives, u,
is kept for the backward pass, which computes the cheap rest again.

All heavy work is products that the FLOP counter sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from symscale.models.common import reads_values
from symscale.models.so2 import Edges, Layout, complex_matrix

CPU_BLOCK = 2**19  # features of a block's edges: with fewer, calls cost more than the cache saves
GAUSS = 2**12  # entries of a real matrix: from there on three products are faster than four
aten = torch.ops.aten


def message(layout: Layout, edges: Edges, h: Tensor, hidden: Tensor, weights: list[Tensor]) -> Tensor:
    """As ``so2.message``; no gradient for ``edges``."""
    return _Message.apply(layout, edges, h, hidden, layout.both_signs(weights[0]), *weights[1:])


class _Message(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layout, edges, h, hidden, radial, *weights):
        (_, coefficients, channels), columns = h.shape, layout.columns(2 * h.shape[2])
        first, second = _convolutions(layout, weights)
        radial_t = radial.t().contiguous()
        out, kept, buffers = torch.zeros_like(h), [], _Buffers(h)
        for block in _blocks(edges, hidden, len(radial)):
            n = len(block.src)
            ends = buffers("ends", n, coefficients, 2 * channels)
            torch.index_select(h.flatten(0, 1), 0, block.ends.flatten(), out=ends.view(-1, channels))
            x = h.new_empty(n, len(radial))
            u = _Orders(h.new_empty(n * sum(layout.first_outputs)), n, layout.first_outputs, False)
            torch.bmm(block.wigner, ends, out=x.unflatten(1, (layout.rows, -1)))
            inputs = buffers.orders("inputs", n, columns, True)
            torch.mm(block.hidden, radial_t, out=inputs.all).mul_(x)
            first.apply(inputs, u, buffers)
            act, _ = _gate(layout, u, buffers)
            v = buffers.orders("v", n, layout.columns(channels), True)
            second.apply(act, v, buffers)
            y = buffers("y", n, coefficients, channels)
            torch.bmm(block.back.transpose(1, 2), v.all.unflatten(1, (layout.rows, -1)), out=y)
            out.index_add_(0, block.dst, y)
            kept += [x, u.all]
        ctx.save_for_backward(h, hidden, radial, *weights, *kept)
        ctx.layout, ctx.edges, ctx.weights = layout, edges, len(weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        layout, edges = ctx.layout, ctx.edges
        h, hidden, radial, *saved = ctx.saved_tensors
        weights, kept = saved[: ctx.weights], saved[ctx.weights :]
        (atoms, coefficients, channels), columns = h.shape, layout.columns(2 * h.shape[2])
        first, second = _convolutions(layout, weights)
        # transposed, so that the long side is the one that products like long
        d_hidden, d_radial = hidden.new_empty(hidden.shape[::-1]), radial.new_zeros(radial.shape[::-1])
        radial_t = radial.t().contiguous()
        d_hidden_blocks = d_hidden.split(_block_size(hidden, len(radial)), 1)
        d_source, d_target = h.new_zeros(2, atoms, coefficients, 2 * channels)
        buffers = _Buffers(h)
        for i, block in enumerate(_blocks(edges, hidden, len(radial))):
            n = len(block.src)
            x, u = kept[2 * i], _Orders(kept[2 * i + 1], n, layout.first_outputs, False)
            dy = torch.index_select(grad, 0, block.dst, out=buffers("y", n, coefficients, channels))
            dv = buffers.orders("v", n, layout.columns(channels), True)
            torch.bmm(block.back, dy, out=dv.all.unflatten(1, (layout.rows, -1)))
            act, squashed = _gate(layout, u, buffers)
            d_act = buffers.orders("d_act", n, layout.columns(layout.hidden), False)
            second.backward(dv, act, d_act, buffers)
            du = _gate_backward(layout, u, squashed, d_act, buffers)
            r = torch.mm(block.hidden, radial_t, out=buffers("r", n, len(radial)))
            inputs, dx = buffers.orders("inputs", n, columns, True), buffers.orders("dx", n, columns, True)
            torch.mul(x, r, out=inputs.all)
            first.backward(du, inputs, dx, buffers)
            dr = torch.mul(x, dx.all, out=inputs.all)
            d_radial.addmm_(block.hidden.t(), dr)
            torch.mm(radial.t(), dr.t(), out=d_hidden_blocks[i])
            d_ends = buffers("ends", n, coefficients, 2 * channels)
            torch.bmm(
                block.wigner.transpose(1, 2), dx.all.mul_(r).unflatten(1, (layout.rows, -1)), out=d_ends
            )
            d_source.index_add_(0, block.src, d_ends)
            d_target.index_add_(0, block.dst, d_ends)
        d_h = d_source[..., :channels] + d_target[..., channels:]
        return None, None, d_h, d_hidden.t(), d_radial.t(), *first.gradients(), *second.gradients()


class _Orders:
    """Features of n edges in one piece of memory, and views of it (n, c) for every |m|, +m before -m.

    ``by_edge``: all of an edge side by side, (n, columns), as rotations want it. Otherwise every view is in one
    piece, which element-wise work likes best.
    """

    def __init__(self, memory: Tensor, n: int, columns: list[int], by_edge: bool):
        self.all = memory
        if by_edge:
            self.orders = memory.split(columns, 1)
        else:
            parts = memory.split([n * c for c in columns])
            self.orders = [part.view(n, c) for part, c in zip(parts, columns, strict=True)]
        self.m0 = self.orders[0]
        self.pairs = [part.chunk(2, 1) for part in self.orders[1:]]


class _Buffers:
    """Places for intermediate results, made at their first use and given again to every block."""

    def __init__(self, like: Tensor):
        self.like, self.made = like, {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        if (name, shape) not in self.made:
            self.made[name, shape] = self.like.new_empty(shape)
        return self.made[name, shape]

    def orders(self, name: str, n: int, columns: list[int], by_edge: bool) -> _Orders:
        if (name, n) not in self.made:
            shape = (n, sum(columns)) if by_edge else (n * sum(columns),)
            self.made[name, n] = _Orders(self.like.new_empty(shape), n, columns, by_edge)
        return self.made[name, n]


class _Convolution:
    """An SO(2) convolution: a bias and a matrix (out, in) for m = 0, for every m > 0 the rows W_r, W_i.

    Orders +m and -m are a complex number (eq. 22). Where that is faster, its product takes three real ones in place
    of four (Gauss): x W = [t W_r - x_i (W_r + W_i)] + i [t W_r - x_r (W_r - W_i)] with t = x_r + x_i. FLOPs are
    counted as four (``in_given_order``).
    """

    def __init__(self, bias: Tensor, real: Tensor, *pairs: Tensor):
        self.bias, self.matrices = bias, [real, *(complex_matrix(w) for w in pairs)]
        self.gauss = [None]
        for w in pairs:
            w_r, w_i = w.chunk(2)
            # a GPU is held up by the element-wise work, and so are small products
            worth = reads_values(w) and w_r.numel() >= GAUSS
            self.gauss.append((w_r, w_r + w_i, w_r - w_i) if worth else None)
        # (in, out): products of many rows are fastest with both operands as they lie
        self.matrices_t = [w.t().contiguous() for w in self.matrices]
        self.gauss_t = [three and [w.t().contiguous() for w in three] for three in self.gauss]
        # gradients, summed over blocks
        self.d_bias, self.d_matrices = torch.zeros_like(bias), [torch.zeros_like(w) for w in self.matrices]

    def apply(self, x: _Orders, out: _Orders, buffers: _Buffers) -> None:
        for m, (x_m, w, three, out_m) in enumerate(
            zip(x.orders, self.matrices_t, self.gauss_t, out.orders, strict=True)
        ):
            if m == 0:
                torch.addmm(self.bias, x_m, w, out=out_m)
            elif three is None:
                torch.mm(x_m, w, out=out_m)
            else:
                (real, plus, minus), (x_r, x_i), (out_r, out_i) = three, x.pairs[m - 1], out.pairs[m - 1]
                torch.mm(torch.add(x_r, x_i, out=buffers("total", *x_r.shape)), real, out=out_r)
                out_i.copy_(out_r)
                out_r.addmm_(x_i, plus, alpha=-1)
                out_i.addmm_(x_r, minus, alpha=-1)

    def backward(self, g: _Orders, x: _Orders, d_x: _Orders, buffers: _Buffers) -> None:
        """Gradients of x into ``d_x``; those of the weights are added up.

        With D = g_r - g_i that of x is [D W_r + g_i (W_r + W_i)] + i [g_r (W_r - W_i) - D W_r], and that of W
        [g_r x_r + g_i x_i] + i [g_r x_r - g_i x_i - D t]; these three products are put where ``complex_matrix`` has
        W_r, W_r and W_i, and ``gradients`` combines them.
        """
        self.d_bias += g.m0.sum(0)
        parts = zip(self.matrices, self.gauss, self.d_matrices, g.orders, x.orders, d_x.orders, strict=True)
        for m, (w, three, d_w, g_m, x_m, d_m) in enumerate(parts):
            if three is None:
                d_w.addmm_(g_m.t(), x_m)
                torch.mm(g_m, w, out=d_m)
                continue
            (real, plus, minus), (g_r, g_i) = three, g.pairs[m - 1]
            (x_r, x_i), (d_r, d_i) = x.pairs[m - 1], d_x.pairs[m - 1]
            total = torch.add(x_r, x_i, out=buffers("total", *x_r.shape))
            difference = torch.sub(g_r, g_i, out=buffers("difference", *g_r.shape))
            (d_rr, _), (d_dt, d_ii) = (half.chunk(2, 1) for half in d_w.chunk(2))
            d_rr.addmm_(g_r.t(), x_r)
            d_ii.addmm_(g_i.t(), x_i)
            d_dt.addmm_(difference.t(), total)
            torch.mm(difference, real, out=d_r)
            torch.neg(d_r, out=d_i)
            d_r.addmm_(g_i, plus)
            d_i.addmm_(g_r, minus)

    def gradients(self) -> list[Tensor]:
        real, *pairs = self.d_matrices
        found = [self.d_bias, real]
        for d_w, three in zip(pairs, self.gauss[1:], strict=True):
            (rr, ri), (ir, ii) = (half.chunk(2, 1) for half in d_w.chunk(2))
            found.append(torch.cat([rr + ii, ir - ri if three is None else rr - ii - ir]))
        return found


def _convolutions(layout: Layout, weights: tuple[Tensor, ...]) -> tuple[_Convolution, _Convolution]:
    orders = layout.mmax + 1
    return _Convolution(*weights[: orders + 1]), _Convolution(*weights[orders + 1 :])


def _gate(layout: Layout, u: _Orders, buffers: _Buffers) -> tuple[_Orders, Tensor]:
    """What the second convolution takes, and the sigmoids of scalars and gates, which begin (n, ...)."""
    n, size, stop = len(u.m0), layout.hidden, layout.hidden + layout.gates
    act = buffers.orders("act", n, layout.columns(size), False)
    # of all columns: element-wise work on a run of them takes longer
    squashed = torch.sigmoid(u.m0, out=buffers("squashed", *u.m0.shape))
    gates = squashed[:, size:stop]
    torch.mul(u.m0[:, :size], squashed[:, :size], out=act.m0[:, :size])  # SiLU
    torch.mul(u.m0[:, stop:], gates, out=act.m0[:, size:])
    for m, (pair, act_pair) in enumerate(zip(u.pairs, act.pairs, strict=True)):
        for u_m, act_m in zip(pair, act_pair, strict=True):
            torch.mul(u_m, gates[:, m * size :], out=act_m)
    return act, squashed


def _gate_backward(
    layout: Layout, u: _Orders, squashed: Tensor, d_act: _Orders, buffers: _Buffers
) -> _Orders:
    """Gradient of u from that of ``_gate``'s result, which it overwrites."""
    n, size, stop = len(u.m0), layout.hidden, layout.hidden + layout.gates
    gates, du = squashed[:, size:stop], buffers.orders("du", n, layout.first_outputs, False)
    torch.mul(d_act.m0[:, size:], gates, out=du.m0[:, stop:])
    d_gates = d_act.m0[:, size:].mul_(u.m0[:, stop:])
    for m, (pair, d_pair, du_pair) in enumerate(zip(u.pairs, d_act.pairs, du.pairs, strict=True)):
        for u_m, d_m, du_m in zip(pair, d_pair, du_pair, strict=True):
            d_gates[:, m * size :].addcmul_(u_m, d_m)
            torch.mul(d_m, gates[:, m * size :], out=du_m)
    aten.silu_backward.grad_input(d_act.m0[:, :size], u.m0[:, :size], grad_input=du.m0[:, :size])
    aten.sigmoid_backward.grad_input(d_gates, gates, grad_input=du.m0[:, size:stop])
    return du


@dataclass(frozen=True)
class _Block:
    """A run of n edges: views of what belongs to them."""

    src: Tensor
    dst: Tensor
    wigner: Tensor
    back: Tensor
    ends: Tensor
    hidden: Tensor


def _block_size(hidden: Tensor, features: int) -> int:
    """Edges of a block, of which every one has so many features."""
    if hidden.device.type != "cpu":
        return max(len(hidden), 1)
    return min(max(CPU_BLOCK // features, 512), 2048)


def _blocks(edges: Edges, hidden: Tensor, features: int) -> Iterator[_Block]:
    size = _block_size(hidden, features)
    tensors = (edges.src, edges.dst, edges.wigner, edges.back, edges.ends, hidden)
    return (_Block(*parts) for parts in zip(*(t.split(size) for t in tensors), strict=True))
