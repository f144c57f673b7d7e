"""``so2.message`` for constant frames (direct forces): the same products, faster and in less memory.

On a CPU edges go through in blocks, so that what one product writes is still in cache when the next one reads it; a
GPU takes all edges as one block. What is in an edge's frame, x before and v after the convolutions, has a row per
edge, as the batched rotations want it. What lies between the convolutions, u and act, has a *column* per edge: an
order m or the gates are whole rows, and element-wise work runs along the edges. The products turn one into the
other, for they read an operand transposed at no cost. Only x and u are kept for the backward pass, which computes
the cheap rest again. All heavy work is products that the FLOP counter sees. No second derivatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from symscale.models.so2 import Edges, Layout

CPU_BLOCK = 1024  # edges: fewer, and the calls cost more than the cache saves


def message(layout: Layout, edges: Edges, h: Tensor, hidden: Tensor, weights: list[Tensor]) -> Tensor:
    """As ``so2.message``; no gradient for ``edges``."""
    return _Message.apply(layout, edges, h, hidden, *weights)


class _Message(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layout, edges, h, hidden, *weights):
        radial, first, second = _by_convolution(layout, weights)
        columns, out_columns = layout.columns(2 * h.shape[2]), layout.columns(h.shape[2])
        out, kept = torch.zeros_like(h), []
        for block in _blocks(edges, hidden):
            x = block.rotate_in(h)  # (n, R * 2C)
            scaled = x * (block.hidden @ radial.t())
            u = h.new_empty(sum(layout.first_outputs), len(x))
            parts = zip(first, scaled.split(columns, 1), u.split(layout.first_outputs), strict=True)
            for m, (w, scaled_m, u_m) in enumerate(parts):
                if m == 0:
                    torch.addmm(w[:, -1:], w[:, :-1], scaled_m.t(), out=u_m)
                else:
                    torch.mm(w, scaled_m.t(), out=u_m)
            v = h.new_empty(len(x), sum(out_columns))
            for w, act_m, v_m in zip(second, _gate(layout, u), v.split(out_columns, 1), strict=True):
                torch.mm(act_m.t(), w.t(), out=v_m)
            y = torch.bmm(block.back.transpose(1, 2), v.unflatten(1, (layout.rows, -1)))  # (n, K, C)
            out.index_add_(0, block.dst, y)
            kept += [x, u]
        ctx.save_for_backward(h, hidden, *weights, *kept)
        ctx.layout, ctx.edges, ctx.weights = layout, edges, len(weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        layout, edges = ctx.layout, ctx.edges
        h, hidden, *saved = ctx.saved_tensors
        weights, kept = saved[: ctx.weights], saved[ctx.weights :]
        radial, first, second = _by_convolution(layout, weights)
        columns, out_columns = layout.columns(2 * h.shape[2]), layout.columns(h.shape[2])
        # transposed, so that the long side is the one that products like long
        d_hidden, d_radial = hidden.new_empty(hidden.shape[::-1]), radial.new_zeros(radial.shape[::-1])
        d_first, d_second = [w.new_zeros(w.shape[::-1]) for w in first], [torch.zeros_like(w) for w in second]
        d_source, d_target = (h.new_zeros(*h.shape[:2], 2 * h.shape[2]) for _ in range(2))
        d_hidden_blocks = d_hidden.split(_block_size(hidden), 1)
        for i, block in enumerate(_blocks(edges, hidden)):
            x, u = kept[2 * i : 2 * i + 2]
            dv = torch.bmm(block.back, grad.index_select(0, block.dst)).flatten(1).split(out_columns, 1)
            d_act = []
            for w, d_w, act_m, dv_m in zip(second, d_second, _gate(layout, u), dv, strict=True):
                torch.addmm(d_w, dv_m.t(), act_m.t(), out=d_w)
                d_act.append(w.t() @ dv_m.t())
            r = block.hidden @ radial.t()  # (n, R * 2C)
            dx = torch.empty_like(x)
            parts = zip((x * r).split(columns, 1), dx.split(columns, 1), strict=True)
            for m, (du_m, (scaled_m, dx_m)) in enumerate(
                zip(_gate_backward(layout, u, d_act), parts, strict=True)
            ):
                inputs = scaled_m.shape[1]  # all columns of the weight but the bias
                d_w = d_first[m][:inputs]
                torch.addmm(d_w, scaled_m.t(), du_m.t(), out=d_w)
                torch.mm(du_m.t(), first[m][:, :inputs], out=dx_m)
                if m == 0:
                    d_first[0][-1] += du_m.sum(1)
            dr = x * dx
            torch.addmm(d_radial, block.hidden.t(), dr, out=d_radial)
            torch.mm(radial.t(), dr.t(), out=d_hidden_blocks[i])
            dx = dx.mul_(r).unflatten(1, (layout.rows, -1))
            d_ends = torch.bmm(block.wigner.transpose(1, 2), dx)  # (n, K, 2C)
            d_source.index_add_(0, block.src, d_ends)
            d_target.index_add_(0, block.dst, d_ends)
        d_h = d_source[..., : h.shape[2]] + d_target[..., h.shape[2] :]
        return None, None, d_h, d_hidden.t(), d_radial.t(), *(d.t() for d in d_first), *d_second


def _gate(layout: Layout, u: Tensor) -> list[Tensor]:
    """What the second convolution takes for every |m|, (columns, n); that of m = 0 ends with ones for the bias."""
    size, stop = layout.hidden, layout.hidden + layout.gates
    u0, *others = u.split(layout.first_outputs)
    squashed = torch.sigmoid(u0[:stop])
    gates = squashed[size:]
    act0 = u.new_ones(stop + 1, u.shape[1])
    torch.mul(u0[:size], squashed[:size], out=act0[:size])  # SiLU
    torch.mul(u0[stop:], gates, out=act0[size:-1])
    pairs = (u_m.unflatten(0, (2, -1)) * gates[m * size :] for m, u_m in enumerate(others))
    return [act0, *(pair.flatten(0, 1) for pair in pairs)]


def _gate_backward(layout: Layout, u: Tensor, d_act: list[Tensor]) -> list[Tensor]:
    """Gradient of u for every |m| from those of ``_gate``'s results, which it overwrites."""
    size, stop, aten = layout.hidden, layout.hidden + layout.gates, torch.ops.aten
    (u0, *others), (d_act0, *d_others) = u.split(layout.first_outputs), d_act
    gates = torch.sigmoid(u0[size:stop])
    du0 = torch.empty_like(u0)
    torch.mul(d_act0[size:-1], gates, out=du0[stop:])
    d_gates = d_act0[size:-1].mul_(u0[stop:])
    for m, (u_m, d_m) in enumerate(zip(others, d_others, strict=True)):
        for sign, d_sign in zip(u_m.chunk(2), d_m.chunk(2), strict=True):
            d_gates[m * size :].addcmul_(sign, d_sign)
        d_m.unflatten(0, (2, -1)).mul_(gates[m * size :])
    aten.silu_backward.grad_input(d_act0[:size], u0[:size], grad_input=du0[:size])
    aten.sigmoid_backward.grad_input(d_gates, gates, grad_input=du0[size:stop])
    return [du0, *d_others]


