"""Sums over triplets and quadruplets of GemNet-OC as autograd functions; the row-wise parts are in gemnet_kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from symscale.models.common import row_blocks
from symscale.models.gemnet_graph import Graph
from symscale.models.gemnet_kernels import block_buffer, columns


class TripletSum(torch.autograd.Function):
    """sum over b, i, j, l of W_oji R_li(c) Y_l(c, b) x_j(b), b != c: (E, size_in) -> (E, size_out).

    The angular functions of every pair of edges are never formed: by the addition theorem, Y_l(c, b) is the sum
    over m of Y_lm(c) Y_lm(b), so messages are first summed by atom with Y_lm(b), then weighted with Y_lm(c). The
    term b = c that this brings in is taken off by ``radial``, whose last function weights an edge's own message
    (rightly only for an edge that has a direction: atoms at one place get finite nonsense).
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
        out, kept, W_columns = x.new_empty(edges, W.shape[0]), [], columns(W)
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
        g_x = x.new_empty(n, k, size_in)
        for atoms in row_blocks(g_x, k * g_sums.shape[1] * size_in, 48):
            shape = atoms.stop - atoms.start, k, degrees + 1, size_in
            places = graph.edge[atoms.start * k : atoms.stop * k]
            g_atoms = g_sums.flatten(1).index_select(0, places).view(shape)
            own = _by_degree(angles[atoms].transpose(1, 2), 1, degrees)
            g_moments = torch.cat([torch.bmm(y, g_atoms[:, :, l]) for l, y in enumerate(own)], 1)
            torch.bmm(angles[atoms], g_moments, out=g_x[atoms])
        g_x = g_x.flatten(0, 1).index_select(0, graph.slot).add_(g_sums[:, degrees])
        g_angles = None
        if ctx.needs_input_grad[2]:
            # with respect to positions, which training of direct forces does not ask for
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


class OuterSum(torch.autograd.Function):
    """sum over f, i, j of W_oji R_fi(c) x_fj(c): (N K, F, size_in) and (E, F, size_sbf) -> (E, size_out).

    In blocks of edges, whose rows of ``x`` are taken on the way: nothing is done for empty places, and the
    (size_in, size_sbf) products of an edge are never kept.
    """

    @staticmethod
    def plain(x, radial, W, graph):
        x = x.index_select(0, graph.slot)
        return F.linear(torch.bmm(x.transpose(1, 2), radial).flatten(1), W)

    @staticmethod
    def forward(ctx, x, radial, W, graph):
        out, W_columns = x.new_empty(radial.shape[0], W.shape[0]), columns(W)
        for rows in row_blocks(radial, radial.shape[1] * radial.shape[2], 64):
            x_rows = x.index_select(0, graph.slot[rows])
            product = torch.bmm(x_rows.transpose(1, 2), radial[rows])  # (rows, size_in, size_sbf)
            torch.mm(product.flatten(1), W_columns, out=out[rows])
        ctx.save_for_backward(x, radial, W)
        ctx.graph = graph
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, radial, W = ctx.saved_tensors
        slot = ctx.graph.slot
        g_x, g_radial, g_W = torch.zeros_like(x), torch.empty_like(radial), torch.zeros_like(W)
        for rows in row_blocks(radial, radial.shape[1] * radial.shape[2], 64):
            x_rows = x.index_select(0, slot[rows])
            product = torch.bmm(x_rows.transpose(1, 2), radial[rows])
            g_W.addmm_(g[rows].t(), product.flatten(1))
            torch.mm(g[rows], W, out=product.flatten(1))
            torch.bmm(x_rows, product, out=g_radial[rows])
            g_x.index_copy_(0, slot[rows], torch.bmm(radial[rows], product.transpose(1, 2)))
        return g_x, g_radial, g_W, None
