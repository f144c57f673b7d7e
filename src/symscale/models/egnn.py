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
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from symscale.cells import CellSpec
from symscale.data.batch import Batch
from symscale.models.common import (
    GaussianRBF,
    GraphNorm,
    apply_function,
    edge_vectors,
    graph_sum,
    row_blocks,
)

silu_backward = torch.ops.aten.silu_backward


@dataclass(frozen=True)
class Edges:
    """What all layers share about the edges, besides their vectors and radial functions."""

    src: Tensor  # (E,)
    dst: Tensor  # (E,) ascending
    slot: Tensor  # (E,) place of each edge in the padded layout (N, degree)
    atoms: int  # N
    degree: int  # incoming edges of the best connected atom

    def gather(self, source: Tensor, target: Tensor) -> Tensor:
        """source[src] + target[dst], (N, c) twice -> (E, c)."""
        return source.index_select(0, self.src).add_(target.index_select(0, self.dst))

    def sum_at(self, index: Tensor, x: Tensor) -> Tensor:
        """Sum the rows of x (E, c) by atom: (N, c)."""
        return x.new_zeros(self.atoms, x.shape[1]).index_add_(0, index, x)

    def pad(self, x: Tensor) -> Tensor:
        """(E, c) -> (N, degree, c), zeros where an atom has fewer edges."""
        padded = x.new_zeros(self.atoms * self.degree, x.shape[1])
        return padded.index_copy_(0, self.slot, x).view(self.atoms, self.degree, x.shape[1])

    def unpad(self, x: Tensor) -> Tensor:
        """(N, degree, c) -> (E, c)."""
        return x.reshape(self.atoms * self.degree, x.shape[2]).index_select(0, self.slot)


def edges_of(data: Batch) -> Edges:
    src, dst = data.edge_index
    atoms = data.z.shape[0]
    first = torch.searchsorted(dst, torch.arange(atoms, device=dst.device))  # (N,) first edge of each atom
    rank = torch.arange(dst.shape[0], device=dst.device) - first.index_select(0, dst)
    return Edges(src, dst, dst * data.max_degree + rank, atoms, data.max_degree)


