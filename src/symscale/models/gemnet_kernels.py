"""Row-wise and summing parts of GemNet-OC as autograd functions that keep little and stay in a CPU's cache.

Each states in ``plain`` what it computes; ``forward`` computes the same in blocks of rows (``row_blocks``; one block
on a GPU), and ``backward`` computes again from pre-activations what is cheap instead of having kept it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from symscale.models.common import row_blocks

ACT = 1 / 0.6  # scaled SiLU keeps unit variance
HALF = 1 / math.sqrt(2)
silu_backward = torch.ops.aten.silu_backward
silu_into, silu_backward_into = torch.ops.aten.silu.out, torch.ops.aten.silu_backward.grad_input


def block_buffer(x: Tensor, width: int, columns: int | None = None) -> Tensor:
    """Room for one block of ``row_blocks(x, width)``: written again for every block, it stays in cache."""
    return x.new_empty(row_blocks(x, width)[0].stop if x.shape[0] else 0, columns or width)


def columns(W: Tensor) -> Tensor:
    """W^T, stored as such: products with it are a few percent faster."""
    return W.t().contiguous()


class ResidualChain(torch.autograd.Function):
    """x -> SiLU(W2 ACT SiLU(W1 scale x)) + scale / ACT * x for every pair (W1, W2) of ``weights``.

    This is a residual layer's result divided by ACT / sqrt(2), which is the scale of its successor. Rows go through
    the whole chain in blocks. Pre-activations are kept, the rest is computed again in the backward pass.
    """

    @staticmethod
    def plain(v, scale, *weights):
        for factor, W1, W2 in _scaled(scale, weights):
            v = F.silu(F.linear(F.silu(F.linear(v, W1)), W2)) + factor * v
        return v

    @staticmethod
    def forward(ctx, v, scale, *weights):
        steps, z = _transposed(_scaled(scale, weights)), _like(v, len(weights))
        out, buffer = torch.empty_like(v), block_buffer(v, v.shape[1])
        for rows in row_blocks(v, v.shape[1]):
            _chain(steps, v[rows], _of(rows, z), *_of(rows, [buffer], here=True), out[rows])
        ctx.save_for_backward(v, *z, *weights)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        v, *rest = ctx.saved_tensors
        z, weights = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        steps = _scaled(ctx.scale, weights)
        g_v, g_weights = torch.empty_like(v), [torch.zeros_like(W) for W in weights]
        buffers = [block_buffer(v, v.shape[1]) for _ in range(len(steps) + 1)]
        for rows in row_blocks(v, v.shape[1]):
            room = _of(rows, buffers, here=True)
            _chain_backward(steps, g[rows], v[rows], _of(rows, z), room, g_weights, g_v[rows])
        return g_v, None, *_unscaled(steps, g_weights)


def _scaled(scale: float, weights) -> list[tuple[float, Tensor, Tensor]]:
    """Of every residual layer: scale / ACT of its input, and both matrices times the scales of theirs."""
    steps = []
    for W1, W2 in zip(weights[::2], weights[1::2], strict=True):
        steps.append((scale / ACT, W1 * scale, W2 * ACT))
        scale = ACT * HALF
    return steps


def _transposed(steps):
    return [(factor, columns(W1), columns(W2)) for factor, W1, W2 in steps]


def _unscaled(steps, g_weights: list[Tensor], scale: float = 1.0) -> list[Tensor]:
    """Gradients of the weights from those of ``_scaled``'s, times ``scale``."""
    for k, (factor, _, _) in enumerate(steps):
        g_weights[2 * k].mul_(factor * ACT * scale)
        g_weights[2 * k + 1].mul_(ACT * scale)
    return g_weights


def _like(x: Tensor, count: int, width: int | None = None) -> list[Tensor]:
    """Tensors to keep. Not one large one: malloc holds on to less than 32 MB, so that pages cost no new faults."""
    return [x.new_empty(x.shape[0], width or x.shape[1]) for _ in range(count)]


def _of(rows: slice, tensors, here: bool = False) -> list[Tensor]:
    """Those rows of every tensor; of buffers, which are ``here``, as many first ones."""
    return [t[: rows.stop - rows.start] if here else t[rows] for t in tensors]


def _chain(steps, x: Tensor, z: list[Tensor], a: Tensor, out: Tensor) -> Tensor:
    """One block of rows through a chain of ``_transposed`` steps: x -> out; pre-activations into ``z``."""
    for k, (factor, W1, W2) in enumerate(steps):
        torch.mm(x, W1, out=z[2 * k])
        torch.mm(silu_into(z[2 * k], out=a), W2, out=z[2 * k + 1])
        x = torch.add(silu_into(z[2 * k + 1], out=a), x, alpha=factor, out=out)
    return out


