"""``so2.message`` for constant frames (direct forces): about the same arithmetic in a fraction of the memory.

Edges go through in blocks small enough for a CPU's second-level cache, on buffers that are allocated once (a GPU
takes all edges as one block). Of the intermediate results only the first convolution's output is kept for the
backward pass, which computes the cheap rest again. All heavy work is plain torch matrix products, so FLOP counters
see it. No second derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from symscale.models.so2 import Edges, Layout

CPU_BLOCK = 384  # edges


def message(layout: Layout, edges: Edges, h: Tensor, hidden: Tensor, weights: list[Tensor]) -> Tensor:
    """As ``so2.message``; no gradient for ``edges``."""
    return _Message.apply(layout, edges, h, hidden, *weights)


class _Message(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layout, edges, h, hidden, *weights):
        w_radial, b_radial, bias1, bias2, *matrices = (w.detach() for w in weights)
        transposed = [w.t().contiguous() for w in matrices]  # MKL is faster on these
        first, second = transposed[: len(matrices) // 2], transposed[len(matrices) // 2 :]
        out, kept, buffers = torch.zeros_like(h), [], {}
        for wigner, back, envelope, ends, _, dst, hid in _blocks(edges, hidden):
            n = len(dst)
            if n not in buffers:
                buffers[n] = _Buffers(layout, h, n)
            b = buffers[n]
            b.rotate_in(h, ends, wigner)
            torch.addmm(b_radial, hid, w_radial.t(), out=b.r)
            torch.mul(b.x, b.r, out=b.x)
            u = h.new_empty(n, layout.rows * layout.hidden + layout.gates)
            _convolve(b.x_m, bias1, first, layout.columns(u, layout.gates))
            b.gate(u)
            _convolve(b.act_m, bias2, second, b.v_m)
            torch.mul(b.v, envelope, out=b.v)
            out.index_add_(0, dst, torch.bmm(back, b.v_rows, out=b.y))
            kept.append(u)
        ctx.save_for_backward(h, hidden, *weights, *kept)
        ctx.layout, ctx.edges, ctx.weights = layout, edges, len(weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        layout, edges = ctx.layout, ctx.edges
        h, hidden, *saved = ctx.saved_tensors
        weights, kept = saved[: ctx.weights], saved[ctx.weights :]
        w_radial, b_radial, _, _, *matrices = weights
        half, channels = len(matrices) // 2, h.shape[2]
        d_h, d_hidden, buffers = torch.zeros_like(h), torch.empty_like(hidden), {}
        d_weights = [torch.zeros_like(w) for w in weights]
        d_w_radial, d_b_radial, d_bias1, d_bias2, *d_matrices = d_weights
        parts = zip(_blocks(edges, hidden), d_hidden.split(_block(hidden)), kept, strict=True)
        for (wigner, back, envelope, ends, src, dst, hid), d_hid, u in parts:
            n = len(dst)
            if n not in buffers:
                buffers[n] = _Buffers(layout, h, n), _Gradients(layout, h, n)
            b, d = buffers[n]
            torch.index_select(grad, 0, dst, out=b.y)
            torch.bmm(wigner, b.y, out=b.v_rows)
            torch.mul(b.v, envelope, out=b.v)
            b.gate(u)
            _convolve_backward(b.act_m, b.v_m, matrices[half:], d.act_m, d_bias2, d_matrices[half:])
            d.gate(b, u)
            b.rotate_in(h, ends, wigner)
            torch.addmm(b_radial, hid, w_radial.t(), out=b.r)
            torch.mul(b.x, b.r, out=d.scaled)
            _convolve_backward(d.scaled_m, d.u_m, matrices[:half], d.x_m, d_bias1, d_matrices[:half])
            torch.mul(b.x, d.x, out=b.x)  # the radial weights' gradient
            torch.mm(b.x, w_radial, out=d_hid)
            d_w_radial.addmm_(b.x.t(), hid)
            d_b_radial.add_(b.x.sum(0))
            torch.mul(d.x, b.r, out=d.x)
            torch.bmm(back, d.x_rows, out=b.ends)
            d_h.index_add_(0, src, b.y.copy_(b.ends[..., :channels]))
            d_h.index_add_(0, dst, b.y.copy_(b.ends[..., channels:]))
        return None, None, d_h, d_hidden, *d_weights


class _Buffers:
    """Room for n edges, and views of it for every |m| (names ending in _m) or coefficient (_rows)."""

    def __init__(self, layout: Layout, h: Tensor, n: int):
        coefficients, channels, rows = *h.shape[1:], layout.rows
        self.layout = layout
        self.ends = h.new_empty(n, coefficients, 2 * channels)
        self.x = h.new_empty(n, rows * 2 * channels)
        self.x_m, self.x_rows = layout.columns(self.x), self.x.unflatten(1, (rows, -1))
        self.r = torch.empty_like(self.x)
        self.act = h.new_empty(n, rows * layout.hidden)
        self.act_m, self.act_gated = layout.columns(self.act), layout.gated(self.act, layout.hidden)
        self.squashed = h.new_empty(n, layout.hidden + layout.gates)
        self.gates = self.squashed[:, layout.hidden :]
        self.shared = [self.gates[:, None, i * layout.hidden :] for i in range(len(self.act_gated))]
        self.v = h.new_empty(n, rows * channels)
        self.v_m, self.v_rows = layout.columns(self.v), self.v.unflatten(1, (rows, -1))
        self.y = h.new_empty(n, coefficients, channels)

    def rotate_in(self, h: Tensor, ends: Tensor, wigner: Tensor) -> None:
        """x = features of both ends in the edge's frame, (n, R * 2C)."""
        torch.index_select(h.view(-1, h.shape[2]), 0, ends, out=self.ends.view(-1, h.shape[2]))
        torch.bmm(wigner, self.ends, out=self.x_rows)

    def gate(self, u: Tensor) -> None:
        """act = SiLU of the scalars, the rest times a sigmoid per degree and channel."""
        size, stop = self.layout.hidden, self.squashed.shape[1]
        torch.sigmoid(u[:, :stop], out=self.squashed)
        torch.mul(u[:, :size], self.squashed[:, :size], out=self.act[:, :size])
        for part, gate, out in zip(self.layout.gated(u, stop), self.shared, self.act_gated, strict=True):
            torch.mul(part, gate, out=out)


