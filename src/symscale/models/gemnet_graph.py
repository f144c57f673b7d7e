"""Index structures of GemNet-OC, built on the device without asking a tensor for a size.

Edges c -> a are sorted by their target a, so the incoming edges of an atom fill a row of a padded (N, K) layout,
K the largest degree. Triplets b -> a <- c are pairs within a row; quadruplets d -> b -> a <- c pair the row
of a with the row of b, for the 8 nearest b of each a.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from symscale.data.batch import Batch
from symscale.models.common import edge_ranks, edge_vectors
from symscale.models.gemnet_basis import associated_legendre, dihedral_harmonics, legendre


@dataclass(frozen=True)
class Graph:
    """The edges c -> a of a batch in both layouts."""

    src: Tensor  # (E,)
    dst: Tensor  # (E,) ascending
    swap: Tensor  # (E,) the reverse of each edge
    slot: Tensor  # (E,) place of each edge in the padded layout
    edge: Tensor  # (N K,) the edge in each place; the atom's first where there is none, or any if it has none
    atoms: int  # N
    degree: int  # K
    distance: Tensor  # (E,) Angstrom
    unit: Tensor  # (E, 3) from source to target; 0 where the atoms coincide

    def pad(self, x: Tensor) -> Tensor:
        """(E, c) -> (N, K, c), zeros where an atom has fewer edges."""
        padded = x.new_zeros(self.atoms * self.degree, x.shape[1])
        return padded.index_copy(0, self.slot, x).view(self.atoms, self.degree, x.shape[1])

    def spread(self, x: Tensor) -> Tensor:
        """(E, c) -> (N, K, c), anything where an atom has fewer edges. Much faster than ``pad``."""
        if not x.shape[0]:
            return x.new_zeros(self.atoms, self.degree, x.shape[1])
        return x.index_select(0, self.edge).view(self.atoms, self.degree, x.shape[1])

    def sum_at(self, index: Tensor, x: Tensor) -> Tensor:
        """Sum the rows of x (E, c) by atom: (N, c)."""
        return x.new_zeros(self.atoms, x.shape[1]).index_add_(0, index, x)


def build_graph(data: Batch) -> Graph:
    src, dst = data.edge_index
    atoms, edges = data.z.shape[0], src.shape[0]
    first, rank = edge_ranks(dst, atoms)
    # sorting (source, target) and (target, source) puts every edge where the other order has its reverse
    forward, backward = torch.argsort(dst * atoms + src), torch.argsort(src * atoms + dst)
    swap = torch.empty_like(src).index_copy_(0, backward, forward)
    r_uv, distance = edge_vectors(data)
    unit = -r_uv / distance.masked_fill(distance == 0, 1.0)[:, None]
    slot = dst * data.max_degree + rank
    # of the same molecule, so that one that is no number spoils no other
    some = first.clamp(max=max(edges - 1, 0)).repeat_interleave(data.max_degree)
    edge = some.index_copy(0, slot, torch.arange(edges, device=dst.device))
    return Graph(src, dst, swap, slot, edge, atoms, data.max_degree, distance, unit)


@dataclass(frozen=True)
class Quadruplets:
    """Atoms b -> a, the Q nearest of each a: everything about d -> b -> a <- c that the layers share."""

    edge: Tensor  # (N, Q) the edge b -> a
    row: Tensor  # (N, Q) atom b, whose incoming edges are the d -> b
    valid: Tensor  # (N, Q) 1 where there is such an edge, and b != a
    inner: Tensor  # (N, Q, K_d, count) Y_l0 of the angle between d -> b and b -> a; 0 for no edge, and d = a
    polar: list[Tensor]  # by m: (N, K_c, Q, count - m), of the angle between c -> a and b -> a
    dihedral: list[
        Tensor
    ]  # cos(m w), m < count, then sin(m w), 0 < m: (N Q, K_c, K_d); 0 for b = c and c = d


def build_quadruplets(graph: Graph, count: int, neighbors: int) -> Quadruplets:
    n, k = graph.atoms, graph.degree
    q = min(neighbors, k)
    unit = graph.pad(graph.unit)  # (N, K, 3)
    nobody = torch.full((n * k,), -1, device=graph.src.device)
    source = nobody.index_copy(0, graph.slot, graph.src).view(n, k)  # (N, K) source atoms
    edge = nobody.index_copy(0, graph.slot, torch.arange(graph.src.shape[0], device=nobody.device))
    far = unit.new_full((n * k,), torch.inf).index_copy(0, graph.slot, graph.distance.detach())
    # to 1e-4 Angstrom, ties by slot: a rotation's rounding must not choose among equivalent atoms
    near = (far.view(n, k) * 1e4).round().sort(dim=1, stable=True).indices[:, :q]  # (N, Q)
    b = source.gather(1, near)  # (N, Q)
    valid = (b >= 0).to(unit.dtype)
    b = b.clamp(min=0)

    axis = unit.gather(1, near[:, :, None].expand(n, q, 3))[:, :, None]  # (N, Q, 1, 3), b -> a
    d_unit = unit.index_select(0, b.flatten()).view(n, q, k, 3)  # d -> b
    d_atom = source.index_select(0, b.flatten()).view(n, q, k)
    c_unit, c_atom = unit[:, None].expand(n, q, k, 3), source[:, None].expand(n, q, k)
    cos_abd = (d_unit * axis).sum(-1).clamp(-1, 1)  # (N, Q, K)
    cos_cab = (c_unit * axis).sum(-1).clamp(-1, 1)  # (N, Q, K)
    d_side = torch.linalg.cross(d_unit, axis.expand(n, q, k, 3))
    c_side = torch.linalg.cross(c_unit, axis.expand(n, q, k, 3))
    # with e the axis, (c x e) . (d x e) and |(c x e) x (d x e)| = |(c x e) . d|: no cross product per pair
    c_side, d_side, d_unit = (t.reshape(n * q, k, 3) for t in (c_side, d_side, d_unit))
    x = torch.bmm(c_side, d_side.transpose(1, 2))  # (N Q, K_c, K_d)
    y = torch.bmm(c_side, d_unit.transpose(1, 2))

    atom = torch.arange(n, device=b.device)[:, None, None]
    keep_d = ((d_atom >= 0) & (d_atom != atom)).to(unit.dtype) * valid[:, :, None]  # (N, Q, K)
    keep_c = (c_atom != b[:, :, None]).to(unit.dtype)  # (N, Q, K)
    keep = (c_atom[:, :, :, None] != d_atom[:, :, None, :]).to(unit.dtype) * keep_c[:, :, :, None]
    keep = keep.view(n * q, k, k)
    polar = [p.transpose(1, 2).contiguous() for p in associated_legendre(cos_cab, count)]
    dihedral = [t * keep for t in dihedral_harmonics(x, y, count)]
    inner = legendre(cos_abd, count) * keep_d[..., None]
    near_edge = edge.view(n, k).gather(1, near).clamp(min=0)
    return Quadruplets(near_edge, b, valid, inner, polar, dihedral)