def _chain_inputs(steps, x: Tensor, z: list[Tensor], room: list[Tensor]) -> list[Tensor]:
    """x and the results of the first layers, one for each tensor of ``room``, computed again."""
    inputs = [x]
    for k, y in enumerate(room):
        silu_into(z[2 * k + 1], out=y)
        inputs.append(y.add_(inputs[-1], alpha=steps[k][0]))
    return inputs


def _chain_backward(steps, g: Tensor, x: Tensor | list[Tensor], z, room, g_weights, out: Tensor) -> Tensor:
    """Gradient ``out`` of one block's input ``x`` from that of its result; adds to those of the matrices.

    ``room``: buffers, two and one for every step after the first. ``x`` may be a list, all steps' inputs.
    """
    a, b, *inner = room
    inputs = x if isinstance(x, list) else _chain_inputs(steps, x, z, inner)
    for k, (factor, W1, W2) in reversed(list(enumerate(steps))):
        z1, z2 = z[2 * k], z[2 * k + 1]
        g2 = silu_backward_into(g, z2, grad_input=a)
        g_weights[2 * k + 1].addmm_(g2.t(), silu_into(z1, out=b))
        g1 = silu_backward_into(torch.mm(g2, W2, out=b), z1, grad_input=a)
        g_weights[2 * k].addmm_(g1.t(), inputs[k])
        g = torch.addmm(g, g1, W1, beta=factor, out=out)
    return out


