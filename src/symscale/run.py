"""The parts of a run: model, optimiser and data of a cell, one training step, one validation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from symscale.cells import CellSpec
from symscale.data import loader
from symscale.data.batch import Batch
from symscale.data.pack import Pack
from symscale.evaluate import evaluate, restore_weights, weights_of
from symscale.flops import StepCost, step_cost
from symscale.loss import training_loss
from symscale.models import build_model
from symscale.mup import parameter_groups, width_rate

FRACTIONS = tuple(r / 10 for r in range(1, 11))  # r of section 4.2
COST_BATCHES = 4  # averaged to measure FLOPs per atom, and to calibrate models that need it


def validation_steps(total: int, spec: CellSpec) -> tuple[int, ...]:
    """Steps after which to validate: log-spaced from 0.2 % on, at every r = 0.1 ... 1.0, and every so many."""
    first = max(1, round(total / 500))
    steps = {max(1, round(r * total)) for r in FRACTIONS}
    if spec.validations:
        steps |= {round(s) for s in np.geomspace(first, total, spec.validations)}
    if spec.validate_every:
        steps |= set(range(spec.validate_every, total + 1, spec.validate_every))
    return tuple(sorted(steps))


@dataclass(frozen=True)
class Setup:
    """The fixed parts of a run."""

    spec: CellSpec
    pack: Pack
    model: nn.Module
    forward: Callable[[Batch], tuple[Tensor, Tensor]]  # the model, compiled where asked
    optimizer: AdamWScheduleFree
    plan: loader.Plan
    device: torch.device
    validate_after: frozenset[int]

    def train_batches(self, start_step: int) -> Iterator[Batch]:
        return self._batches(self.pack.train, self.plan, start_step)

    def validation_batches(self) -> Iterator[Batch]:
        split = self.pack.val
        if self.spec.validation_molecules:
            split = split.prefix(min(1.0, self.spec.validation_molecules / len(split)))
        return self._batches(split, loader.Plan(split, self.spec.batch_size), 0)

    def _batches(self, split, plan: loader.Plan, start_step: int) -> Iterator[Batch]:
        return loader.batches(
            plan.split,
            self.pack,
            plan=plan,
            cutoff=self.spec.cutoff,
            max_neighbors=self.spec.max_neighbors,
            symmetric=self.model.symmetric_edges,
            device=self.device,
            start_step=start_step,
        )

    def loss(self, model, data: Batch, step: int) -> Tensor:
        """Training loss of a step; its rotations depend on (seed, step) alone."""
        spec = self.spec
        generator = torch.Generator().manual_seed((spec.seed << 40) + step)
        with self.arithmetic():
            return training_loss(
                model,
                data,
                generator,
                lambda_energy=spec.lambda_energy,
                lambda_forces=spec.lambda_forces,
                augment=spec.augment,
                symmetry_samples=spec.symmetry_samples,
                symmetry_weight=spec.symmetry_weight,
            )

    def arithmetic(self):
        """bfloat16 autocast where the spec asks for it."""
        if self.spec.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def set_up(spec: CellSpec, pack: Pack, device: torch.device) -> Setup:
    """Model, optimiser and order of the data of a cell. Raises UserError where the data cannot fill a step."""
    torch.set_float32_matmul_precision("high" if spec.precision == "tf32" else "highest")
    train = pack.train.prefix(spec.data_fraction)
    model = build_model(spec).to(device)
    optimizer = AdamWScheduleFree(
        parameter_groups(model, spec),
        lr=width_rate(spec),
        weight_decay=spec.weight_decay,
        warmup_steps=spec.warmup_steps,
    )
    plan = loader.Plan(
        train,
        spec.batch_size,
        epochs=spec.epochs,
        seed=spec.seed,
        max_atoms=spec.max_atoms or None,
        max_edges=spec.max_edges or None,
        max_neighbors=spec.max_neighbors,
    )
    forward = torch.compile(model, dynamic=True) if spec.compile else model
    steps = frozenset(validation_steps(len(plan), spec))
    return Setup(spec, pack, model, forward, optimizer, plan, device, steps)


def measure_cost(setup: Setup) -> StepCost:
    """FLOPs per atom of this cell's own training step, its symmetry loss included."""
    batches = islice(setup.train_batches(0), COST_BATCHES)
    return step_cost(setup.model, batches, lambda data: setup.loss(setup.model, data, 0))


def train_step(setup: Setup, data: Batch, step: int) -> Tensor:
    """One optimiser step; returns the loss, still on the device."""
    loss = setup.loss(setup.forward, data, step)
    setup.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    setup.optimizer.step()
    return loss.detach()


def validate(setup: Setup, should_stop: Callable[[], bool]) -> dict[str, float] | None:
    """Validation columns of a row, with the averaged weights; the training weights come back bit for bit.

    Without the copy, switching the optimiser back and forth would round the weights, and training would depend
    on how often one looks.
    """
    saved = weights_of(setup.model)
    setup.optimizer.eval()
    setup.model.eval()
    try:
        with setup.arithmetic():
            return evaluate(
                setup.forward,
                setup.validation_batches(),
                setup.pack.sigma,
                lambda_energy=setup.spec.lambda_energy,
                lambda_forces=setup.spec.lambda_forces,
                should_stop=should_stop,
            )
    finally:
        setup.model.train()
        setup.optimizer.train()
        restore_weights(setup.model, saved)
