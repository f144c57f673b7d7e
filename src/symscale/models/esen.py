"""eSEN: message passing with spherical harmonics (appendix C.4; Fu et al., 2025), direct forces."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symscale.cells import CellSpec
from symscale.data.batch import Batch
from symscale.models import so2, so2_fast, so3
from symscale.models.common import (
    GaussianRBF,
    apply_function,
    edge_vectors,
    graph_sum,
    polynomial_envelope,
    row_blocks,
)
from symscale.models.esen_kernels import GridMLP, HarmonicSum, InBlocks, exactly


class RadialStack(nn.Module):
    """The radial MLPs of all layers but for their last Linear: (stack, E, C + 1), the last entry 1.

    They share their inputs [RBF(d), source embedding of z_u, target embedding of z_v], so the first Linears
    are one matrix product over edges (RBF) and two over elements (the embeddings).
    """

    def __init__(self, stack: int, channels: int, num_radial: int, cutoff: float, elements: int):
        super().__init__()
        self.stack = stack
        self.rbf = GaussianRBF(num_radial, cutoff, width=2.0)
        self.source = nn.Embedding(elements, channels)
        self.target = nn.Embedding(elements, channels)
        self.first = nn.Linear(num_radial + 2 * channels, stack * channels)
        self.second_weight = nn.Parameter(torch.empty(stack, channels, channels))  # (stack, fan_out, fan_in)
        self.second_bias = nn.Parameter(torch.empty(stack, channels))
        self.norm_weight = nn.Parameter(torch.ones(2, stack, channels))
        self.norm_bias = nn.Parameter(torch.zeros(2, stack, channels))
        bound = channels**-0.5
        nn.init.uniform_(self.second_weight, -bound, bound)
        nn.init.uniform_(self.second_bias, -bound, bound)

    def forward(self, d: Tensor, z: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        channels = self.source.embedding_dim
        w_rbf, w_source, w_target = self.first.weight.split([len(self.rbf.centres), channels, channels], 1)
        source = F.embedding(z, self.source.weight @ w_source.t())  # (N, stack * C)
        target = F.embedding(z, torch.addmm(self.first.bias, self.target.weight, w_target.t()))

        def hidden(rows: slice, d, source, target, w_rbf, weight, bias, second_weight, second_bias) -> Tensor:
            ends = source.index_select(0, src[rows]).add_(target.index_select(0, dst[rows]))
            rbf = self.rbf(d[rows])
            x = torch.addmm(ends, rbf, w_rbf.t()).view(-1, self.stack, channels)
            x = _norm_act(x, weight[0], bias[0]).transpose(0, 1)  # (stack, rows, C)
            x = torch.baddbmm(second_bias[:, None], x, second_weight.transpose(1, 2))
            x = _norm_act(x, weight[1, :, None], bias[1, :, None])
            return F.pad(x, (0, 1), value=1.0)

        norms = self.norm_weight, self.norm_bias
        tensors = d, source, target, w_rbf, *norms, self.second_weight, self.second_bias
        return exactly(InBlocks, hidden, row_blocks(d, len(w_rbf)), *tensors)


def _norm_act(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU of a LayerNorm that has weights of its own for every member of the stack."""
    return F.silu(torch.addcmul(bias, F.layer_norm(x, x.shape[-1:]), weight))


