"""Blocks of GemNet-OC: scaled activations, residual layers, radial products, triplets and quadruplets.

All activations are SiLU / 0.6 and all sums of two terms are divided by sqrt(2). Those constants are carried along
as Python floats and multiplied into the next (small) weight matrix instead of into (E, w) tensors: a pair
(v, scale) stands for scale * v.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from symscale.models.common import apply_function
from symscale.models.gemnet_graph import Graph, Quadruplets

ACT = 1 / 0.6  # scaled SiLU keeps unit variance
HALF = 1 / math.sqrt(2)
silu_backward = torch.ops.aten.silu_backward

Scaled = tuple[Tensor, float]


def he_orthogonal_(weight: Tensor) -> None:
    """Orthogonal, then every row to mean 0 and variance 1 / fan_in (GemNet's initialisation)."""
    nn.init.orthogonal_(weight)
    with torch.no_grad():
        variance, mean = torch.var_mean(weight, dim=1, keepdim=True) if weight.shape[1] > 1 else (1.0, 0.0)
        weight.sub_(mean).div_((variance + 1e-6) ** 0.5).mul_(weight.shape[1] ** -0.5)


def dense(features_in: int, features_out: int) -> nn.Linear:
    """A Linear without bias."""
    layer = nn.Linear(features_in, features_out, bias=False)
    he_orthogonal_(layer.weight)
    return layer


def spread(layer: nn.Linear, functions: int) -> nn.Linear:
    """The layer with weights divided by sqrt(functions): its output is summed over so many angular functions."""
    with torch.no_grad():
        layer.weight.div_(math.sqrt(functions))
    return layer


class ScaleFactor(nn.Module):
    """A constant that keeps the variance of activations; set once, before training, by GemNetOC.calibrate."""

    def __init__(self):
        super().__init__()
        self.register_buffer("value", torch.ones(()))
        self.fitting = False

    def fit(self, out: Tensor, reference: Tensor, weight: Tensor | None = None) -> Tensor:
        """While calibrating: value = sqrt(var reference / var out), and ``out`` times it; else ``out`` as is.

        Variances are over rows, averaged over columns. ``weight`` says how often a row of ``reference`` counts.
        """
        if not self.fitting:
            return out
        if weight is None:
            weight = reference.new_ones(reference.shape[0])
        share = (weight / weight.sum().clamp(min=1))[:, None]
        mean = (share * reference).sum(0)
        wanted = (share * (reference - mean).square()).sum(0).mean()
        found = out.var(dim=0, correction=0).mean()
        usable = (wanted > 0) & (found > 0)
        self.value.copy_(torch.where(usable, (wanted / torch.where(usable, found, 1)).sqrt(), 1))
        return out * self.value


class ResidualStep(torch.autograd.Function):
    """SiLU(W2 ACT SiLU(W1 scale v)) + scale / ACT * v: a residual layer's result divided by ACT / sqrt(2)."""

    @staticmethod
    def forward(ctx, v, W1, W2, scale):
        z1 = torch.mm(v, (W1 * scale).t())
        a1 = F.silu(z1)
        z2 = torch.mm(a1, (W2 * ACT).t())
        ctx.save_for_backward(v, z1, a1, z2, W1, W2)
        ctx.scale = scale
        return F.silu(z2).add_(v, alpha=scale / ACT)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        v, z1, a1, z2, W1, W2 = ctx.saved_tensors
        g2 = silu_backward(g, z2)
        g_W2 = torch.mm(g2.t(), a1).mul_(ACT)
        g1 = silu_backward(torch.mm(g2, W2 * ACT), z1)
        g_W1 = torch.mm(g1.t(), v).mul_(ctx.scale)
        g_v = torch.mm(g1, W1 * ctx.scale).add_(g, alpha=ctx.scale / ACT)
        return g_v, g_W1, g_W2, None


class Residuals(nn.Module):
    """A chain of residual layers x -> (x + ACT SiLU(W2 ACT SiLU(W1 x))) / sqrt(2)."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.first = nn.ModuleList(dense(width, width) for _ in range(count))
        self.second = nn.ModuleList(dense(width, width) for _ in range(count))

    def forward(self, v: Tensor, scale: float) -> Scaled:
        for first, second in zip(self.first, self.second, strict=True):
            v, scale = apply_function(ResidualStep, v, first.weight, second.weight, scale), ACT * HALF
        return v, scale


def mean_of(a: Scaled, b: Scaled) -> Scaled:
    """(a + b) / sqrt(2)."""
    return torch.add(a[0], b[0], alpha=b[1] / a[1]), a[1] * HALF


class RadialProduct(torch.autograd.Function):
    """x * (rad W^T): (E, w)."""

    @staticmethod
    def forward(ctx, x, rad, W):
        embedded = torch.mm(rad, W.t())
        ctx.save_for_backward(x, rad, W, embedded)
        return embedded * x

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, rad, W, embedded = ctx.saved_tensors
        g_embedded = g * x
        return g * embedded, torch.mm(g_embedded, W), torch.mm(g_embedded.t(), rad)


class RadialSum(torch.autograd.Function):
    """Sum over the edges into each atom of x * (rad W^T): (N, w)."""

    @staticmethod
    def forward(ctx, x, rad, W, graph):
        embedded = torch.mm(rad, W.t())
        ctx.save_for_backward(x, rad, W, embedded)
        ctx.graph = graph
        return graph.sum_at(graph.dst, embedded * x)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, rad, W, embedded = ctx.saved_tensors
        g = g.index_select(0, ctx.graph.dst)
        g_x = embedded * g
        g_embedded = g.mul_(x)
        return g_x, torch.mm(g_embedded, W), torch.mm(g_embedded.t(), rad), None


class AddAtoms(torch.autograd.Function):
    """z + source[src] + target[dst]: (E, w) from z (E, w) and [source, target] (N, 2 w)."""

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


class SiluSum(torch.autograd.Function):
    """SiLU(first) + factor * (SiLU(a) + SiLU(b) + ...)."""

    @staticmethod
    def forward(ctx, factor, first, *others):
        ctx.save_for_backward(first, *others)
        ctx.factor = factor
        out = F.silu(first)
        for z in others:
            out.add_(F.silu(z), alpha=factor)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        first, *others = ctx.saved_tensors
        scaled = g * ctx.factor
        return None, silu_backward(g, first), *(silu_backward(scaled, z) for z in others)


class EdgeEmbedding(nn.Module):
    """SiLU(W [h_src, h_dst, m]) with the products for h on nodes; returns a tensor of scale ACT."""

    def __init__(self, width: int, features: int):
        super().__init__()
        self.splits = [width, width, features]
        self.linear = dense(sum(self.splits), width)

    def forward(self, h: Scaled, m: Scaled, graph: Graph) -> Scaled:
        W_src, W_dst, W_m = self.linear.weight.split(self.splits, dim=1)
        nodes = F.linear(h[0], torch.cat([W_src, W_dst]) * h[1])  # (N, 2 w)
        return F.silu(apply_function(AddAtoms, F.linear(m[0], W_m * m[1]), nodes, graph.src, graph.dst)), ACT


class Triplets(nn.Module):
    """Messages b -> a into c -> a, over pairs of edges with a common target (GemNet-OC, triplet interaction)."""

    def __init__(self, width: int, size_in: int, size_out: int, size_rbf: int, size_cbf: int):
        super().__init__()
        self.sizes = size_out, size_cbf, size_in
        self.dense = dense(width, width)
        self.radial = dense(size_rbf, width)
        self.scale_radial = ScaleFactor()
        self.down = dense(width, size_in)
        self.bilinear = dense(size_cbf * size_in, size_out)
        self.scale_sum = ScaleFactor()
        self.up = dense(size_out, width)
        self.up_reverse = dense(size_out, width)

    def forward(self, m: Scaled, rad: Tensor, angular: Tensor, graph: Graph) -> list[Tensor]:
        """Pre-activations (E, w) for an edge and from its reverse.

        ``angular`` (N, K_c, K_b i) holds sum_l R_il(c) Y_l(c, b), the radial and angular basis in one, which all
        layers share. The bilinear weights act before the sum over b: then no (E, i, size_in) tensor is formed.
        """
        n, k = graph.atoms, graph.degree
        size_out, size_cbf, size_in = self.sizes
        x = F.silu(F.linear(m[0], self.dense.weight * m[1]))
        y = apply_function(RadialProduct, x, rad, self.radial.weight * (ACT * self.scale_radial.value))
        y = self.scale_radial.fit(y, x * ACT)
        x = F.silu(F.linear(y, self.down.weight))  # (E, size_in)
        weight = self.bilinear.weight.view(size_out, size_cbf, size_in).permute(2, 1, 0).flatten(1)
        padded = graph.pad(x).view(n * k, size_in)
        values = torch.mm(padded, weight * (ACT * self.scale_sum.value))  # (N K, i size_out)
        x_sum = torch.bmm(angular, values.view(n, k * size_cbf, size_out)).view(n * k, size_out)
        if self.scale_sum.fitting:
            degree = graph.sum_at(graph.dst, torch.ones_like(x[:, :1]))[:, 0].index_select(0, graph.dst)
            rows = x_sum.index_select(0, graph.slot)
            self.scale_sum.fit(rows, x * ACT, degree - 1)
            x_sum = x_sum * self.scale_sum.value
        out = x_sum.index_select(0, graph.slot)
        reverse = x_sum.index_select(0, graph.slot.index_select(0, graph.swap))
        return [F.linear(out, self.up.weight), F.linear(reverse, self.up_reverse.weight)]


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


class QuadrupletMessages(nn.Module):
    """Messages d -> b -> a into c -> a with dihedral angles (GemNet-OC, quadruplet interaction; eq. 10)."""

    def __init__(self, width: int, size_in: int, size_out: int, size_rbf: int, size_cbf: int, size_sbf: int):
        super().__init__()
        self.sizes = size_out, size_sbf, size_in
        self.dense = dense(width, width)
        self.radial = dense(size_rbf, width)
        self.scale_radial = ScaleFactor()
        self.down = dense(width, size_in)
        self.circular = dense(size_cbf, size_in)
        self.scale_circular = ScaleFactor()
        self.bilinear = dense(size_sbf * size_in, size_out)
        self.scale_sum = ScaleFactor()
        self.up = dense(size_out, width)
        self.up_reverse = dense(size_out, width)

    def forward(
        self, m: Scaled, rad: Tensor, inner: Tensor, outer: Tensor, quads: Quadruplets, graph: Graph
    ) -> list[Tensor]:
        """Pre-activations (E, w) for an edge and from its reverse.

        ``inner`` (N Q K_d, size_cbf) is the basis of d -> b -> a, ``outer`` (N K_c, size_sbf, count^2) the
        radial part of that of c -> a.
        """
        n, k, q = graph.atoms, graph.degree, quads.row.shape[1]
        _, size_sbf, size_in = self.sizes
        x = F.silu(F.linear(m[0], self.dense.weight * m[1]))
        y = apply_function(RadialProduct, x, rad, self.radial.weight * (ACT * self.scale_radial.value))
        y = self.scale_radial.fit(y, x * ACT)
        x = F.silu(F.linear(y, self.down.weight))  # (E, size_in)
        rows = graph.pad(x).index_select(0, quads.row.flatten()).view(n * q * k, size_in)
        y = apply_function(
            RadialProduct, rows, inner, self.circular.weight * (ACT * self.scale_circular.value)
        )
        if self.scale_circular.fitting:
            there = (
                quads.inner[..., 0].flatten() != 0
            )  # the triplets d -> b -> a; calibration may ask for sizes
            self.scale_circular.fit(y[there], rows[there] * ACT)
            y = y * self.scale_circular.value
        angles = quads.dihedral[-1].requires_grad
        y = y.view(n, q, k, size_in)
        x = (
            quadruplet_sum(y, quads.polar, quads.dihedral)
            if angles
            else apply_function(QuadrupletSum, y, quads)
        )
        x = torch.bmm(outer, x).view(n * k, size_sbf * size_in)
        x_sum = F.linear(x, self.bilinear.weight * self.scale_sum.value)  # (N K_c, size_out)
        if self.scale_sum.fitting:
            there = quads.inner[..., 0].view(n * q, k) != 0
            weight = (quads.dihedral[0] != 0).sum(1) * there  # quadruplets that use each d -> b -> a
            self.scale_sum.fit(
                x_sum.index_select(0, graph.slot), y.view(-1, size_in), weight.flatten().to(y.dtype)
            )
            x_sum = x_sum * self.scale_sum.value
        out = x_sum.index_select(0, graph.slot)
        reverse = x_sum.index_select(0, graph.slot.index_select(0, graph.swap))
        return [F.linear(out, self.up.weight), F.linear(reverse, self.up_reverse.weight)]