class RadialProduct(torch.autograd.Function):
    """x * (rad W^T): (E, w)."""

    @staticmethod
    def plain(x, rad, W):
        return x * F.linear(rad, W)

    @staticmethod
    def forward(ctx, x, rad, W):
        ctx.save_for_backward(x, rad, W)
        out = torch.empty_like(x)
        for rows in row_blocks(x, x.shape[1]):
            torch.mm(rad[rows], W.t(), out=out[rows]).mul_(x[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, rad, W = ctx.saved_tensors
        g_x, g_rad, g_W = torch.empty_like(x), torch.empty_like(rad), torch.zeros_like(W)
        for rows in row_blocks(x, x.shape[1]):
            torch.mm(rad[rows], W.t(), out=g_x[rows]).mul_(g[rows])
            g_embedded = g[rows] * x[rows]
            torch.mm(g_embedded, W, out=g_rad[rows])
            g_W.addmm_(g_embedded.t(), rad[rows])
        return g_x, g_rad, g_W


def _sum_at_atoms(x, rad, W_columns, dst, a: Tensor, out: Tensor) -> None:
    """Add x * (rad W^T) of a block of edges to ``out`` (N, w) at their targets."""
    out.index_add_(0, dst, torch.mm(rad, W_columns, out=a).mul_(x))


def _sum_at_atoms_backward(g, x, rad, W, W_columns, dst, a: Tensor, b: Tensor, g_rad, g_W) -> Tensor:
    """What ``g`` (N, w) gives to the gradient of x, in ``a``; that of ``rad`` is written, that of W added to."""
    torch.index_select(g, 0, dst, out=b)
    torch.mm(rad, W_columns, out=a).mul_(b)
    b.mul_(x)
    torch.mm(b, W, out=g_rad)
    g_W.addmm_(b.t(), rad)
    return a


class AtomsToEdges(torch.autograd.Function):
    """x = SiLU(m W^T + source[src] + target[dst]), (E, w), of edges m (E, c) and [source, target] (N, 2 w).

    With ``weights``, the residual chain's m + alpha chain(x).
    """

    @staticmethod
    def plain(m, nodes, src, dst, W, alpha, scale, *weights):
        source, target = nodes.chunk(2, dim=1)
        x = F.silu(F.linear(m, W) + source.index_select(0, src) + target.index_select(0, dst))
        return m + alpha * ResidualChain.plain(x, scale, *weights) if weights else x

    @staticmethod
    def forward(ctx, m, nodes, src, dst, W, alpha, scale, *weights):
        steps, W_columns, width = _transposed(_scaled(scale, weights)), columns(W), W.shape[0]
        z = _like(m, 1 + len(weights), width)
        out = m.new_empty(m.shape[0], width)
        buffers = [block_buffer(m, width) for _ in range(2)]
        source, target = (part.contiguous() for part in nodes.chunk(2, dim=1))
        for rows in row_blocks(m, width):
            z0, *z_chain = _of(rows, z)
            a, x = _of(rows, buffers, here=True)
            torch.mm(m[rows], W_columns, out=z0)
            for part, index in ((source, src), (target, dst)):
                z0.add_(torch.index_select(part, 0, index[rows], out=a))
            if steps:
                _chain(steps, silu_into(z0, out=x), z_chain, a, x)
                torch.add(m[rows], x, alpha=alpha, out=out[rows])
            else:
                silu_into(z0, out=out[rows])
        ctx.save_for_backward(m, src, dst, W, *z, *weights)
        ctx.numbers = nodes.shape[0], alpha, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        m, src, dst, W, z0, *rest = ctx.saved_tensors
        z, weights = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        atoms, alpha, scale = ctx.numbers
        steps, width = _scaled(scale, weights), W.shape[0]
        share = alpha if steps else 1.0  # linear in the gradient: its factors are left for the end
        W_share = W * share
        g_m = torch.empty_like(m) if ctx.needs_input_grad[0] else None
        g_W, g_weights = torch.zeros_like(W), [torch.zeros_like(weight) for weight in weights]
        sums = [g.new_zeros(atoms, width) for _ in range(2)]
        buffers = [block_buffer(m, width) for _ in range(4 + max(len(steps) - 1, 0))]
        for rows in row_blocks(m, width):
            x, g_x, *room = _of(rows, buffers, here=True)
            g_rows, z_rows = g[rows], z0[rows]
            if steps:
                g_rows = _chain_backward(
                    steps, g_rows, silu_into(z_rows, out=x), _of(rows, z), room, g_weights, g_x
                )
            g_z = silu_backward_into(g_rows, z_rows, grad_input=x)
            for total, index in zip(sums, (src, dst), strict=True):
                total.index_add_(0, index[rows], g_z)
            g_W.addmm_(g_z.t(), m[rows])
            if g_m is not None:
                if steps:
                    torch.addmm(g[rows], g_z, W_share, out=g_m[rows])
                else:
                    torch.mm(g_z, W_share, out=g_m[rows])
        g_nodes = torch.cat(sums, 1).mul_(share)
        return g_m, g_nodes, None, None, g_W.mul_(share), None, None, *_unscaled(steps, g_weights, share)


class MessageIn(torch.autograd.Function):
    """SiLU(W_down (SiLU(W x) * (rad W_rad^T))): (E, w) and (E, RBF) -> (E, size_in)."""

    @staticmethod
    def plain(x, rad, W, W_rad, W_down):
        return F.silu(F.linear(F.silu(F.linear(x, W)) * F.linear(rad, W_rad), W_down))

    @staticmethod
    def forward(ctx, x, rad, W, W_rad, W_down):
        (z1,), (z2, out) = _like(x, 1), _like(x, 2, W_down.shape[0])
        across = [columns(weight) for weight in (W, W_rad, W_down)]
        buffers = [block_buffer(x, x.shape[1]) for _ in range(2)]
        for rows in row_blocks(x, x.shape[1]):
            a, embedded = _of(rows, buffers, here=True)
            torch.mm(x[rows], across[0], out=z1[rows])
            silu_into(z1[rows], out=a).mul_(torch.mm(rad[rows], across[1], out=embedded))
            silu_into(torch.mm(a, across[2], out=z2[rows]), out=out[rows])
        ctx.save_for_backward(x, rad, W, W_rad, W_down, z1, z2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, rad, W, W_rad, W_down, z1, z2 = ctx.saved_tensors
        g_x, g_rad = torch.empty_like(x), torch.empty_like(rad)
        g_W, g_W_rad, g_W_down = (torch.zeros_like(weight) for weight in (W, W_rad, W_down))
        W_rad_columns = columns(W_rad)
        buffers = [block_buffer(x, x.shape[1]) for _ in range(4)]
        for rows in row_blocks(x, x.shape[1]):
            a, embedded, g_y, b = _of(rows, buffers, here=True)
            silu_into(z1[rows], out=a)
            torch.mm(rad[rows], W_rad_columns, out=embedded)
            g2 = silu_backward(g[rows], z2[rows])
            g_W_down.addmm_(g2.t(), torch.mul(a, embedded, out=b))
            torch.mm(g2, W_down, out=g_y)
            g1 = silu_backward_into(embedded.mul_(g_y), z1[rows], grad_input=b)
            g_embedded = g_y.mul_(a)
            torch.mm(g_embedded, W_rad, out=g_rad[rows])
            g_W_rad.addmm_(g_embedded.t(), rad[rows])
            torch.mm(g1, W, out=g_x[rows])
            g_W.addmm_(g1.t(), x[rows])
        return g_x, g_rad, g_W, g_W_rad, g_W_down


class EdgeUpdate(torch.autograd.Function):
    """x = chain_2(m + alpha chain_1(SiLU(m W^T) + HALF * sum of SiLU(y U^T))), (E, w), and the sums of
    x * (rad W_rad^T) over the edges into each atom, (N, w).

    ``scales`` are those of the chains' inputs, ``counts`` their numbers of matrices. ``tensors``: the matrices of
    chain_1, of chain_2, and the pairs y, U.
    """

    @staticmethod
    def plain(m, alpha, scales, counts, W, rad, W_rad, graph, *tensors):
        first, second, others = _split(counts, tensors)
        x = F.silu(F.linear(m, W)) + HALF * sum(
            F.silu(F.linear(y, U)) for y, U in zip(others[::2], others[1::2], strict=True)
        )
        x = m + alpha * ResidualChain.plain(x, scales[0], *first)
        x = ResidualChain.plain(x, scales[1], *second)
        return x, graph.sum_at(graph.dst, x * F.linear(rad, W_rad))

    @staticmethod
    def forward(ctx, m, alpha, scales, counts, W, rad, W_rad, graph, *tensors):
        first, second, others = _split(counts, tensors)
        pairs = [(m, columns(W))]
        pairs += [(y, columns(U)) for y, U in zip(others[::2], others[1::2], strict=True)]
        chains = [_transposed(_scaled(s, w)) for s, w in zip(scales, (first, second), strict=True)]
        W_columns = columns(W_rad)
        z, z1, z2 = (_like(m, count) for count in (len(pairs), *counts))
        x1, x2, out = _like(m, 3)
        sums = m.new_zeros(graph.atoms, m.shape[1])
        buffers = [block_buffer(m, m.shape[1]) for _ in range(2)]
        for rows in row_blocks(m, m.shape[1]):
            a, b = _of(rows, buffers, here=True)
            x = x1[rows]
            for k, (y, U) in enumerate(pairs):
                z_k = torch.mm(y[rows], U, out=z[k][rows])
                if k:
                    x.add_(silu_into(z_k, out=a), alpha=HALF)
                else:
                    silu_into(z_k, out=x)
            _chain(chains[0], x, _of(rows, z1), a, b)
            x = torch.add(m[rows], b, alpha=alpha, out=x2[rows])
            x = _chain(chains[1], x, _of(rows, z2), a, out[rows])
            _sum_at_atoms(x, rad[rows], W_columns, graph.dst[rows], a, sums)
        ctx.save_for_backward(m, W, rad, W_rad, *tensors, x1, x2, out, *z, *z1, *z2)
        ctx.numbers, ctx.graph = (alpha, scales, counts, len(tensors)), graph
        return out, sums

    @staticmethod
    @once_differentiable
    def backward(ctx, g, g_sums):
        alpha, scales, counts, length = ctx.numbers
        m, W, rad, W_rad, *rest = ctx.saved_tensors
        tensors, (x1, x2, out, *rest) = rest[:length], rest[length:]
        first, second, others = _split(counts, tensors)
        z, z1, z2 = rest[: -sum(counts)], rest[-sum(counts) : -counts[1]], rest[-counts[1] :]
        chains = [_scaled(s, w) for s, w in zip(scales, (first, second), strict=True)]
        g_first, g_second = ([torch.zeros_like(w) for w in weights] for weights in (first, second))
        # linear in the gradient: its factors alpha and HALF are multiplied into small matrices
        pairs = [(y, U, U * (alpha * HALF)) for y, U in zip(others[::2], others[1::2], strict=True)]
        found = [(torch.empty_like(y), torch.zeros_like(U)) for y, U, _ in pairs]
        W_alpha, W_columns = W * alpha, columns(W_rad)
        g_m, g_rad, g_W, g_W_rad = (
            torch.empty_like(m),
            torch.empty_like(rad),
            torch.zeros_like(W),
            torch.zeros_like(W_rad),
        )
        buffers = [block_buffer(m, m.shape[1]) for _ in range(3 + max(counts) // 2)]
        for rows in row_blocks(m, m.shape[1]):
            g2, g1, *room = _of(rows, buffers, here=True)
            at = rad[rows], W_rad, W_columns, ctx.graph.dst[rows]
            _sum_at_atoms_backward(g_sums, out[rows], *at, g2, g1, g_rad[rows], g_W_rad)
            g2.add_(g[rows])
            _chain_backward(chains[1], g2, x2[rows], _of(rows, z2), room[: 1 + counts[1] // 2], g_second, g2)
            _chain_backward(chains[0], g2, x1[rows], _of(rows, z1), room[: 1 + counts[0] // 2], g_first, g1)
            g_z = silu_backward_into(g1, z[0][rows], grad_input=room[0])
            g_W.addmm_(g_z.t(), m[rows])
            torch.addmm(g2, g_z, W_alpha, out=g_m[rows])
            for z_k, (y, _, U), (g_y, g_U) in zip(z[1:], pairs, found, strict=True):
                g_z = silu_backward_into(g1, z_k[rows], grad_input=room[0])
                g_U.addmm_(g_z.t(), y[rows])
                torch.mm(g_z, U, out=g_y[rows])
        g_others = [t for g_y, g_U in found for t in (g_y, g_U.mul_(alpha * HALF))]
        g_weights = _unscaled(chains[0], g_first, alpha) + _unscaled(chains[1], g_second)
        return g_m, None, None, None, g_W.mul_(alpha), g_rad, g_W_rad, None, *g_weights, *g_others


def _split(counts: tuple[int, int], tensors):
    a, b = counts
    return tensors[:a], tensors[a : a + b], tensors[a + b :]


class LayerOutput(torch.autograd.Function):
    """total + (chain(m) * (rad W^T)) mix^T, (E, w), and the sums of m * (rad W_sum^T) over the edges into each atom.

    ``total`` is overwritten, or None. Keeps pre-activations only.
    """

    @staticmethod
    def plain(total, m, scale, rad, W, W_sum, mix, graph, *weights):
        share = F.linear(ResidualChain.plain(m, scale, *weights) * F.linear(rad, W), mix)
        return share if total is None else total + share, graph.sum_at(graph.dst, m * F.linear(rad, W_sum))

    @staticmethod
    def forward(ctx, total, m, scale, rad, W, W_sum, mix, graph, *weights):
        steps, z = _transposed(_scaled(scale, weights)), _like(m, len(weights))
        W_columns, sum_columns, mix_columns = (columns(t) for t in (W, W_sum, mix))
        out = torch.empty_like(m) if total is None else total
        sums = m.new_zeros(graph.atoms, m.shape[1])
        buffers = [block_buffer(m, m.shape[1]) for _ in range(2)]
        for rows in row_blocks(m, m.shape[1]):
            a, x = _of(rows, buffers, here=True)
            _sum_at_atoms(m[rows], rad[rows], sum_columns, graph.dst[rows], a, sums)
            _chain(steps, m[rows], _of(rows, z), a, x)
            x.mul_(torch.mm(rad[rows], W_columns, out=a))
            if total is None:
                torch.mm(x, mix_columns, out=out[rows])
            else:
                out[rows].addmm_(x, mix_columns)
        if total is not None:
            ctx.mark_dirty(total)
        ctx.save_for_backward(m, rad, W, W_sum, mix, *z, *weights)
        ctx.scale, ctx.graph = scale, graph
        return out, sums

    @staticmethod
    @once_differentiable
    def backward(ctx, g, g_sums):
        m, rad, W, W_sum, mix, *rest = ctx.saved_tensors
        z, weights = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        steps, W_columns, sum_columns = _scaled(ctx.scale, weights), columns(W), columns(W_sum)
        g_m, g_rad = torch.empty_like(m), torch.empty_like(rad)
        g_W, g_sum, g_mix, *g_weights = (torch.zeros_like(t) for t in (W, W_sum, mix, *weights))
        buffers = [block_buffer(m, m.shape[1]) for _ in range(4 + len(steps))]
        for rows in row_blocks(m, m.shape[1]):
            g_x, embedded, a, b, *inner = _of(rows, buffers, here=True)
            *inputs, x = _chain_inputs(steps, m[rows], _of(rows, z), inner)
            torch.mm(rad[rows], W_columns, out=embedded)
            g_mix.addmm_(g[rows].t(), torch.mul(x, embedded, out=a))
            torch.mm(g[rows], mix, out=g_x)
            g_embedded = x.mul_(g_x)
            g_W.addmm_(g_embedded.t(), rad[rows])
            g_x.mul_(embedded)
            at = rad[rows], W_sum, sum_columns, ctx.graph.dst[rows]
            own = _sum_at_atoms_backward(g_sums, m[rows], *at, embedded, b, g_rad[rows], g_sum)
            g_rad[rows].addmm_(g_embedded, W)
            _chain_backward(steps, g_x, inputs, _of(rows, z), (a, b), g_weights, g_x)
            torch.add(g_x, own, out=g_m[rows])
        g_total = g if ctx.needs_input_grad[0] else None
        return g_total, g_m, None, g_rad, g_W, g_sum, g_mix, None, *_unscaled(steps, g_weights)
