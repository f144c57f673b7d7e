"""eSEN's point-wise MLP on a sphere grid as an autograd function that goes through the atoms in blocks.

A grid has many more values than there are coefficients: those of all atoms would leave a CPU's cache between every
two steps. Only pre-activations are kept for the backward pass.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from symscale.models.common import row_blocks

silu_backward = torch.ops.aten.silu_backward


class GridMLP(torch.autograd.Function):
    """Coefficients h (N, K, C) -> values at P points -> W3 SiLU(W2 SiLU(W1 x)) -> coefficients (N, K, C).

    ``to_grid`` (P, K) and ``from_grid`` (K, P) are constants. Points come before atoms, (P, n * C), so that the
    grid's matrices take all atoms of a block in one product.
    """

    @staticmethod
    def plain(h, to_grid, from_grid, W1, W2, W3):
        x = (to_grid @ h.transpose(0, 1).flatten(1)).view(-1, h.shape[2])  # (P * N, C)
        x = F.linear(F.silu(F.linear(F.silu(F.linear(x, W1)), W2)), W3)
        return (from_grid @ x.view(len(to_grid), -1)).view(h.shape[1], *h.shape[::2]).transpose(0, 1)

    @staticmethod
    def forward(ctx, h, to_grid, from_grid, W1, W2, W3):
        points, channels = len(to_grid), h.shape[2]
        h = h.transpose(0, 1).contiguous()  # (K, N, C)
        out, kept = torch.empty_like(h), []
        for rows in row_blocks(h[0], points * len(W1)):
            x = (to_grid @ h[:, rows].flatten(1)).view(-1, channels)  # (P * n, C)
            z1 = torch.mm(x, W1.t())
            z2 = torch.mm(F.silu(z1), W2.t())
            x = torch.mm(F.silu(z2), W3.t(), out=x)
            torch.mm(from_grid, x.view(points, -1), out=out[:, rows].flatten(1))
            kept += [z1, z2]
        ctx.save_for_backward(h, to_grid, from_grid, W1, W2, W3, *kept)
        return out.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        h, to_grid, from_grid, W1, W2, W3, *kept = ctx.saved_tensors
        points, channels = len(to_grid), h.shape[2]
        g = g.transpose(0, 1).contiguous()
        g_h, g_W1, g_W2, g_W3 = (torch.zeros_like(t) for t in (h, W1, W2, W3))
        for i, rows in enumerate(row_blocks(h[0], points * len(W1))):
            z1, z2 = kept[2 * i : 2 * i + 2]
            g_x = (from_grid.t() @ g[:, rows].flatten(1)).view(-1, channels)
            g_W3.addmm_(g_x.t(), F.silu(z2))
            g2 = silu_backward(torch.mm(g_x, W3), z2)
            g_W2.addmm_(g2.t(), F.silu(z1))
            g1 = silu_backward(torch.mm(g2, W2), z1)
            x = (to_grid @ h[:, rows].flatten(1)).view(-1, channels)
            g_W1.addmm_(g1.t(), x)
            torch.mm(g1, W1, out=x)
            torch.mm(to_grid.t(), x.view(points, -1), out=g_h[:, rows].flatten(1))
        return g_h.transpose(0, 1), None, None, g_W1, g_W2, g_W3
