"""Training losses: the task loss of eq. (1) and the symmetry loss of eq. (2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from symscale.data.batch import Batch
from symscale.models.common import graph_sum
from symscale.symmetry import random_rotations, rotate


@dataclass(frozen=True)
class TaskLoss:
    """Eq. (1) of every molecule, and its parts. All are (G,) and normalised."""

    total: Tensor  # lambda_e energy + lambda_f forces
    energy: Tensor  # |e - e'| / n
    forces: Tensor  # sum_i ||f_i - f'_i||_2 / n
    force_component: Tensor  # mean over atoms and x, y, z of |f - f'|


def task_loss(
    energy: Tensor, forces: Tensor, data: Batch, lambda_energy: float = 1.0, lambda_forces: float = 1.0
) -> TaskLoss:
    """Eq. (1) for predicted energy (G,) and forces (N, 3), one value a molecule.

    The gradient of ||f_i - f'_i|| where both are equal is 0 (vector_norm's convention), not NaN.
    """
    n = graph_sum(torch.ones_like(data.pos[:, 0]), data)  # (G,)
    per_energy = (energy - data.energy).abs() / n
    difference = forces - data.forces  # (N, 3)
    per_force = graph_sum(torch.linalg.vector_norm(difference, dim=1), data) / n
    component = graph_sum(difference.detach().abs().mean(1), data) / n
    total = lambda_energy * per_energy + lambda_forces * per_force
    return TaskLoss(total, per_energy, per_force, component)


def training_loss(
    model: nn.Module,
    data: Batch,
    generator: torch.Generator,
    *,
    lambda_energy: float = 1.0,
    lambda_forces: float = 1.0,
    augment: bool = False,
    symmetry_samples: int = 0,
    symmetry_weight: float = 1.0,
) -> Tensor:
    """L_obj + lambda L_sym, a scalar: eq. (1), plus eq. (2) over ``symmetry_samples`` rotations where asked.

    With ``augment`` the molecules are rotated first. Rotations come from ``generator`` (on the CPU), which the
    caller seeds by step so that a resumed run draws the same ones.
    """

    def mean_loss(batch: Batch) -> Tensor:
        return task_loss(*model(batch), batch, lambda_energy, lambda_forces).total.mean()

    if augment:
        data = rotate(data, random_rotations(data.num_graphs, generator))
    loss = mean_loss(data)
    if symmetry_samples:
        turned = [rotate(data, random_rotations(data.num_graphs, generator)) for _ in range(symmetry_samples)]
        loss = loss + symmetry_weight * sum(mean_loss(batch) for batch in turned) / symmetry_samples
    return loss
