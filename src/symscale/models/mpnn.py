"""Unconstrained message passing (section 2.1, appendix C.1): sees r_uv itself, promises no rotational symmetry.

N = 12 w^2 + 131 w + 4 floor(w/2) + 137 (w - floor(w/2)) + 4 at depth 5 (Table 3). Weight matrices act on atoms
only; an edge costs element-wise work, which is what brings kappa down to about 2 (eq. 3).
"""

from __future__ import annotations

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
from symscale.models.mpnn_kernels import EdgeEmbedding, Linear, NeighbourMean


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return apply_function(Linear, x, layer.weight, layer.bias)


class Layer(nn.Module):
    """One round of messages; the update is added to the atoms' states."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = GraphNorm(width)
        self.lin1 = nn.Linear(width, width)
        self.lin2 = nn.Linear(width, width)

    def forward(self, h: Tensor, e: Tensor, token: Tensor | None, per: Tensor, data: Batch) -> Tensor:
        m = apply_function(NeighbourMean, data.edge_index, per, h, e, token)  # (N, w), eq. (8)
        m = F.silu(self.norm(m, data))
        return F.silu(linear(self.lin2, F.silu(linear(self.lin1, m))))


class MPNN(nn.Module):
    """Unconstrained MPNN, eqs. (8)-(9). Invariant to translation unless ``absolute``.

    Parameters
    ----------
    width, depth : embedding width w and number of layers
    cutoff, num_radial : range of the Gaussians of |r_uv| (Angstrom) and their number
    absolute : edges see the source's own position in place of r_uv (appendix J)
    """

    rotation_equivariant = False
    translation_invariant = True
    symmetric_edges = False

    def __init__(
        self,
        *,
        width: int,
        depth: int = 5,
        cutoff: float = 6.0,
        num_radial: int = 136,
        absolute: bool = False,
    ):
        super().__init__()
        if width < 2:
            raise ValueError(
                f"MPNN: width {width} is too small; half of it embeds the edge vector, so at least 2"
            )
        self.absolute = absolute
        self.translation_invariant = not absolute
        self.embed = nn.Embedding(100, width)
        self.lin_z = nn.Linear(width, width)
        self.rbf = GaussianRBF(num_radial, cutoff)
        self.lin_vector = nn.Linear(3, width // 2)
        self.lin_radial = nn.Linear(num_radial, width - width // 2)
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))
        self.energy_head = nn.Linear(width, 1)
        self.force_head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3))

    @classmethod
    def from_spec(cls, spec: CellSpec) -> MPNN:
        return cls(
            width=spec.width,
            depth=spec.depth,
            cutoff=spec.cutoff,
            num_radial=spec.num_radial,
            absolute=spec.absolute,
        )

    def forward(self, data: Batch) -> tuple[Tensor, Tensor]:
        """Energies (G,) and forces (N, 3), both normalised."""
        r_uv, d = edge_vectors(data)  # (E, 3), (E,)
        vector = data.pos.index_select(0, data.edge_index[0]) if self.absolute else r_uv
        mlp = (*self.lin_vector.parameters(), *self.lin_radial.parameters())
        shared = (len(self.layers), len(data.z), data.edge_index)
        e, *tokens = apply_function(EdgeEmbedding, *shared, vector, self.rbf(d), *mlp)  # (E, w)
        ones = d.new_ones(d.shape[0], 1)
        per = scatter_sum(ones, data.edge_index[1], len(data.z)).clamp(min=1).reciprocal()  # (N, 1)
        h = F.silu(linear(self.lin_z, self.embed(data.z)))  # (N, w)
        for layer, token in zip(self.layers, tokens, strict=True):
            h = h + layer(h, e, token, per, data)
        hidden = self.force_head[1](linear(self.force_head[0], h))
        return graph_sum(self.energy_head(h), data)[:, 0], self.force_head[2](hidden)
