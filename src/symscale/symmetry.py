"""Rotations from the Haar measure of SO(3), and group averaging, which makes any model equivariant on average."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from symscale.data.batch import Batch


def random_rotations(count: int, generator: torch.Generator) -> Tensor:
    """``count`` proper rotations (count, 3, 3) from the Haar measure of SO(3), via random unit quaternions."""
    q = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    w, x, y, z = (q / q.norm(dim=1, keepdim=True)).unbind(1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def turn(vectors: Tensor, rotations: Tensor, data: Batch) -> Tensor:
    """Rotate the vectors (N, 3) of every molecule by its own matrix (G, 3, 3)."""
    vectors = vectors.to(torch.promote_types(vectors.dtype, data.pos.dtype))  # bfloat16 has 3 digits
    per_atom = rotations.to(vectors).index_select(0, data.batch)  # (N, 3, 3)
    # autocast would round positions of several Angstrom to 3 digits
    with torch.autocast(vectors.device.type, enabled=False):
        return torch.einsum("nij,nj->ni", per_atom, vectors)


def rotate(data: Batch, rotations: Tensor) -> Batch:
    """Rotate every molecule, positions and forces alike, by its own matrix (G, 3, 3); energies stay."""
    return dataclasses.replace(
        data, pos=turn(data.pos, rotations, data), forces=turn(data.forces, rotations, data)
    )


class GroupAverage(nn.Module):
    """Test-time average over M random rotations, eq. (23) of appendix H; costs M forward passes.

    f(x) = 1/M sum_i rho_out(g_i^-1) phi(rho_in(g_i) x): energies are averaged as they are, forces after they have
    been rotated back. Each molecule of a batch gets M Haar rotations of its own. They depend on the seed and the
    molecule's place in the batch alone, so the same call gives the same result, and the rotations of a smaller M
    are the first ones of a larger M.
    """

    def __init__(self, model: nn.Module, samples: int, seed: int = 0):
        super().__init__()
        if samples < 1:
            raise ValueError(f"GroupAverage: {samples} samples; an average needs at least 1")
        self.model, self.samples, self.seed = model, samples, seed

    def forward(self, data: Batch) -> tuple[Tensor, Tensor]:
        """Energies (G,) and forces (N, 3), both normalised."""
        generator = torch.Generator().manual_seed(self.seed)
        energies = forces = 0.0
        for _ in range(self.samples):
            g = random_rotations(data.num_graphs, generator)
            energy, force = self.model(rotate(data, g))
            energies = energies + energy
            forces = forces + turn(force, g.transpose(1, 2), data)
        return energies / self.samples, forces / self.samples
