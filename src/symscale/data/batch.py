"""The one batch type that data yields and models, losses and training take."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """G molecules with N atoms and E directed edges in all.

    An edge goes from its source u to its destination v; everywhere r_uv = pos[src] - pos[dst] (Angstrom).
    ``num_graphs``, ``max_atoms`` and ``max_degree`` are Python ints known to the loader: a model that needs a
    size takes it from here instead of asking a tensor for it, which would stall the GPU.
    """

    z: Tensor  # (N,) int64, atomic numbers
    pos: Tensor  # (N, 3) Angstrom, every molecule centred on its centre of mass
    batch: Tensor  # (N,) int64, the molecule of each atom, ascending
    edge_index: Tensor  # (2, E) int64, rows (src, dst), sorted by dst
    energy: Tensor  # (G,) normalised
    forces: Tensor  # (N, 3) normalised
    num_graphs: int  # G
    max_atoms: int  # atoms of the largest molecule
    max_degree: int  # incoming edges of the best connected atom

    def to(self, device, dtype=None) -> Batch:
        """A copy on ``device``; floating-point tensors become ``dtype`` where that is given."""
        moved = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                target = dtype if value.is_floating_point() else None
                moved[field.name] = value.to(device=device, dtype=target, non_blocking=True)
        return dataclasses.replace(self, **moved)
