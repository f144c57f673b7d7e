"""GemNet-OC with direct forces (Gasteiger et al. 2022; appendix C.2, Table 6).

The equations are those of ``tests/models/gemnet_oracle.py``. Without quadruplets the parameter counts are those
of Table 6; with them the messages are those of eq. (10). Atom-edge, edge-atom and atom-atom interactions are left
out, as the published counts say. Hyperparameters besides width and depth are GemNet-OC's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symscale.cells import CellSpec
from symscale.data.batch import Batch
from symscale.models.common import GaussianRBF, apply_function, graph_sum, polynomial_envelope
from symscale.models.gemnet_basis import harmonics, own_weights
from symscale.models.gemnet_edges import EdgeUpdate, LayerOutput
from symscale.models.gemnet_graph import Graph, Quadruplets, build_graph, build_quadruplets
from symscale.models.gemnet_kernels import ACT, HALF
from symscale.models.gemnet_layers import (
    EdgeEmbedding,
    QuadrupletMessages,
    Residuals,
    Scaled,
    ScaleFactor,
    Triplets,
    dense,
    mean_of,
    spread,
)

ELEMENTS = 83  # hydrogen to bismuth
RADIAL = 128  # Gaussians from 0 to the cutoff
SPHERICAL = 7  # angular functions l = 0 ... 6
RBF, CBF, SBF = 16, 16, 32  # embedded radial, circular and spherical bases
TRIPLET_IN, TRIPLET_OUT = 32, 32
QUADRUPLET_IN, QUADRUPLET_OUT = 32, 32
QUADRUPLET_NEIGHBORS = 8
BEFORE_SKIP, AFTER_SKIP, CONCAT, ATOM, AFTER_ATOM, GLOBAL = 2, 2, 1, 3, 3, 2  # residual layers


@dataclass(frozen=True)
class Bases:
    """What the layers read besides the embeddings; computed once per batch."""

    graph: Graph
    triplet_radial: Tensor  # (E, RBF)
    triplet_circular: Tensor  # (E, SPHERICAL + 1, CBF), the last for an edge's own message
    triplet_angles: Tensor  # (N, K, SPHERICAL^2)
    atom_radial: Tensor  # (E, RBF)
    output_radial: Tensor  # (E, RBF)
    quadruplets: Quadruplets | None = None
    quadruplet_radial: Tensor | None = None  # (E, RBF)
    quadruplet_inner: Tensor | None = None  # (N Q K_d, CBF)
    quadruplet_outer: Tensor | None = None  # (E, SPHERICAL^2, SBF)


class AtomUpdate(nn.Module):
    """Edge embeddings, times a radial basis, summed at their targets; then residual layers."""

    def __init__(self, width: int):
        super().__init__()
        self.radial = dense(RBF, width)
        self.scale_sum = ScaleFactor()
        self.layers = Residuals(width, ATOM)

    def weight(self, scale: float) -> Tensor:
        """Of the radial basis, for edge embeddings of that scale."""
        return self.radial.weight * (self.scale_sum.value * scale)

    def forward(self, x: Tensor, m: Scaled) -> Scaled:
        """``x`` (N, w): the sums with ``weight(m[1])``."""
        return self.layers(self.scale_sum.fit(x, m[0] * m[1] if self.scale_sum.fitting else m[0]), 1.0)


class Output(nn.Module):
    """Contributions of one layer to the energy (N, w) and to the forces (E, w)."""

    def __init__(self, width: int, place: int):
        super().__init__()
        self.place = place
        self.atoms = AtomUpdate(width)
        self.after_atom = Residuals(width, AFTER_ATOM)
        self.forces = Residuals(width, ATOM)
        self.radial = dense(RBF, width)
        self.scale_radial = ScaleFactor()

    def forward(
        self, h: Scaled, m: Scaled, rad: Tensor, graph: Graph, forces: Tensor | None, mixes: Tensor
    ) -> tuple[Scaled, Tensor]:
        """The layer's energies, and ``forces``, the mix of all layers' contributions, with its own added.

        ``mixes`` (w, (depth + 1) w): a column block for every layer.
        """
        if self.scale_radial.fitting:
            v, scale = self.forces(*m)
            self.scale_radial.fit(v * scale * self.radial(rad), v * scale)
        weight = self.radial.weight * (self.scale_radial.value * (ACT * HALF))
        mix = mixes.chunk(mixes.shape[1] // mixes.shape[0], 1)[self.place]
        weights = weight, self.atoms.weight(m[1]), mix, graph, *self.forces.weights
        forces, x = apply_function(LayerOutput, forces, *m, rad, *weights)
        return self.after_atom(*mean_of(self.atoms(x, m), h)), forces


class Interaction(nn.Module):
    """One layer: edge embeddings by triplets (and quadruplets), then atoms by edges, then edges by atoms."""

    def __init__(self, width: int, quadruplets: bool):
        super().__init__()
        self.dense = dense(width, width)
        self.triplets = Triplets(width, TRIPLET_IN, TRIPLET_OUT, RBF, CBF)
        sizes = (QUADRUPLET_IN, QUADRUPLET_OUT, RBF, CBF, SBF)
        self.quadruplets = QuadrupletMessages(width, *sizes) if quadruplets else None
        self.before_skip = Residuals(width, BEFORE_SKIP)
        self.after_skip = Residuals(width, AFTER_SKIP)
        self.atom_update = AtomUpdate(width)
        self.concat = EdgeEmbedding(width, width)
        self.residual = Residuals(width, CONCAT)

    def forward(self, h: Scaled, m: Scaled, bases: Bases) -> tuple[Scaled, Scaled]:
        graph = bases.graph
        terms = self.triplets(m, bases.triplet_radial, bases.triplet_circular, bases.triplet_angles, graph)
        if self.quadruplets is not None:
            quads = (bases.quadruplet_inner, bases.quadruplet_outer, bases.quadruplets, graph)
            terms += self.quadruplets(m, bases.quadruplet_radial, *quads)
        before, after = self.before_skip.weights, self.after_skip.weights
        scales, counts = (ACT / math.sqrt(1 + len(terms) / 4), m[1] * HALF), (len(before), len(after))
        weight, alpha = self.dense.weight * m[1], ACT * HALF / m[1]
        summed = bases.atom_radial, self.atom_update.weight(ACT * HALF), graph
        v, x = apply_function(
            EdgeUpdate, m[0], alpha, scales, counts, weight, *summed, *before, *after, *terms
        )
        m = v, ACT * HALF
        h = mean_of(self.atom_update(x, m), h)
        return h, self.concat(h, m, graph, self.residual)


class BasisProjections(nn.Module):
    """Radial and angular bases with the projections that all layers share."""

    def __init__(self, quadruplets: bool):
        super().__init__()
        self.to_triplet = dense(RADIAL, RBF)
        self.to_triplet_angular = spread(dense(RADIAL, CBF * SPHERICAL), SPHERICAL)
        self.to_atom = dense(RADIAL, RBF)
        self.to_output = dense(RADIAL, RBF)
        self.quadruplets = quadruplets
        if quadruplets:
            self.to_quadruplet = dense(RADIAL, RBF)
            self.to_inner = spread(dense(RADIAL, CBF * SPHERICAL), SPHERICAL)
            self.to_outer = spread(dense(RADIAL, SBF * SPHERICAL**2), SPHERICAL**2)

    def forward(self, raw: Tensor, graph: Graph) -> Bases:
        """Raw radial functions (E, RADIAL) -> all bases."""
        n, k = graph.atoms, graph.degree
        circular = self.to_triplet_angular.weight.view(CBF, SPHERICAL, RADIAL).transpose(0, 1)
        # sums over all edges of an atom hold the edge itself, which this weight takes off
        own = sum(weight * circular[l] for l, weight in enumerate(own_weights(SPHERICAL)))
        circular = torch.cat([circular.flatten(0, 1), -own])
        # one product for all, rows of raw being long: (E, RADIAL)
        weights = [self.to_triplet.weight, circular, self.to_atom.weight, self.to_output.weight]
        projected = F.linear(raw, torch.cat(weights))
        rad, circular, atom, output = projected.split([weight.shape[0] for weight in weights], 1)
        angles = graph.pad(harmonics(graph.unit, SPHERICAL))
        triplets = rad, circular.unflatten(1, (SPHERICAL + 1, CBF)), angles
        if not self.quadruplets:
            return Bases(graph, *triplets, atom, output)
        quads = build_quadruplets(graph, SPHERICAL, QUADRUPLET_NEIGHBORS)
        q = quads.edge.shape[1]
        if raw.shape[0]:
            own = self.to_inner(raw).index_select(0, quads.edge.flatten()).view(n * q, CBF, SPHERICAL)
        else:
            own = raw.new_zeros(n * q, CBF, SPHERICAL)
        inner = torch.bmm(quads.inner.view(n * q, k, SPHERICAL), own.transpose(1, 2)).view(n * q * k, CBF)
        outer = self.to_outer.weight.unflatten(0, (SBF, -1)).transpose(0, 1).flatten(0, 1)
        outer = F.linear(raw, outer).unflatten(1, (SPHERICAL**2, SBF))
        return Bases(
            graph,
            *triplets,
            atom,
            output,
            quads,
            self.to_quadruplet(raw),
            inner,
            outer,
        )


class GemNetOC(nn.Module):
    """GemNet-OC with direct forces on symmetric edges.

    N = 194 w^2 + 885 w + 86016 at 4 layers; quadruplets add 4 w^2 + 448 w + 350208. Scale factors are buffers,
    1 until ``calibrate``. Elements up to bismuth (83).
    """

    rotation_equivariant = True
    translation_invariant = True
    symmetric_edges = True

    def __init__(self, *, width: int, depth: int = 4, cutoff: float = 10.0, quadruplets: bool = False):
        super().__init__()
        self.cutoff = cutoff
        self.rbf = GaussianRBF(RADIAL, cutoff)
        self.bases = BasisProjections(quadruplets)
        self.embedding = nn.Embedding(ELEMENTS, width)
        nn.init.uniform_(self.embedding.weight, -math.sqrt(3), math.sqrt(3))
        self.edge_embedding = EdgeEmbedding(width, RADIAL)
        self.interactions = nn.ModuleList(Interaction(width, quadruplets) for _ in range(depth))
        self.outputs = nn.ModuleList(Output(width, place) for place in range(depth + 1))
        self.energy_mix = dense((depth + 1) * width, width)
        self.energy_layers = Residuals(width, GLOBAL)
        self.energy_head = dense(width, 1)
        self.force_mix = dense((depth + 1) * width, width)
        self.force_layers = Residuals(width, GLOBAL)
        self.force_head = dense(width, 1)

    @classmethod
    def from_spec(cls, spec: CellSpec) -> GemNetOC:
        """Its radial functions are 128 in every published configuration; ``spec.num_radial`` is not read."""
        return cls(width=spec.width, depth=spec.depth, cutoff=spec.cutoff, quadruplets=spec.quadruplets)

    def forward(self, data: Batch) -> tuple[Tensor, Tensor]:
        """Energies (G,) and forces (N, 3), both normalised."""
        graph = build_graph(data)
        raw = self.rbf(graph.distance) * polynomial_envelope(graph.distance, self.cutoff)[:, None]
        bases = self.bases(raw, graph)
        h: Scaled = (self.embedding(data.z - 1), 1.0)  # (N, w)
        m = self.edge_embedding(h, (raw, 1.0), graph)  # (E, w)

        energies, edge_forces = [], None
        for i, output in enumerate(self.outputs):
            if i:
                h, m = self.interactions[i - 1](h, m, bases)
            energy, edge_forces = output(h, m, bases.output_radial, graph, edge_forces, self.force_mix.weight)
            energies.append(energy[0] * energy[1])

        v, scale = self.energy_layers(F.silu(self.energy_mix(torch.cat(energies, 1))), ACT)
        energy = graph_sum(F.linear(v, self.energy_head.weight * scale)[:, 0], data)
        v, scale = self.force_layers(F.silu(edge_forces), ACT)
        along = F.linear(
            v, self.force_head.weight * scale
        )  # (E, 1), force on the target away from the source
        return energy, graph.sum_at(graph.dst, along * graph.unit)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Set the scale factors from training batches, in the order in which data flow through them."""
        factors = [m for m in self.modules() if isinstance(m, ScaleFactor)]
        for factor in factors:
            factor.value.fill_(1.0)
            factor.fitting = True
        try:
            self(join(list(batches)))
        finally:
            for factor in factors:
                factor.fitting = False


def join(batches: list[Batch]) -> Batch:
    """One batch with the molecules of all, so that one pass sees every factor's whole sample."""
    atoms = graphs = 0
    edge_index, molecule = [], []
    for b in batches:
        edge_index.append(b.edge_index + atoms)
        molecule.append(b.batch + graphs)
        atoms, graphs = atoms + b.z.shape[0], graphs + b.num_graphs
    return Batch(
        z=torch.cat([b.z for b in batches]),
        pos=torch.cat([b.pos for b in batches]),
        batch=torch.cat(molecule),
        edge_index=torch.cat(edge_index, 1),
        energy=torch.cat([b.energy for b in batches]),
        forces=torch.cat([b.forces for b in batches]),
        num_graphs=graphs,
        max_atoms=max(b.max_atoms for b in batches),
        max_degree=max(b.max_degree for b in batches),
    )
