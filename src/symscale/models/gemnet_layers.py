"""Blocks of GemNet-OC: scaled activations, residual layers, radial products, triplets and quadruplets.

All activations are SiLU / 0.6 and all sums of two terms are divided by sqrt(2). Those constants are carried along
as Python floats and multiplied into the next (small) weight matrix instead of into (E, w) tensors: a pair
(v, scale) stands for scale * v.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symscale.models.common import apply_function
from symscale.models.gemnet_edges import AtomsToEdges
from symscale.models.gemnet_graph import Graph, Quadruplets
from symscale.models.gemnet_kernels import (
    ACT,
    HALF,
    MessageIn,
    RadialProduct,
    ResidualChain,
)
from symscale.models.gemnet_sums import OuterSum, QuadrupletSum, TripletSum

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


class Residuals(nn.Module):
    """A chain of residual layers x -> (x + ACT SiLU(W2 ACT SiLU(W1 x))) / sqrt(2)."""

    def __init__(self, width: int, count: int):
        super().__init__()
        self.first = nn.ModuleList(dense(width, width) for _ in range(count))
        self.second = nn.ModuleList(dense(width, width) for _ in range(count))

    @property
    def weights(self) -> list[Tensor]:
        layers = zip(self.first, self.second, strict=True)
        return [layer.weight for pair in layers for layer in pair]

    def forward(self, v: Tensor, scale: float) -> Scaled:
        return apply_function(ResidualChain, v, scale, *self.weights), ACT * HALF


def mean_of(a: Scaled, b: Scaled) -> Scaled:
    """(a + b) / sqrt(2)."""
    return torch.add(a[0], b[0], alpha=b[1] / a[1]), a[1] * HALF


class EdgeEmbedding(nn.Module):
    """ACT SiLU(W [h_src, h_dst, m]) with the products for h on nodes; with a chain, (m + chain(that)) / sqrt(2)."""

    def __init__(self, width: int, features: int):
        super().__init__()
        self.splits = [width, width, features]
        self.linear = dense(sum(self.splits), width)

    def forward(self, h: Scaled, m: Scaled, graph: Graph, chain: Residuals | None = None) -> Scaled:
        W_src, W_dst, W_m = self.linear.weight.split(self.splits, dim=1)
        nodes = F.linear(h[0], torch.cat([W_src, W_dst]) * h[1])  # (N, 2 w)
        weights = [] if chain is None else chain.weights
        edges = graph.src, graph.dst
        out = apply_function(AtomsToEdges, m[0], nodes, *edges, W_m * m[1], ACT * HALF / m[1], ACT, *weights)
        return out, ACT if chain is None else m[1] * HALF


class Triplets(nn.Module):
    """Messages b -> a into c -> a, over pairs of edges with a common target (GemNet-OC, triplet interaction)."""

    def __init__(self, width: int, size_in: int, size_out: int, size_rbf: int, size_cbf: int):
        super().__init__()
        self.dense = dense(width, width)
        self.radial = dense(size_rbf, width)
        self.scale_radial = ScaleFactor()
        self.down = dense(width, size_in)
        self.bilinear = dense(size_cbf * size_in, size_out)
        self.scale_sum = ScaleFactor()
        self.up = dense(size_out, width)
        self.up_reverse = dense(size_out, width)

    def forward(self, m: Scaled, rad: Tensor, radial: Tensor, angles: Tensor, graph: Graph) -> list[Tensor]:
        """Rows and weights, two pairs, of the pre-activations (E, w) for an edge and from its reverse.

        ``radial`` (E, count + 1, size_cbf) is R_li(c), ``angles`` (N, K, count^2) is Y_lm(c).
        """
        x = message_in(self, m, rad)  # (E, size_in)
        weight = by_message(self.bilinear.weight * (ACT * self.scale_sum.value), x.shape[1])
        out = apply_function(TripletSum, x, radial, angles, weight, graph)  # (E, size_out)
        if self.scale_sum.fitting:
            degree = graph.sum_at(graph.dst, torch.ones_like(x[:, :1]))[:, 0].index_select(0, graph.dst)
            out = self.scale_sum.fit(out, x * ACT, degree - 1)
        return [out, self.up.weight, out.index_select(0, graph.swap), self.up_reverse.weight]


def by_message(weight: Tensor, size_in: int) -> Tensor:
    """A bilinear weight with columns (basis, size_in) in the order (size_in, basis), whose products are faster."""
    return weight.unflatten(1, (-1, size_in)).transpose(1, 2).flatten(1)


def message_in(block: Triplets | QuadrupletMessages, m: Scaled, rad: Tensor) -> Tensor:
    """What an edge sends, (E, size_in), to be multiplied by ACT."""
    first, scale = block.dense.weight * m[1], block.scale_radial
    if scale.fitting:
        x = F.silu(F.linear(m[0], first)) * ACT
        scale.fit(x * F.linear(rad, block.radial.weight), x)
    weights = first, block.radial.weight * (ACT * scale.value), block.down.weight
    return apply_function(MessageIn, m[0], rad, *weights)


class QuadrupletMessages(nn.Module):
    """Messages d -> b -> a into c -> a with dihedral angles (GemNet-OC, quadruplet interaction; eq. 10)."""

    def __init__(self, width: int, size_in: int, size_out: int, size_rbf: int, size_cbf: int, size_sbf: int):
        super().__init__()
        self.size_in = size_in
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
        """Rows and weights, two pairs, of the pre-activations (E, w) for an edge and from its reverse.

        ``inner`` (N Q K_d, size_cbf) is the basis of d -> b -> a, ``outer`` (E, count^2, size_sbf) the radial part of
        that of c -> a.
        """
        n, k, q = graph.atoms, graph.degree, quads.row.shape[1]
        size_in = self.size_in
        x = message_in(self, m, rad)  # (E, size_in)
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
        x = QuadrupletSum.plain(y, quads) if angles else apply_function(QuadrupletSum, y, quads)
        weight = by_message(self.bilinear.weight * self.scale_sum.value, size_in)
        out = apply_function(OuterSum, x, outer, weight, graph)  # (E, size_out)
        if self.scale_sum.fitting:
            there = quads.inner[..., 0].view(n * q, k) != 0
            used = (quads.dihedral[0] != 0).sum(1) * there  # quadruplets that use each d -> b -> a
            out = self.scale_sum.fit(out, y.view(-1, size_in), used.flatten().to(y.dtype))
        return [out, self.up.weight, out.index_select(0, graph.swap), self.up_reverse.weight]