@dataclass(frozen=True)
class _Block:
    """A run of n edges: views of what belongs to them."""

    src: Tensor
    dst: Tensor
    wigner: Tensor
    back: Tensor
    ends: Tensor
    hidden: Tensor

    def rotate_in(self, h: Tensor) -> Tensor:
        """Features of both ends in the edge's frame, (n, R * 2C)."""
        ends = h.flatten(0, 1).index_select(0, self.ends.flatten())
        return torch.bmm(self.wigner, ends.view(-1, h.shape[1], 2 * h.shape[2])).flatten(1)


def _block_size(hidden: Tensor) -> int:
    return CPU_BLOCK if hidden.device.type == "cpu" else max(len(hidden), 1)


def _blocks(edges: Edges, hidden: Tensor) -> Iterator[_Block]:
    size = _block_size(hidden)
    tensors = (edges.src, edges.dst, edges.wigner, edges.back, edges.ends, hidden)
    return (_Block(*parts) for parts in zip(*(t.split(size) for t in tensors), strict=True))


def _by_convolution(layout: Layout, weights: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The radial Linear's matrix, then for each convolution one for every |m|."""
    radial, *matrices = (w.detach() for w in weights)
    return radial, matrices[: layout.mmax + 1], matrices[layout.mmax + 1 :]
