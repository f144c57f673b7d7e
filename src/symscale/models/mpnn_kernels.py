"""The MPNN's edges and Linears for speed; ``plain`` states what each computes.

An edge costs element-wise work over w numbers, and all edges together are far more than a CPU's cache holds. So they
go through in blocks of rows, the embedding e is written where it stays, and its gradient, a sum over the layers, is
formed once for each block after the last layer's backward pass rather than as an (E, w) tensor in every layer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from symscale.models.common import row_blocks, silu_backward

LINE = 16  # float32 numbers in a cache line


def empty_rows(like: Tensor, rows: int, width: int, column: int = 0) -> Tensor:
    """An empty (rows, width) view whose ``column`` starts a cache line in every row: a CPU's matrix products write
    other rows at two thirds of the speed.
    """
    if like.device.type != "cpu":
        return like.new_empty(rows, width)
    before = -column % LINE
    return like.new_empty(rows, before + width + -(before + width) % LINE)[:, before : before + width]


class Linear(torch.autograd.Function):
    """x W^T + b, (N, c) -> (N, w)."""

    @staticmethod
    def plain(x, W, b):
        return F.linear(x, W, b)

    @staticmethod
    def forward(ctx, x, W, b):
        ctx.save_for_backward(x, W)
        return torch.addmm(b, x, W.t(), out=empty_rows(x, len(x), len(W)))

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, W = ctx.saved_tensors
        g_x = g_W = None
        if ctx.needs_input_grad[0]:
            g_x = torch.mm(g, W, out=empty_rows(g, *x.shape))
        if ctx.needs_input_grad[1]:
            g_W = torch.mm(g.t(), x, out=empty_rows(g, *W.shape))
        return g_x, g_W, g.sum(0)


class EdgeEmbedding(torch.autograd.Function):
    """e = SiLU([Wv vector + bv, Wr rbf + br]), (E, w), and a token for each of ``layers``.

    e itself has no gradient: layer l returns (h_l, g_l) as that of its token, (2, N, w), and the gradient of e_uv is
    the sum over layers of h_u g_v. So a token is for one layer, once, and nothing else may read e.
    """

    @staticmethod
    def plain(layers, atoms, edge_index, vector, rbf, Wv, bv, Wr, br):
        e = F.silu(torch.cat([F.linear(vector, Wv, bv), F.linear(rbf, Wr, br)], 1))
        return e, *[None] * layers

    @staticmethod
    def forward(ctx, layers, atoms, edge_index, vector, rbf, Wv, bv, Wr, br):
        half, width = len(Wv), len(Wv) + len(Wr)
        z, e = (empty_rows(Wr, len(rbf), width, half) for _ in range(2))
        for rows in row_blocks(rbf, width):
            torch.addmm(bv, vector[rows], Wv.t(), out=z[rows, :half])
            torch.addmm(br, rbf[rows], Wr.t(), out=z[rows, half:])
            e[rows] = F.silu(z[rows])
        ctx.save_for_backward(edge_index, vector, rbf, Wv, Wr, z)
        ctx.mark_non_differentiable(e)
        return e, *(e.new_zeros(()).expand(2, atoms, width) for _ in range(layers))

    @staticmethod
    @once_differentiable
    def backward(ctx, _, *pairs):
        edge_index, vector, rbf, Wv, Wr, z = ctx.saved_tensors
        half, (src, dst) = len(Wv), edge_index
        g_Wv, g_Wr = torch.zeros_like(Wv.t()), torch.zeros_like(Wr)
        g_b = z.new_zeros(z.shape[1])
        g_vector = torch.empty_like(vector) if ctx.needs_input_grad[3] else None
        g_rbf = torch.empty_like(rbf) if ctx.needs_input_grad[4] else None
        for rows in row_blocks(rbf, z.shape[1]):
            u, v = src[rows], dst[rows]
            g = z.new_zeros(len(u), z.shape[1])
            for h, g_total in pairs:
                g.addcmul_(h.index_select(0, u), g_total.index_select(0, v))
            g = silu_backward(g, z[rows])
            g_b += g.sum(0)
            g_Wv.addmm_(vector[rows].t(), g[:, :half])
            g_Wr.addmm_(g[:, half:].t(), rbf[rows])
            if g_vector is not None:
                torch.mm(g[:, :half], Wv, out=g_vector[rows])
            if g_rbf is not None:
                torch.mm(g[:, half:], Wr, out=g_rbf[rows])
        return None, None, None, g_vector, g_rbf, g_Wv.t(), g_b[:half], g_Wr, g_b[half:]


class NeighbourMean(torch.autograd.Function):
    """Mean over neighbours of h_u e_uv, eq. (8): (N, w) and (E, w) -> (N, w). ``per`` (N, 1) is 1 / neighbours."""

    @staticmethod
    def plain(edge_index, per, h, e, token):
        src, dst = edge_index
        return torch.zeros_like(h).index_add(0, dst, h.index_select(0, src) * e) * per

    @staticmethod
    def forward(ctx, edge_index, per, h, e, token):
        (src, dst), total = edge_index, torch.zeros_like(h)
        for rows in row_blocks(e, e.shape[1]):
            total.index_add_(0, dst[rows], h.index_select(0, src[rows]).mul_(e[rows]))
        ctx.save_for_backward(edge_index, per, h, e)
        return total.mul_(per)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        edge_index, per, h, e = ctx.saved_tensors
        (src, dst), g_h, g = edge_index, torch.zeros_like(h), g * per
        for rows in row_blocks(e, e.shape[1]):
            g_h.index_add_(0, src[rows], g.index_select(0, dst[rows]).mul_(e[rows]))
        return None, None, g_h, None, torch.stack([h, g])