class _Gradients:
    """The further room that a backward pass needs."""

    def __init__(self, layout: Layout, h: Tensor, n: int):
        self.layout = layout
        self.act = h.new_empty(n, layout.rows * layout.hidden)
        self.act_m, self.act_gated = layout.columns(self.act), layout.gated(self.act, layout.hidden)
        self.u = h.new_empty(n, layout.rows * layout.hidden + layout.gates)
        self.u_m = layout.columns(self.u, layout.gates)
        self.u_gated = layout.gated(self.u, layout.hidden + layout.gates)
        self.gates = h.new_empty(n, layout.gates)
        self.x, self.scaled = (h.new_empty(n, layout.rows * 2 * h.shape[2]) for _ in range(2))
        self.x_m, self.scaled_m = layout.columns(self.x), layout.columns(self.scaled)
        self.x_rows = self.x.unflatten(1, (layout.rows, -1))

    def gate(self, b: _Buffers, u: Tensor) -> None:
        """u = gradient of the first convolution's output, from that of ``act``."""
        size, stop = self.layout.hidden, self.layout.hidden + self.layout.gates
        scalars = slice(0, size)
        aten = torch.ops.aten
        aten.silu_backward.grad_input(self.act[:, scalars], u[:, scalars], grad_input=self.u[:, scalars])
        self.gates.zero_()
        parts = zip(self.layout.gated(u, stop), self.act_gated, self.u_gated, b.shared, strict=True)
        for i, (part, d_act, d_u, gate) in enumerate(parts):
            torch.mul(d_act, gate, out=d_u)
            d_gate = self.gates[:, i * size :]
            for copy in range(part.shape[1]):
                d_gate.addcmul_(part[:, copy], d_act[:, copy])
        aten.sigmoid_backward.grad_input(self.gates, b.gates, grad_input=self.u[:, size:stop])


def _block(hidden: Tensor) -> int:
    """Edges in a block, all blocks alike but for the last."""
    edges = max(len(hidden), 1)
    return -(-edges // -(-edges // CPU_BLOCK)) if hidden.device.type == "cpu" else edges


def _blocks(edges: Edges, hidden: Tensor):
    """For every block: Wigner matrices, their transposes, envelope (n, 1), ends, src, dst, radial input."""
    if not len(hidden):
        return []
    size = _block(hidden)
    wigner = edges.wigner.split(size)
    return zip(
        wigner,
        (w.transpose(1, 2) for w in wigner),
        edges.envelope[:, None].split(size),
        (ends.flatten() for ends in edges.ends.split(size)),
        edges.src.split(size),
        edges.dst.split(size),
        hidden.split(size),
        strict=True,
    )


def _convolve(x_m: list[Tensor], bias: Tensor, transposed: list[Tensor], out_m: list[Tensor]) -> None:
    torch.addmm(bias, x_m[0], transposed[0], out=out_m[0])
    for x, matrix, out in zip(x_m[1:], transposed[1:], out_m[1:], strict=True):
        torch.mm(x, matrix, out=out)


def _convolve_backward(x_m, dy_m, matrices, dx_m, d_bias, d_matrices) -> None:
    """Writes the gradient of the input to dx_m, adds those of bias and matrices to d_bias and d_matrices."""
    d_bias.add_(dy_m[0].sum(0))
    for x, dy, matrix, dx, d_matrix in zip(x_m, dy_m, matrices, dx_m, d_matrices, strict=True):
        d_matrix.addmm_(dy.t(), x)
        torch.mm(dy, matrix, out=dx)
