"""Row-wise functions in blocks that fit a CPU's cache, recomputed in the backward pass instead of remembered."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def blockwise(function: Callable, block: int, rows: list[Tensor], shared: list[Tensor]) -> Tensor:
    """``function(*rows, *shared)``, where row i of the result depends on row i of every tensor of ``rows`` only.

    On a CPU it is evaluated on ``block`` rows at a time and keeps none of its intermediate results; it then has
    first derivatives only. Elsewhere it is simply called.
    """
    return _Blockwise.apply(function, block, len(rows), *rows, *shared)


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, block, count, *tensors):
        ctx.function, ctx.block, ctx.count = function, block, count
        ctx.save_for_backward(*tensors)
        rows, shared = tensors[:count], tensors[count:]
        return torch.cat(
            [function(*part, *shared) for part in zip(*(t.split(block) for t in rows), strict=True)]
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        tensors, count, needed = ctx.saved_tensors, ctx.count, ctx.needs_input_grad[3:]
        parts = zip(*(t.split(ctx.block) for t in tensors[:count]), strict=True)
        shared = [t.detach().requires_grad_(n) for t, n in zip(tensors[count:], needed[count:], strict=True)]
        row_grads, shared_grads = [], [torch.zeros_like(t) if t.requires_grad else None for t in shared]
        for part, d_out in zip(parts, grad.split(ctx.block), strict=True):
            part = [t.detach().requires_grad_(n) for t, n in zip(part, needed[:count], strict=True)]
            with torch.enable_grad():
                out = ctx.function(*part, *shared)
            inputs = [t for t in (*part, *shared) if t.requires_grad]
            found = iter(torch.autograd.grad(out, inputs, d_out))
            row_grads.append([next(found) if t.requires_grad else None for t in part])
            for total in shared_grads:
                if total is not None:
                    total.add_(next(found))
        rows = [
            torch.cat(g) if n else None for g, n in zip(zip(*row_grads, strict=True), needed, strict=False)
        ]
        return None, None, None, *rows, *shared_grads
