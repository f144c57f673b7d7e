"""Validation loss: the task loss of eq. (1) averaged over held-out molecules."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from symscale.data.batch import Batch
from symscale.loss import task_loss


def evaluate(
    model: Callable[[Batch], tuple[torch.Tensor, torch.Tensor]],
    batches: Iterable[Batch],
    sigma: float,
    *,
    lambda_energy: float = 1.0,
    lambda_forces: float = 1.0,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Mean over molecules of eq. (1) and its parts, as the columns of a curve; None if asked to stop midway.

    ``sigma`` (eV) turns the normalised errors into eV/atom and eV/Angstrom. The caller has put the optimiser into
    its evaluation mode: with a schedule-free one the weights under training are not those to be judged.
    """
    sums, molecules = None, 0
    with torch.no_grad():
        for data in batches:
            if should_stop():
                return None
            loss = task_loss(*model(data), data, lambda_energy, lambda_forces)
            parts = torch.stack([loss.total, loss.energy, loss.forces, loss.force_component])  # (4, G)
            batch_sums = parts.double().sum(1)
            sums = batch_sums if sums is None else sums + batch_sums
            molecules += data.num_graphs
    total, energy, forces, component = (sums / molecules).tolist()
    return {
        "val_loss": total,
        "val_energy_loss": energy,
        "val_force_loss": forces,
        "val_energy_mae": energy * sigma,
        "val_force_mae": component * sigma,
    }


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    """A copy of the parameters, to put back with ``restore_weights`` to the last bit."""
    return [p.detach().clone() for p in model.parameters()]


def restore_weights(model: nn.Module, weights: list[torch.Tensor]) -> None:
    """Undo what was done to the parameters since ``weights_of``."""
    with torch.no_grad():
        for parameter, saved in zip(model.parameters(), weights, strict=True):
            parameter.copy_(saved)