def channel_vectors(edges: Edges, r_uv: Tensor, moved: Tensor | None) -> Tensor:
    """X_uv = r_uv + D_u - D_v, (E, 3 C), from the displacements D = X - X_0 (N, 3 C); C = 1 without them."""
    if moved is None:
        return r_uv
    x = edges.gather(moved, -moved).view(r_uv.shape[0], 3, moved.shape[1] // 3)
    return x.add_(r_uv[:, :, None]).flatten(1)


class EdgeMessages(torch.autograd.Function):
    """Messages m_uv of eq. (11), summed over neighbours, and the sums over neighbours of X_uv (x) s_uv.

    m = SiLU(W2 SiLU(source_u + target_v + Wn |X_uv|^2 + Wr RBF) + b2) and s = SiLU(W3 m + b3).
    Returns sum m (N, w) and sum X s (N, 3 C, w).
    """

    @staticmethod
    def plain(edges, nodes, moved, r_uv, rbf, Wn, Wr, W2, b2, W3, b3):
        x = channel_vectors(edges, r_uv, moved)
        squares = x.square().view(x.shape[0], 3, x.shape[1] // 3).sum(1)
        source, target = nodes.chunk(2, dim=1)
        z1 = F.linear(rbf, Wr) + F.linear(squares, Wn) + edges.gather(source, target)
        m = F.silu(F.linear(F.silu(z1), W2, b2))
        s = F.silu(F.linear(m, W3, b3))
        return edges.sum_at(edges.dst, m), torch.bmm(edges.pad(x).transpose(1, 2), edges.pad(s))

    @staticmethod
    def forward(ctx, edges, nodes, moved, r_uv, rbf, Wn, Wr, W2, b2, W3, b3):
        x = channel_vectors(edges, r_uv, moved)  # (E, 3 C)
        squares = x.square().view(x.shape[0], 3, x.shape[1] // 3).sum(1)  # (E, C)
        source, target = nodes.chunk(2, dim=1)  # (N, w) each
        width = W2.shape[0]
        z = x.new_empty(3, x.shape[0], width)
        total, s = x.new_zeros(edges.atoms, width), x.new_zeros(edges.atoms * edges.degree, width)
        for rows in row_blocks(x, width):
            src, dst = edges.src[rows], edges.dst[rows]
            z1 = torch.mm(rbf[rows], Wr.t(), out=z[0, rows]).addmm_(squares[rows], Wn.t())
            z1.add_(source.index_select(0, src)).add_(target.index_select(0, dst))
            m = F.silu(torch.addmm(b2, F.silu(z1), W2.t(), out=z[1, rows]))
            total.index_add_(0, dst, m)
            s.index_copy_(0, edges.slot[rows], F.silu(torch.addmm(b3, m, W3.t(), out=z[2, rows])))
        outer = torch.bmm(
            edges.pad(x).transpose(1, 2), s.view(edges.atoms, edges.degree, width)
        )  # (N, 3 C, w)
        ctx.edges = edges
        ctx.save_for_backward(moved, r_uv, rbf, Wn, Wr, W2, W3, z)
        return total, outer

    @staticmethod
    @once_differentiable
    def backward(ctx, g_total, g_outer):
        moved, r_uv, rbf, Wn, Wr, W2, W3, z = ctx.saved_tensors
        edges: Edges = ctx.edges
        x = channel_vectors(edges, r_uv, moved)
        count, channels, width = x.shape[0], x.shape[1] // 3, W2.shape[0]
        squares = x.square().view(count, 3, channels).sum(1)
        g_s = torch.bmm(edges.pad(x), g_outer).flatten(0, 1)  # (N degree, w)
        s = x.new_zeros(edges.atoms * edges.degree, width)
        g_Wn, g_Wr, g_W2, g_W3 = (torch.zeros_like(W) for W in (Wn, Wr, W2, W3))
        g_b2, g_b3 = W2.new_zeros(width), W3.new_zeros(width)
        g_nodes = x.new_zeros(2, edges.atoms, width)
        g_squares = torch.empty_like(squares)
        g_rbf = torch.empty_like(rbf) if ctx.needs_input_grad[4] else None
        for rows in row_blocks(x, width):
            src, dst, slot = edges.src[rows], edges.dst[rows], edges.slot[rows]
            z1, z2, z3 = z[0, rows], z[1, rows], z[2, rows]
            s.index_copy_(0, slot, F.silu(z3))
            g3 = silu_backward(g_s.index_select(0, slot), z3)
            g_W3.addmm_(g3.t(), F.silu(z2))
            g_b3 += g3.sum(0)
            g2 = silu_backward(g_total.index_select(0, dst).addmm_(g3, W3), z2)
            g_W2.addmm_(g2.t(), F.silu(z1))
            g_b2 += g2.sum(0)
            g1 = silu_backward(torch.mm(g2, W2), z1)
            g_Wr.addmm_(g1.t(), rbf[rows])
            g_Wn.addmm_(g1.t(), squares[rows])
            g_nodes[0].index_add_(0, src, g1)
            g_nodes[1].index_add_(0, dst, g1)
            torch.mm(g1, Wn, out=g_squares[rows])
            if g_rbf is not None:
                torch.mm(g1, Wr, out=g_rbf[rows])
        g_moved = g_r = None
        if moved is not None or ctx.needs_input_grad[3]:
            s = s.view(edges.atoms, edges.degree, width)
            g_x = edges.unpad(torch.bmm(s, g_outer.transpose(1, 2))).view(count, 3, channels)
            g_x.addcmul_(x.view(count, 3, channels), g_squares[:, None], value=2)
        if moved is not None:
            flat = g_x.flatten(1)
            g_moved = edges.sum_at(edges.src, flat) - edges.sum_at(edges.dst, flat)
        if ctx.needs_input_grad[3]:
            g_r = g_x.sum(2)
        return None, torch.cat([*g_nodes], 1), g_moved, g_r, g_rbf, g_Wn, g_Wr, g_W2, g_b2, g_W3, g_b3


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
        rbf: Tensor,
        edges: Edges,
        per: Tensor,
        data: Batch,
    ) -> tuple[Tensor, Tensor]:
        """h (N, w) and displacements (N, 3 C_in) -> h (N, w) and displacements (N, 3 C)."""
        Wu, Wv, Wn, Wr = self.edge1.weight.split(self.splits, dim=1)
        bias = torch.cat([torch.zeros_like(self.edge1.bias), self.edge1.bias])
        nodes = torch.addmm(bias, h, torch.cat([Wu, Wv]).t())  # (N, 2 w): W_u h and W_v h + b
        mlp = (self.edge2.weight, self.edge2.bias, self.mix1.weight, self.mix1.bias)
        total, outer = apply_function(EdgeMessages, edges, nodes, moved, r_uv, rbf, Wn, Wr, *mlp)

        # 1/E, not 1/sqrt(E): keeps muP updates Theta(1)
        mixer = self.mix2.weight.view(self.channels_in, self.channels, -1).transpose(1, 2).flatten(0, 1)
        step = outer.view(-1, 3, mixer.shape[0]).matmul(mixer / self.channels_in)  # (N, 3, C)
        step = step.flatten(1) * per
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
        edges = edges_of(data)
        r_uv, d = edge_vectors(data)
        rbf = self.rbf(d)  # (E, num_radial)
        ones = r_uv.new_ones(r_uv.shape[0], 1)
        per = edges.sum_at(edges.dst, ones).clamp(min=1).reciprocal()  # (N, 1), 1 / neighbours

        h = F.silu(self.linear(self.embedding(data.z)))  # (N, w)
        moved = None  # X - X_0 rather than X: exactly translation invariant
        for layer in self.layers:
            h, moved = layer(h, moved, r_uv, rbf, edges, per, data)
        energy = graph_sum(self.energy_head(h)[:, 0], data)
        forces = self.force_head(moved.view(h.shape[0], 3, -1))[..., 0]
        return energy, forces
