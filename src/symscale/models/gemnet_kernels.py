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
from symscale.models.gemnet_graph import Graph

ACT = 1 / 0.6  # scaled SiLU keeps unit variance
HALF = 1 / math.sqrt(2)
silu_backward = torch.ops.aten.silu_backward
silu_into, silu_backward_into = torch.ops.aten.silu.out, torch.ops.aten.silu_backward.grad_input


def block_buffer(x: Tensor, width: int, columns: int | None = None) -> Tensor:
    """Room for one block of ``row_blocks(x, width)``: written again for every block, it stays in cache."""
    return x.new_empty(row_blocks(x, width)[0].stop if x.shape[0] else 0, columns or width)


def _columns(W: Tensor) -> Tensor:
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
        steps = [(factor, _columns(W1), _columns(W2)) for factor, W1, W2 in _scaled(scale, weights)]
        z = [
            torch.empty_like(v) for _ in weights
        ]  # one tensor each: malloc keeps what is small for the next step
        out, buffer = torch.empty_like(v), block_buffer(v, v.shape[1])
        for rows in row_blocks(v, v.shape[1]):
            x, y = v[rows], out[rows]
            a = buffer[: x.shape[0]]
            for k, (factor, W1, W2) in enumerate(steps):
                z1, z2 = z[2 * k][rows], z[2 * k + 1][rows]
                torch.mm(x, W1, out=z1)
                torch.mm(silu_into(z1, out=a), W2, out=z2)
                x = torch.add(silu_into(z2, out=a), x, alpha=factor, out=y)
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
            g_x, g_out = g[rows], g_v[rows]
            a, b, *inner = (buffer[: g_x.shape[0]] for buffer in buffers)
            inputs = [v[rows]]
            for k, x in enumerate(inner):
                silu_into(z[2 * k + 1][rows], out=x)
                inputs.append(x.add_(inputs[-1], alpha=steps[k][0]))
            for k, (factor, W1, W2) in reversed(list(enumerate(steps))):
                z1, z2 = z[2 * k][rows], z[2 * k + 1][rows]
                g2 = silu_backward_into(g_x, z2, grad_input=a)
                g_weights[2 * k + 1].addmm_(g2.t(), silu_into(z1, out=b))
                g1 = silu_backward_into(torch.mm(g2, W2, out=b), z1, grad_input=a)
                g_weights[2 * k].addmm_(g1.t(), inputs[k])
                g_x = torch.addmm(g_x, g1, W1, beta=factor, out=g_out)
        for k, (factor, _, _) in enumerate(steps):
            g_weights[2 * k].mul_(factor * ACT)
            g_weights[2 * k + 1].mul_(ACT)
        return g_v, None, *g_weights


def _scaled(scale: float, weights) -> list[tuple[float, Tensor, Tensor]]:
    """Of every residual layer: scale / ACT of its input, and both matrices times the scales of theirs."""
    steps = []
    for W1, W2 in zip(weights[::2], weights[1::2], strict=True):
        steps.append((scale / ACT, W1 * scale, W2 * ACT))
        scale = ACT * HALF
    return steps


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


class RadialSum(torch.autograd.Function):
    """Sum over the edges into each atom of x * (rad W^T): (N, w)."""

    @staticmethod
    def plain(x, rad, W, graph):
        return graph.sum_at(graph.dst, x * F.linear(rad, W))

    @staticmethod
    def forward(ctx, x, rad, W, graph):
        ctx.save_for_backward(x, rad, W)
        ctx.graph = graph
        out = x.new_zeros(graph.atoms, x.shape[1])
        for rows in row_blocks(x, x.shape[1]):
            out.index_add_(0, graph.dst[rows], torch.mm(rad[rows], W.t()).mul_(x[rows]))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, rad, W = ctx.saved_tensors
        g_x, g_rad, g_W = torch.empty_like(x), torch.empty_like(rad), torch.zeros_like(W)
        for rows in row_blocks(x, x.shape[1]):
            g_rows = g.index_select(0, ctx.graph.dst[rows])
            torch.mm(rad[rows], W.t(), out=g_x[rows]).mul_(g_rows)
            g_rows.mul_(x[rows])
            torch.mm(g_rows, W, out=g_rad[rows])
            g_W.addmm_(g_rows.t(), rad[rows])
        return g_x, g_rad, g_W, None


