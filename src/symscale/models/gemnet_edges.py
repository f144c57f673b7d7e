"""The long row-wise parts of GemNet-OC as autograd functions: each takes a block of edges through several layers.

Written like those of gemnet_kernels, from whose chains they are made: the fewer (E, w) tensors are written and read
between layers, the less a CPU waits for memory. Gradients are linear in what comes in, so constant factors are left
for the small matrices at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from symscale.models.common import row_blocks
from symscale.models.gemnet_kernels import (
    HALF,
    ResidualChain,
    block_buffer,
    chain_backward,
    chain_inputs,
    chain_steps,
    columns,
    radial_backward,
    rows_of,
    run_chain,
    silu_backward_into,
    silu_into,
    tensors_like,
    transposed,
    unscaled,
)


def add_at_atoms(x, rad, W_columns, dst, a: Tensor, out: Tensor) -> None:
    """Add x * (rad W^T) of a block of edges to ``out`` (N, w) at their targets."""
    out.index_add_(0, dst, torch.mm(rad, W_columns, out=a).mul_(x))


def add_at_atoms_backward(g, x, rad, W, W_columns, dst, a: Tensor, b: Tensor, g_rad, g_W) -> Tensor:
    """What ``g`` (N, w) gives to the gradient of x, in ``a``; that of ``rad`` is written, that of W added to."""
    torch.index_select(g, 0, dst, out=b)
    radial_backward(b, x, rad, W, W_columns, a, b, g_rad, g_W)
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
        steps, W_columns, width = transposed(chain_steps(scale, weights)), columns(W), W.shape[0]
        z = tensors_like(m, 1 + len(weights), width)
        out = m.new_empty(m.shape[0], width)
        buffers = [block_buffer(m, width) for _ in range(2)]
        source, target = (part.contiguous() for part in nodes.chunk(2, dim=1))
        for rows in row_blocks(m, width):
            z0, *z_chain = rows_of(rows, z)
            a, x = rows_of(rows, buffers, here=True)
            torch.mm(m[rows], W_columns, out=z0)
            for part, index in ((source, src), (target, dst)):
                z0.add_(torch.index_select(part, 0, index[rows], out=a))
            if steps:
                run_chain(steps, silu_into(z0, out=x), z_chain, a, x)
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
        steps, width = chain_steps(scale, weights), W.shape[0]
        share = alpha if steps else 1.0  # linear in the gradient: its factors are left for the end
        W_share = W * share
        g_m = torch.empty_like(m) if ctx.needs_input_grad[0] else None
        g_W, g_weights = torch.zeros_like(W), [torch.zeros_like(weight) for weight in weights]
        sums = [g.new_zeros(atoms, width) for _ in range(2)]
        buffers = [block_buffer(m, width) for _ in range(4 + max(len(steps) - 1, 0))]
        for rows in row_blocks(m, width):
            x, g_x, *room = rows_of(rows, buffers, here=True)
            g_rows, z_rows = g[rows], z0[rows]
            if steps:
                g_rows = chain_backward(
                    steps, g_rows, silu_into(z_rows, out=x), rows_of(rows, z), room, g_weights, g_x
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
        return g_m, g_nodes, None, None, g_W.mul_(share), None, None, *unscaled(steps, g_weights, share)


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
        chains = [transposed(chain_steps(s, w)) for s, w in zip(scales, (first, second), strict=True)]
        W_columns = columns(W_rad)
        z, z1, z2 = (tensors_like(m, count) for count in (len(pairs), *counts))
        x1, x2, out = tensors_like(m, 3)
        sums = m.new_zeros(graph.atoms, m.shape[1])
        buffers = [block_buffer(m, m.shape[1]) for _ in range(2)]
        for rows in row_blocks(m, m.shape[1]):
            a, b = rows_of(rows, buffers, here=True)
            x = x1[rows]
            for k, (y, U) in enumerate(pairs):
                z_k = torch.mm(y[rows], U, out=z[k][rows])
                if k:
                    x.add_(silu_into(z_k, out=a), alpha=HALF)
                else:
                    silu_into(z_k, out=x)
            run_chain(chains[0], x, rows_of(rows, z1), a, b)
            x = torch.add(m[rows], b, alpha=alpha, out=x2[rows])
            x = run_chain(chains[1], x, rows_of(rows, z2), a, out[rows])
            add_at_atoms(x, rad[rows], W_columns, graph.dst[rows], a, sums)
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
        chains = [chain_steps(s, w) for s, w in zip(scales, (first, second), strict=True)]
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
            g2, g1, *room = rows_of(rows, buffers, here=True)
            at = rad[rows], W_rad, W_columns, ctx.graph.dst[rows]
            add_at_atoms_backward(g_sums, out[rows], *at, g2, g1, g_rad[rows], g_W_rad)
            g2.add_(g[rows])
            chain_backward(
                chains[1], g2, x2[rows], rows_of(rows, z2), room[: 1 + counts[1] // 2], g_second, g2
            )
            chain_backward(
                chains[0], g2, x1[rows], rows_of(rows, z1), room[: 1 + counts[0] // 2], g_first, g1
            )
            g_z = silu_backward_into(g1, z[0][rows], grad_input=room[0])
            g_W.addmm_(g_z.t(), m[rows])
            torch.addmm(g2, g_z, W_alpha, out=g_m[rows])
            for z_k, (y, _, U), (g_y, g_U) in zip(z[1:], pairs, found, strict=True):
                g_z = silu_backward_into(g1, z_k[rows], grad_input=room[0])
                g_U.addmm_(g_z.t(), y[rows])
                torch.mm(g_z, U, out=g_y[rows])
        g_others = [t for g_y, g_U in found for t in (g_y, g_U.mul_(alpha * HALF))]
        g_weights = unscaled(chains[0], g_first, alpha) + unscaled(chains[1], g_second)
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
        steps, z = transposed(chain_steps(scale, weights)), tensors_like(m, len(weights))
        W_columns, sum_columns, mix_columns = (columns(t) for t in (W, W_sum, mix))
        out = torch.empty_like(m) if total is None else total
        sums = m.new_zeros(graph.atoms, m.shape[1])
        buffers = [block_buffer(m, m.shape[1]) for _ in range(2)]
        for rows in row_blocks(m, m.shape[1]):
            a, x = rows_of(rows, buffers, here=True)
            add_at_atoms(m[rows], rad[rows], sum_columns, graph.dst[rows], a, sums)
            run_chain(steps, m[rows], rows_of(rows, z), a, x)
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
        steps, W_columns, sum_columns = chain_steps(ctx.scale, weights), columns(W), columns(W_sum)
        g_m, g_rad = torch.empty_like(m), torch.empty_like(rad)
        g_W, g_sum, g_mix, *g_weights = (torch.zeros_like(t) for t in (W, W_sum, mix, *weights))
        buffers = [block_buffer(m, m.shape[1]) for _ in range(4 + len(steps))]
        for rows in row_blocks(m, m.shape[1]):
            g_x, embedded, a, b, *inner = rows_of(rows, buffers, here=True)
            *inputs, x = chain_inputs(steps, m[rows], rows_of(rows, z), inner)
            torch.mm(rad[rows], W_columns, out=embedded)
            g_mix.addmm_(g[rows].t(), torch.mul(x, embedded, out=a))
            torch.mm(g[rows], mix, out=g_x)
            g_embedded = x.mul_(g_x)
            g_W.addmm_(g_embedded.t(), rad[rows])
            g_x.mul_(embedded)
            at = rad[rows], W_sum, sum_columns, ctx.graph.dst[rows]
            own = add_at_atoms_backward(g_sums, m[rows], *at, embedded, b, g_rad[rows], g_sum)
            g_rad[rows].addmm_(g_embedded, W)
            chain_backward(steps, g_x, inputs, rows_of(rows, z), (a, b), g_weights, g_x)
            torch.add(g_x, own, out=g_m[rows])
        g_total = g if ctx.needs_input_grad[0] else None
        return g_total, g_m, None, g_rad, g_W, g_sum, g_mix, None, *unscaled(steps, g_weights)
