"""MC-EGNN: invariant node features and E equivariant vector channels per atom (appendix C.3).

The equations are those of ``tests/models/egnn_oracle.py``; here they are arranged for speed:

- the edge MLP's first Linear acts on the concatenation [h_u, h_v, |X_uv|^2, RBF]; its parts for h_u and h_v are
  products on nodes, gathered per edge;
- eq. (12) sums X_uv Phi_x(m_uv) with Phi_x linear in s = SiLU(W m + b). Summing the outer products X_uv s first
  leaves Phi_x's weights to act once per atom, and no E x E matrix per edge is ever formed;
- the whole edge part is one autograd function that keeps three pre-activations per edge and goes through the edges
  in blocks that stay in a CPU's cache.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symscale.cells import CellSpec
from symscale.data.batch import Batch
from symscale.models.common import (
    GaussianRBF,
    GraphNorm,
    apply_function,
    edge_vectors,
    graph_sum,
    scatter_sum,
)
from symscale.models.egnn_edges import EdgeMessages, Edges, arrange


class Layer(nn.Module):
    """One layer, ``channels_in`` -> ``channels`` vector channels (1 -> E for the first)."""

    def __init__(self, width: int, channels_in: int, channels: int, num_radial: int):
        super().__init__()
        self.splits = [width, width, channels_in, num_radial]
        self.channels_in, self.channels = channels_in, channels
        self.edge1 = nn.Linear(sum(self.splits), width)
        self.edge2 = nn.Linear(width, width)
        self.mix1 = nn.Linear(width, width)
        self.mix2 = nn.Linear(width, channels_in * channels, bias=False)
        self.node1 = nn.Linear(2 * width, width)
        self.node2 = nn.Linear(width, width)
        self.norm = GraphNorm(width)

    def forward(
        self,
        h: Tensor,
        moved: Tensor | None,
        r_uv: Tensor,
        edges: Edges,
        per: Tensor,
        data: Batch,
    ) -> tuple[Tensor, Tensor]:
        """h (N, w) and displacements (N, 3 C_in) -> h (N, w) and displacements (N, 3 C)."""
        Wu, Wv, Wn, Wr = self.edge1.weight.split(self.splits, dim=1)
        bias = torch.cat([torch.zeros_like(self.edge1.bias), self.edge1.bias])
        nodes = torch.addmm(bias, h, torch.cat([Wu, Wv]).t())  # (N, 2 w): W_u h and W_v h + b
        mlp = (self.edge2.weight, self.edge2.bias, self.mix1.weight, self.mix1.bias)
        # 1/E, not 1/sqrt(E): keeps muP updates Theta(1)
        mixer = self.mix2.weight.view(self.channels_in, self.channels, -1).transpose(0, 1) / self.channels_in
        total, step = apply_function(
            EdgeMessages, edges.blocks, nodes, moved, r_uv, Wn, Wr, *mlp, mixer.flatten(1), *edges.rbf
        )
        step = step * per  # (N, 3 C)
        moved = step if moved is None else moved + step

        message = self.norm(total * per, data)
        h = h + self.node2(F.silu(self.node1(torch.cat([h, message], 1))))
        return h, moved


class EGNN(nn.Module):
    """Multi-channel E(n)-equivariant network (Levy et al. 2023; appendix C.3, Table 4).

    N = 85 w^2 + 11 w E^2 + 12 w E + 1831 w + E + 1 at 12 layers and 136 radial functions.
    """

    rotation_equivariant = True
    translation_invariant = True
    symmetric_edges = False

    def __init__(
        self,
        *,
        width: int,
        depth: int = 12,
        vector_channels: int = 0,
        cutoff: float = 6.0,
        num_radial: int = 136,
    ):
        """``vector_channels`` is E; 0 stands for floor(sqrt(width))."""
        super().__init__()
        channels = vector_channels or math.isqrt(width)
        self.rbf = GaussianRBF(num_radial, cutoff)
        self.embedding = nn.Embedding(100, width)
        self.linear = nn.Linear(width, width)
        self.layers = nn.ModuleList(
            Layer(width, 1 if i == 0 else channels, channels, num_radial) for i in range(depth)
        )
        self.energy_head = nn.Linear(width, 1)
        self.force_head = nn.Linear(channels, 1, bias=False)

    @classmethod
    def from_spec(cls, spec: CellSpec) -> EGNN:
        return cls(
            width=spec.width,
            depth=spec.depth,
            vector_channels=spec.vector_channels,
            cutoff=spec.cutoff,
            num_radial=spec.num_radial,
        )

    def forward(self, data: Batch) -> tuple[Tensor, Tensor]:
        """Energies (G,) and forces (N, 3), both normalised."""
        edges = arrange(data, *edge_vectors(data), self.rbf, self.linear.out_features)
        data = edges.data
        dst = data.edge_index[1]
        ones = edges.r_uv.new_ones(dst.shape[0], 1)
        per = scatter_sum(ones, dst, data.z.shape[0]).clamp(min=1).reciprocal()  # (N, 1), 1 / neighbours

        h = F.silu(self.linear(self.embedding(data.z)))  # (N, w)
        moved = None  # X - X_0 rather than X: exactly translation invariant
        r_uv = edges.r_uv
        for layer in self.layers:
            h, moved = layer(h, moved, r_uv, edges, per, data)
            if r_uv.shape[1] != moved.shape[1]:  # every channel starts from it
                r_uv = r_uv.repeat_interleave(layer.channels, 1)  # (E, 3 C)
        energy = graph_sum(self.energy_head(h)[:, 0], data)
        forces = self.force_head(moved.view(h.shape[0], 3, -1))[..., 0]
        return energy, forces if edges.rank is None else forces.index_select(0, edges.rank)
