"""FLOPs of a training step, counted by torch as it runs (section 4.1, eq. 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from symscale.data.batch import Batch
from symscale.models.common import in_given_order


@dataclass(frozen=True)
class StepCost:
    """Cost per atom of one architecture at one size."""

    training: float  # FLOPs per atom, forward and backward
    forward: float  # FLOPs per atom, forward only
    atoms: int  # atoms it was measured on

    def kappa(self, parameters: int) -> float:
        """C / (3 N D): forward FLOPs per parameter per atom, with the backward pass as measured (eq. 3)."""
        return self.training / (3 * parameters)


def count_parameters(model: nn.Module) -> int:
    """N: trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _product_flops(added, left, right, **_) -> int:
    """FLOPs from shapes; one multiplication and one addition for each term."""
    return 2 * math.prod(left) * right[-1]


# torch counts addmm but not addmm_, the same product added to its first argument in place
IN_PLACE = {torch.ops.aten.addmm_: _product_flops, torch.ops.aten.baddbmm_: _product_flops}


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of the matrix products that ``run()`` calls; element-wise work counts nothing, as in the paper.

    What a CPU alone saves counts, since C should be the same on every device and in every batch: radial functions
    below rounding (``radial_bands``), and the fourth product of complex numbers (eSEN's ``so2_fast``).
    """
    with in_given_order(), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        run()
    return counter.get_total_flops()


def step_cost(model: nn.Module, batches: Iterable[Batch], loss: Callable[[Batch], Tensor]) -> StepCost:
    """Average cost per atom over some training batches; parameters and gradients are left as they were."""
    training = forward = atoms = 0
    for data in batches:
        training += count_flops(lambda data=data: loss(data).backward())
        with torch.no_grad():
            forward += count_flops(lambda data=data: model(data))
        atoms += data.z.shape[0]
    model.zero_grad(set_to_none=True)
    return StepCost(training / atoms, forward / atoms, atoms)