class EquivariantRMSNorm(nn.Module):
    """x / sqrt(mean square), every degree counting alike; a scale per degree; l = 0 centred and shifted."""

    def __init__(self, lmax: int, channels: int, eps: float = 1e-5):
        super().__init__()
        self.lmax, self.eps = lmax, eps
        self.weight = nn.Parameter(torch.ones(lmax + 1, channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        degree = [l for l in range(lmax + 1) for _ in range(2 * l + 1)]
        self.register_buffer("degree", torch.tensor(degree), persistent=False)
        share = [1 / ((2 * l + 1) * (lmax + 1) * channels) for l in degree]
        first = torch.tensor([[l == 0] for l in degree], dtype=torch.float64)  # (K, 1)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("share", torch.tensor(share, dtype=torch.float64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first.to(x.dtype)
        x = torch.addcmul(x, x[:, :1].mean(-1, keepdim=True), first, value=-1)  # (N, K, C)
        square = (x.square().sum(-1) @ self.share.to(x.dtype))[:, None, None]  # (N, 1, 1)
        x = x * (square + self.eps).rsqrt()
        return torch.addcmul(first * self.bias, x, self.weight.index_select(0, self.degree))


class SO2Convolution(nn.Module):
    """The weights of an SO(2) convolution (eqs. 20-22): one Linear for every |m| <= mmax."""

    def __init__(self, layout: so2.Layout, inputs: int, outputs: int, gates: int = 0):
        super().__init__()
        rows, *others = layout.degrees
        self.m0 = nn.Linear(rows * inputs, rows * outputs + gates)
        self.m = nn.ModuleList(nn.Linear(k * inputs, 2 * k * outputs, bias=False) for k in others)
        for linear in self.m:
            linear.weight.data.mul_(0.5**0.5)  # every output sums a real and an imaginary product

    def tensors(self) -> list[Tensor]:
        """The bias of m = 0, then a matrix for every |m|."""
        return [self.m0.bias, self.m0.weight, *(linear.weight for linear in self.m)]


class Layer(nn.Module):
    """Messages over edges, then a point-wise MLP on a sphere grid; both residual, on normalised features."""

    def __init__(self, layout: so2.Layout, channels: int, grid_hidden: int):
        super().__init__()
        self.layout = layout
        self.norm_edge = EquivariantRMSNorm(layout.lmax, channels)
        self.radial = nn.Linear(channels, sum(layout.degrees) * 2 * channels)
        self.conv1 = SO2Convolution(layout, 2 * channels, layout.hidden, layout.gates)
        self.conv2 = SO2Convolution(layout, layout.hidden, channels)
        self.norm_node = EquivariantRMSNorm(layout.lmax, channels)
        self.grid1 = nn.Linear(channels, grid_hidden, bias=False)
        self.grid2 = nn.Linear(grid_hidden, grid_hidden, bias=False)
        self.grid3 = nn.Linear(grid_hidden, channels, bias=False)

    def forward(
        self, h: Tensor, hidden: Tensor, edges: so2.Edges, grid: so3.SphereGrid, plain: bool
    ) -> Tensor:
        radial = torch.cat([self.radial.weight, self.radial.bias[:, None]], 1)  # hidden ends with a 1
        weights = [radial, *self.conv1.tensors(), *self.conv2.tensors()]
        message = so2.message if plain else so2_fast.message
        h = h + message(self.layout, edges, self.norm_edge(h), hidden, weights)
        return h + self.on_grid(self.norm_node(h), grid)

    def on_grid(self, h: Tensor, grid: so3.SphereGrid) -> Tensor:
        """Coefficients (N, K, C) -> values at the grid's P points -> MLP -> coefficients."""
        matrices = (grid.to_grid.to(h.dtype), grid.from_grid.to(h.dtype))
        return apply_function(GridMLP, h, *matrices, self.grid1.weight, self.grid2.weight, self.grid3.weight)


class ESEN(nn.Module):
    """Energy (G,) and direct forces (N, 3), both normalised, for C = ``width`` channels per coefficient.

    N = 332 C^2 + 105180 C + 15746 parameters at depth 12, lmax 4, mmax 2, hidden 32 (Table 5).
    """

    rotation_equivariant = True
    translation_invariant = True
    symmetric_edges = False

    def __init__(
        self,
        *,
        width: int,
        depth: int = 12,
        lmax: int = 4,
        mmax: int = 2,
        hidden_channels: int = 32,
        cutoff: float = 6.0,
        num_radial: int = 136,
        grid_rings: int | None = None,
        elements: int = 100,
    ):
        super().__init__()
        mmax = min(mmax, lmax)
        self.lmax, self.cutoff = lmax, cutoff
        layout = so2.Layout(lmax, mmax, hidden_channels)
        self.rotations = so3.Wigner(lmax, mmax)
        self.grid = so3.SphereGrid(lmax, grid_rings or lmax + 2)
        self.embedding = nn.Embedding(elements, width)
        self.radial = RadialStack(depth + 1, width, num_radial, cutoff, elements)
        self.edge_degree = nn.Linear(width, (lmax + 1) * width)
        self.layers = nn.ModuleList(Layer(layout, width, hidden_channels) for _ in range(depth))
        self.norm = EquivariantRMSNorm(lmax, width)
        self.energy = nn.Linear(width, 1)
        self.force_weight = nn.Parameter(torch.empty(2, width))  # degrees 0 and 1; only degree 1 is a force
        self.force_bias = nn.Parameter(torch.zeros(1))  # of degree 0: counted in Table 5, without effect
        bound = width**-0.5
        nn.init.uniform_(self.force_weight, -bound, bound)

    @classmethod
    def from_spec(cls, spec: CellSpec) -> ESEN:
        return cls(
            width=spec.width,
            depth=spec.depth,
            lmax=spec.lmax,
            mmax=spec.mmax,
            hidden_channels=spec.hidden_channels,
            cutoff=spec.cutoff,
            num_radial=spec.num_radial,
        )

    def forward(self, data: Batch) -> tuple[Tensor, Tensor]:
        src, dst = data.edge_index
        r_uv, d = edge_vectors(data)
        with torch.autocast(d.device.type, enabled=False):  # rotations stay exact
            wigner = self.rotations(so3.edge_frames(r_uv, d))  # (E, R, K)
        edges = so2.make_edges(src, dst, wigner, polynomial_envelope(d, self.cutoff))
        # The fast kernels give no gradients of positions, and neither autocast nor torch.compile see through them.
        autocast = torch.is_autocast_enabled(data.pos.device.type)
        plain = data.pos.requires_grad or autocast or torch.compiler.is_compiling()
        hidden = self.radial(d, data.z, src, dst).unbind()  # each (E, C + 1)

        h = self.embed_edges(hidden[0], edges, data.pos.shape[0])
        h = torch.cat([h[:, :1] + self.embedding(data.z)[:, None], h[:, 1:]], 1)  # (N, K, C)
        for layer, radial in zip(self.layers, hidden[1:], strict=True):
            h = layer(h, radial, edges, self.grid, plain)
        h = self.norm(h)
        energy = graph_sum(self.energy(h[:, 0]), data)[:, 0]
        return energy, h[:, 1:4] @ self.force_weight[1]

    def embed_edges(self, hidden: Tensor, edges: so2.Edges, atoms: int) -> Tensor:
        """Neighbourhood of every atom as coefficients (N, K, C): radial functions times harmonics."""
        harmonics = edges.back[:, : self.lmax + 1].sum(1)  # (E, K): the rows of m = 0 have one degree each
        sums = exactly(HarmonicSum, harmonics, hidden, edges.dst, atoms)  # (N, K, C + 1)
        # a Linear of the radial functions, alike within a degree, once for every atom instead of every edge
        linear = torch.cat([self.edge_degree.weight, self.edge_degree.bias[:, None]], 1) / 5.0
        linear = linear.unflatten(0, (self.lmax + 1, -1)).index_select(0, self.norm.degree)  # (K, C, C + 1)
        return torch.bmm(sums.transpose(0, 1), linear.transpose(1, 2)).transpose(0, 1)