class AddAtoms(torch.autograd.Function):
    """z + source[src] + target[dst]: (E, w) from z (E, w) and [source, target] (N, 2 w)."""

    @staticmethod
    def plain(z, nodes, src, dst):
        source, target = nodes.chunk(2, dim=1)
        return z + source.index_select(0, src) + target.index_select(0, dst)

    @staticmethod
    def forward(ctx, z, nodes, src, dst):
        ctx.save_for_backward(src, dst)
        ctx.atoms = nodes.shape[0]
        source, target = nodes.chunk(2, dim=1)
        return source.index_select(0, src).add_(z).add_(target.index_select(0, dst))

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        sums = [g.new_zeros(ctx.atoms, g.shape[1]).index_add_(0, index, g) for index in ctx.saved_tensors]
        return g, torch.cat(sums, 1), None, None


class MessageIn(torch.autograd.Function):
    """SiLU(W_down (SiLU(W x) * (rad W_rad^T))): (E, w) and (E, RBF) -> (E, size_in)."""

    @staticmethod
    def plain(x, rad, W, W_rad, W_down):
        return F.silu(F.linear(F.silu(F.linear(x, W)) * F.linear(rad, W_rad), W_down))

    @staticmethod
    def forward(ctx, x, rad, W, W_rad, W_down):
        z1, z2 = torch.empty_like(x), x.new_empty(x.shape[0], W_down.shape[0])
        out = torch.empty_like(z2)
        for rows in row_blocks(x, x.shape[1]):
            torch.mm(x[rows], W.t(), out=z1[rows])
            y = F.silu(z1[rows]).mul_(torch.mm(rad[rows], W_rad.t()))
            out[rows] = F.silu(torch.mm(y, W_down.t(), out=z2[rows]))
        ctx.save_for_backward(x, rad, W, W_rad, W_down, z1, z2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, rad, W, W_rad, W_down, z1, z2 = ctx.saved_tensors
        g_x, g_rad = torch.empty_like(x), torch.empty_like(rad)
        g_W, g_W_rad, g_W_down = (torch.zeros_like(weight) for weight in (W, W_rad, W_down))
        for rows in row_blocks(x, x.shape[1]):
            a, embedded = F.silu(z1[rows]), torch.mm(rad[rows], W_rad.t())
            g2 = silu_backward(g[rows], z2[rows])
            g_W_down.addmm_(g2.t(), a * embedded)
            g_y = torch.mm(g2, W_down)
            g1 = silu_backward(embedded.mul_(g_y), z1[rows])
            g_embedded = g_y.mul_(a)
            torch.mm(g_embedded, W_rad, out=g_rad[rows])
            g_W_rad.addmm_(g_embedded.t(), rad[rows])
            torch.mm(g1, W, out=g_x[rows])
            g_W.addmm_(g1.t(), x[rows])
        return g_x, g_rad, g_W, g_W_rad, g_W_down


class MessageOut(torch.autograd.Function):
    """SiLU(x W^T) + factor * sum of SiLU(y U^T) over the pairs (y, U) of ``others``: (E, w)."""

    @staticmethod
    def plain(factor, x, W, *others):
        pairs = zip(others[::2], others[1::2], strict=True)
        return F.silu(F.linear(x, W)) + factor * sum(F.silu(F.linear(y, U)) for y, U in pairs)

    @staticmethod
    def forward(ctx, factor, x, W, *others):
        pairs = [(x, W), *zip(others[::2], others[1::2], strict=True)]
        z = x.new_empty(len(pairs), x.shape[0], W.shape[0])
        out = z.new_empty(z.shape[1:])
        for rows in row_blocks(x, W.shape[0]):
            for k, (y, U) in enumerate(pairs):
                torch.mm(y[rows], U.t(), out=z[k, rows])
            total = F.silu(z[0, rows])
            for k in range(1, len(pairs)):
                total.add_(F.silu(z[k, rows]), alpha=factor)
            out[rows] = total
        ctx.save_for_backward(z, x, W, *others)
        ctx.factor = factor
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        z, *tensors = ctx.saved_tensors
        pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
        found = [(torch.empty_like(y), torch.zeros_like(U)) for y, U in pairs]
        for rows in row_blocks(g, g.shape[1]):
            scaled = g[rows] * ctx.factor
            for k, ((y, U), (g_y, g_U)) in enumerate(zip(pairs, found, strict=True)):
                g_z = silu_backward(scaled if k else g[rows], z[k, rows])
                torch.mm(g_z, U, out=g_y[rows])
                g_U.addmm_(g_z.t(), y[rows])
        return None, *(t for pair in found for t in pair)


class TripletSum(torch.autograd.Function):
    """sum over b, i, j, l of W_oji R_li(c) Y_l(c, b) x_j(b), b != c: (E, size_in) -> (E, size_out).

    The angular functions of every pair of edges are never formed: by the addition theorem, Y_l(c, b) is the sum
    over m of Y_lm(c) Y_lm(b), so messages are first summed by atom with Y_lm(b), then weighted with Y_lm(c). The
    term b = c that this brings in is taken off by ``radial``, whose last function weights an edge's own message.
    Of the (size_in, size_cbf) products of an edge only the sums over b are kept for the backward pass.
    """

    @staticmethod
    def plain(x, radial, angles, W, graph):
        degrees = radial.shape[1] - 1
        moments = torch.bmm(angles.transpose(1, 2), graph.spread(x))  # (N, degrees^2, size_in)
        own, moments = (_by_degree(t, 2 - i, degrees) for i, t in enumerate((angles, moments)))
        sums = torch.stack([torch.bmm(y, m) for y, m in zip(own, moments, strict=True)], 2)
        sums = sums.view(-1, degrees * x.shape[1]).index_select(0, graph.slot).view(-1, degrees, x.shape[1])
        sums = torch.cat([sums, x[:, None]], 1)
        return F.linear(torch.bmm(sums.transpose(1, 2), radial).flatten(1), W)

    @staticmethod
    def forward(ctx, x, radial, angles, W, graph):
        (edges, size_in), (_, count, _) = x.shape, radial.shape
        sums = _pair_sums(graph.spread(x), angles, count - 1)  # (degrees, N K, size_in)
        out, kept, W_columns = x.new_empty(edges, W.shape[0]), [], _columns(W)
        buffer = block_buffer(x, W.shape[1] // 4, W.shape[1])
        for rows in row_blocks(x, W.shape[1] // 4):
            block = x.new_empty(count, rows.stop - rows.start, size_in)
            torch.index_select(sums, 1, graph.slot[rows], out=block[:-1])
            block[-1] = x[rows]
            product = buffer[: rows.stop - rows.start]
            torch.bmm(block.permute(1, 2, 0), radial[rows], out=product.view(-1, size_in, radial.shape[2]))
            torch.mm(product, W_columns, out=out[rows])
            kept.append(block)
        ctx.save_for_backward(x, radial, angles, W, *kept)
        ctx.graph = graph
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, radial, angles, W, *kept = ctx.saved_tensors
        graph: Graph = ctx.graph
        degrees, size_in = radial.shape[1] - 1, x.shape[1]
        g_radial, g_W = torch.empty_like(radial), torch.zeros_like(W)
        g_sums = x.new_empty(x.shape[0], degrees + 1, size_in)
        buffer = block_buffer(x, W.shape[1] // 4, W.shape[1])
        for rows, block in zip(row_blocks(x, W.shape[1] // 4), kept, strict=True):
            flat = buffer[: rows.stop - rows.start]
            product = flat.view(-1, size_in, radial.shape[2])
            torch.bmm(block.permute(1, 2, 0), radial[rows], out=product)
            g_W.addmm_(g[rows].t(), flat)
            torch.mm(g[rows], W, out=flat)
            torch.bmm(radial[rows], product.transpose(1, 2), out=g_sums[rows])
            torch.bmm(block.transpose(0, 1), product, out=g_radial[rows])
        n, k = graph.atoms, graph.degree
        g_x = x.new_zeros(n, k, size_in)
        for atoms in row_blocks(g_x, k * g_sums.shape[1] * size_in):
            shape = atoms.stop - atoms.start, k, degrees + 1, size_in
            places = graph.edge[atoms.start * k : atoms.stop * k]
            g_atoms = g_sums.flatten(1).index_select(0, places).view(shape)
            for l, y in enumerate(_by_degree(angles[atoms], 2, degrees)):
                g_x[atoms].baddbmm_(y, torch.bmm(y.transpose(1, 2), g_atoms[:, :, l]))
        g_x = g_x.flatten(0, 1).index_select(0, graph.slot).add_(g_sums[:, degrees])
        g_angles = None
        if ctx.needs_input_grad[
            2
        ]:  # with respect to positions, which training of direct forces does not ask for
            with torch.enable_grad():
                free = angles.detach().requires_grad_()
                (g_angles,) = torch.autograd.grad(TripletSum.plain(x, radial, free, W, graph), free, g)
        return g_x, g_radial, g_angles, g_W, None


def _by_degree(harmonics: Tensor, dim: int, degrees: int) -> list[Tensor]:
    """The parts m = -l ... l along ``dim`` for every l < degrees."""
    return list(harmonics.split([2 * l + 1 for l in range(degrees)], dim))


def _pair_sums(x: Tensor, angles: Tensor, degrees: int) -> Tensor:
    """sum over b, m of Y_lm(c) Y_lm(b) x(b): (N, K, size_in) -> (degrees, N K, size_in), in blocks of atoms."""
    n, k, size_in = x.shape
    sums = x.new_empty(degrees, n, k, size_in)
    for atoms in row_blocks(x, 2 * k * angles.shape[2]):
        moments = torch.bmm(angles[atoms].transpose(1, 2), x[atoms])  # (atoms, degrees^2, size_in)
        own = _by_degree(angles[atoms], 2, degrees)
        for l, (y, moment) in enumerate(zip(own, _by_degree(moments, 1, degrees), strict=True)):
            torch.bmm(y, moment, out=sums[l, atoms])
    return sums.flatten(1, 2)


def quadruplet_sum(x: Tensor, polar: list[Tensor], dihedral: list[Tensor]) -> Tensor:
    """sum over b, d of Y_lm(c, b, d) x(b, d): x (N, Q, K_d, c) -> (N K_c, count^2, c), one order m at a time."""
    n, q, k, c = x.shape
    parts = []
    for i, turn in enumerate(dihedral):
        m = i if i < len(polar) else i - len(polar) + 1
        u = torch.bmm(turn.to(x.dtype), x.reshape(n * q, k, c))  # (N Q, K_c, c): over d
        u = u.view(n, q, k, c).transpose(1, 2).reshape(n * k, q, c)
        parts.append(
            torch.bmm(polar[m].to(x.dtype).view(n * k, q, polar[m].shape[3]).transpose(1, 2), u)
        )  # (N K_c, count - m, c): over b
    return torch.cat(parts, 1)


class QuadrupletSum(torch.autograd.Function):
    """quadruplet_sum with constant angles: keeps no intermediate at all."""

    @staticmethod
    def plain(x, quads):
        return quadruplet_sum(x, quads.polar, quads.dihedral)

    @staticmethod
    def forward(ctx, x, quads):
        ctx.quads, ctx.shape = quads, x.shape
        return quadruplet_sum(x, quads.polar, quads.dihedral)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        n, q, k, c = ctx.shape
        polar, dihedral = ctx.quads.polar, ctx.quads.dihedral
        g_x, start = g.new_zeros(n * q, k, c), 0
        for i, turn in enumerate(dihedral):
            m = i if i < len(polar) else i - len(polar) + 1
            part = g[:, start : start + len(polar) - m]
            start += len(polar) - m
            u = torch.bmm(polar[m].to(g.dtype).view(n * k, q, polar[m].shape[3]), part)  # (N K_c, Q, c)
            u = u.view(n, k, q, c).transpose(1, 2).reshape(n * q, k, c)
            g_x.baddbmm_(turn.to(g.dtype).transpose(1, 2), u)
        return g_x.view(ctx.shape), None
