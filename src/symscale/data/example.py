"""Molecules to measure on where labels do not matter: of a pack or, without one, of the built-in source's kind."""

from __future__ import annotations

import functools

import numpy as np
import torch

from symscale.cells import CellSpec
from symscale.data.batch import Batch
from symscale.data.graph import radius_graph
from symscale.data.loader import make_batch
from symscale.data.pack import Pack


@functools.lru_cache(maxsize=4)
def example_molecules(count: int, seed: int = 0) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Atomic numbers (n,) and positions (n, 3) in Angstrom, as the built-in source makes them before labelling."""
    from symscale.data.sources.smiles import molecules
    from symscale.data.sources.xtb import dynamics

    drawn = (
        dynamics(smiles, 1, np.random.default_rng([seed, index, 1]))
        for index, smiles in enumerate(molecules(count, seed))
    )
    return tuple((z, pos[0] - pos[0].mean(0)) for z, pos in filter(None, drawn))


def example_batch(spec: CellSpec, symmetric: bool, count: int, pack: Pack | None = None) -> Batch:
    """The first ``count`` training molecules of a pack, or as many example molecules with labels drawn at random."""
    graph = {"cutoff": spec.cutoff, "max_neighbors": spec.max_neighbors, "symmetric": symmetric}
    if pack is not None:
        return make_batch(pack.train, pack, np.arange(min(count, len(pack.train))), **graph)
    z, pos = zip(*example_molecules(count), strict=True)
    counts = torch.tensor([len(numbers) for numbers in z])
    positions = torch.from_numpy(np.concatenate(pos)).float()
    edge_index, degree = radius_graph(positions, counts, **graph)
    labels = torch.Generator().manual_seed(0)
    return Batch(
        z=torch.from_numpy(np.concatenate(z)).long(),
        pos=positions,
        batch=torch.repeat_interleave(torch.arange(len(counts)), counts),
        edge_index=edge_index,
        energy=torch.randn(len(counts), generator=labels),
        forces=torch.randn(len(positions), 3, generator=labels),
        num_graphs=len(counts),
        max_atoms=int(counts.max()),
        max_degree=degree,
    )
