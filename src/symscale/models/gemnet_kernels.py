"""Row-wise parts of GemNet-OC as autograd functions that keep little and stay in a CPU's cache.

Each states in ``plain`` what it computes; ``forward`` computes the same in blocks of rows (``row_blocks``; one block
on a GPU), and ``backward`` computes again from pre-activations what is cheap instead of having kept it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from symscale.models.common import row_blocks, silu_backward

ACT = 1 / 0.6  # scaled SiLU keeps unit variance
HALF = 1 / math.sqrt(2)
silu_into, silu_backward_into = torch.ops.aten.silu.out, torch.ops.aten.silu_backward.grad_input


def block_buffer(x: Tensor, width: int, columns: int | None = None) -> Tensor:
    """Room for one block of ``row_blocks(x, width)``: written again for every block, it stays in cache."""
    return x.new_empty(row_blocks(x, width)[0].stop, columns or width)


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
        for factor, W1, W2 in chain_steps(scale, weights):
            v = F.silu(F.linear(F.silu(F.linear(v, W1)), W2)) + factor * v
        return v

    @staticmethod
    def forward(ctx, v, scale, *weights):
        steps, z = transposed(chain_steps(scale, weights)), tensors_like(v, len(weights))
        out, buffer = torch.empty_like(v), block_buffer(v, v.shape[1])
        for rows in row_blocks(v, v.shape[1]):
            run_chain(steps, v[rows], rows_of(rows, z), *rows_of(rows, [buffer], here=True), out[rows])
        ctx.save_for_backward(v, *z, *weights)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        v, *rest = ctx.saved_tensors
        z, weights = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        steps = chain_steps(ctx.scale, weights)
        g_v, g_weights = torch.empty_like(v), [torch.zeros_like(W) for W in weights]
        buffers = [block_buffer(v, v.shape[1]) for _ in range(len(steps) + 1)]
        for rows in row_blocks(v, v.shape[1]):
            room = rows_of(rows, buffers, here=True)
            chain_backward(steps, g[rows], v[rows], rows_of(rows, z), room, g_weights, g_v[rows])
        return g_v, None, *unscaled(steps, g_weights)


def chain_steps(scale: float, weights) -> list[tuple[float, Tensor, Tensor]]:
    """Of every residual layer: scale / ACT of its input, and both matrices times the scales of theirs."""
    steps = []
    for W1, W2 in zip(weights[::2], weights[1::2], strict=True):
        steps.append((scale / ACT, W1 * scale, W2 * ACT))
        scale = ACT * HALF
    return steps


def transposed(steps):
    return [(factor, columns(W1), columns(W2)) for factor, W1, W2 in steps]


def unscaled(steps, g_weights: list[Tensor], scale: float = 1.0) -> list[Tensor]:
    """Gradients of the weights from those of ``chain_steps``'s, times ``scale``."""
    for k, (factor, _, _) in enumerate(steps):
        g_weights[2 * k].mul_(factor * ACT * scale)
        g_weights[2 * k + 1].mul_(ACT * scale)
    return g_weights


def tensors_like(x: Tensor, count: int, width: int | None = None) -> list[Tensor]:
    """Tensors to keep. Not one large one: malloc holds on to less than 32 MB, so that pages cost no new faults."""
    return [x.new_empty(x.shape[0], width or x.shape[1]) for _ in range(count)]


def rows_of(rows: slice, tensors, here: bool = False) -> list[Tensor]:
    """Those rows of every tensor; of buffers, which are ``here``, as many first ones."""
    return [t[: rows.stop - rows.start] if here else t[rows] for t in tensors]


def run_chain(steps, x: Tensor, z: list[Tensor], a: Tensor, out: Tensor) -> Tensor:
    """One block of rows through a chain of ``transposed`` steps: x -> out; pre-activations into ``z``."""
    for k, (factor, W1, W2) in enumerate(steps):
        torch.mm(x, W1, out=z[2 * k])
        torch.mm(silu_into(z[2 * k], out=a), W2, out=z[2 * k + 1])
        x = torch.add(silu_into(z[2 * k + 1], out=a), x, alpha=factor, out=out)
    return out


def chain_inputs(steps, x: Tensor, z: list[Tensor], room: list[Tensor]) -> list[Tensor]:
    """x and the results of the first layers, one for each tensor of ``room``, computed again."""
    inputs = [x]
    for k, y in enumerate(room):
        silu_into(z[2 * k + 1], out=y)
        inputs.append(y.add_(inputs[-1], alpha=steps[k][0]))
    return inputs


def chain_backward(steps, g: Tensor, x: Tensor | list[Tensor], z, room, g_weights, out: Tensor) -> Tensor:
    """Gradient ``out`` of one block's input ``x`` from that of its result; adds to those of the matrices.

    ``room``: buffers, two and one for every step after the first. ``x`` may be a list, all steps' inputs.
    """
    a, b, *inner = room
    inputs = x if isinstance(x, list) else chain_inputs(steps, x, z, inner)
    for k, (factor, W1, W2) in reversed(list(enumerate(steps))):
        z1, z2 = z[2 * k], z[2 * k + 1]
        g2 = silu_backward_into(g, z2, grad_input=a)
        g_weights[2 * k + 1].addmm_(g2.t(), silu_into(z1, out=b))
        g1 = silu_backward_into(torch.mm(g2, W2, out=b), z1, grad_input=a)
        g_weights[2 * k].addmm_(g1.t(), inputs[k])
        g = torch.addmm(g, g1, W1, beta=factor, out=out)
    return out


def radial_backward(g, x, rad, W, W_columns, g_x, b: Tensor, g_rad, g_W) -> None:
    """Gradients of x * (rad W^T) for a block of rows from that of the product: those of x and ``rad`` are written,
    that of W is added to. ``b`` is room for a block and may be ``g``.
    """
    torch.mm(rad, W_columns, out=g_x).mul_(g)
    torch.mul(g, x, out=b)
    torch.mm(b, W, out=g_rad)
    g_W.addmm_(b.t(), rad)


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
        buffer = block_buffer(x, x.shape[1])
        for rows in row_blocks(x, x.shape[1]):
            (b,) = rows_of(rows, [buffer], here=True)
            radial_backward(g[rows], x[rows], rad[rows], W, W.t(), g_x[rows], b, g_rad[rows], g_W)
        return g_x, g_rad, g_W


class MessageIn(torch.autograd.Function):
    """SiLU(W_down (SiLU(W x) * (rad W_rad^T))): (E, w) and (E, RBF) -> (E, size_in)."""

    @staticmethod
    def plain(x, rad, W, W_rad, W_down):
        return F.silu(F.linear(F.silu(F.linear(x, W)) * F.linear(rad, W_rad), W_down))

    @staticmethod
    def forward(ctx, x, rad, W, W_rad, W_down):
        (z1,), (z2, out) = tensors_like(x, 1), tensors_like(x, 2, W_down.shape[0])
        across = [columns(weight) for weight in (W, W_rad, W_down)]
        buffers = [block_buffer(x, x.shape[1]) for _ in range(2)]
        for rows in row_blocks(x, x.shape[1]):
            a, embedded = rows_of(rows, buffers, here=True)
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
            a, embedded, g_y, b = rows_of(rows, buffers, here=True)
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
