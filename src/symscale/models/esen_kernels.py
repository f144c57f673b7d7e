"""What eSEN does besides its messages, as autograd functions that go through edges or atoms in blocks.

On a CPU a block's values stay in cache from one step to the next; those of all edges, or of the sphere grids of all
atoms, would leave it between every two steps. Elsewhere there is one block.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from symscale.models.common import apply_function, row_blocks, scatter_sum, silu_backward


def exactly(function: type[torch.autograd.Function], *args) -> Tensor:
    """``apply_function``, but under autocast the plain form: what goes in, distances and harmonics, stays exact, and
    only products are rounded. bfloat16 has steps of 1/32 Angstrom at 5 Angstrom, a third of a Gaussian's width.
    """
    device = next(a.device.type for a in args if isinstance(a, Tensor))
    return function.plain(*args) if torch.is_autocast_enabled(device) else apply_function(function, *args)


class InBlocks(torch.autograd.Function):
    """``function(rows, *tensors)``, (..., rows, c), for every block of rows; all side by side, (..., E, c).

    Nothing is kept: the backward pass computes a block again, while it is in cache, and takes its gradients there.
    The products that this repeats count as FLOPs.
    """

    @staticmethod
    def plain(function, blocks, *tensors):
        return torch.cat([function(rows, *tensors) for rows in blocks], -2)

    @staticmethod
    def forward(ctx, function, blocks, *tensors):
        ctx.function, ctx.blocks = function, blocks
        ctx.save_for_backward(*tensors)
        return InBlocks.plain(function, blocks, *tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        needed = ctx.needs_input_grad[2:]
        tensors = [t.detach().requires_grad_(n) for t, n in zip(ctx.saved_tensors, needed, strict=True)]
        wanted = [t for t in tensors if t.requires_grad]
        sums = [torch.zeros_like(t) for t in wanted]
        for rows in ctx.blocks:
            with torch.enable_grad():
                out = ctx.function(rows, *tensors)
            for total, part in zip(sums, torch.autograd.grad(out, wanted, g[..., rows, :]), strict=True):
                total.add_(part)
        found = iter(sums)
        return None, None, *(next(found) if n else None for n in needed)


class HarmonicSum(torch.autograd.Function):
    """Sum over the edges into each atom of Y_k hidden_c: (E, K) and (E, c) -> (N, K, c)."""

    @staticmethod
    def plain(harmonics, hidden, dst, atoms):
        return scatter_sum(harmonics[:, :, None] * hidden[:, None], dst, atoms)

    @staticmethod
    def forward(ctx, harmonics, hidden, dst, atoms):
        ctx.save_for_backward(harmonics, hidden, dst)
        out = hidden.new_zeros(atoms, harmonics.shape[1], hidden.shape[1])
        for rows in row_blocks(hidden, harmonics.shape[1] * hidden.shape[1]):
            out.index_add_(0, dst[rows], harmonics[rows, :, None] * hidden[rows, None])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        harmonics, hidden, dst = ctx.saved_tensors
        g_harmonics = torch.empty_like(harmonics) if ctx.needs_input_grad[0] else None
        g_hidden = torch.empty_like(hidden)
        for rows in row_blocks(hidden, harmonics.shape[1] * hidden.shape[1]):
            there = g.index_select(0, dst[rows])  # (rows, K, c)
            g_hidden[rows] = torch.bmm(harmonics[rows, None], there)[:, 0]
            if g_harmonics is not None:
                g_harmonics[rows] = torch.bmm(there, hidden[rows, :, None])[..., 0]
        return g_harmonics, g_hidden, None, None


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
