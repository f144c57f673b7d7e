"""Train one cell: schedule-free AdamW, validations along the way, checkpoints that neither lose nor repeat a step."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from symscale.cells import CellSpec, spec_dict, spec_hash
from symscale.checkpoint import EXIT_STOPPED, CheckpointFolder, StopRequest
from symscale.curves import write_curve
from symscale.data.pack import Pack
from symscale.errors import UserError
from symscale.evaluate import restore_weights, weights_of
from symscale.flops import StepCost, count_parameters
from symscale.mup import width_rate
from symscale.provenance import provenance
from symscale.run import COST_BATCHES, Setup, measure_cost, set_up, train_step, validate

LOG_SECONDS = 15.0


@dataclass
class Counters:
    """What a checkpoint holds besides weights. All sums start at step 0 of the cell, not of this process."""

    step: int = 0
    molecules: int = 0
    atoms: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0  # of the training loss since the last row
    loss_steps: int = 0
    rows: list[dict] = field(default_factory=list)


class Clock:
    """Seconds of this process on top of those of earlier ones."""

    def __init__(self, before: float):
        self.before, self.start = before, time.perf_counter()

    def __call__(self) -> float:
        return self.before + time.perf_counter() - self.start


def train(
    spec: CellSpec,
    pack: Pack,
    checkpoint: str | Path,
    output: str | Path,
    *,
    device: torch.device,
    checkpoint_minutes: float = 10.0,
    say: Callable[[str], None] = print,
) -> int:
    """Train a cell to its end and write its curve; 0, or EXIT_STOPPED if asked to stop (run it again to go on).

    Raises
    ------
    UserError
        the loss is not finite; the checkpoint belongs to another spec or pack, or is in use.
    """
    identity = f"{spec_hash(spec)}-{pack.content_hash[:16]}"
    origin = provenance(device)  # now: the checkout may have moved on when the run ends
    with CheckpointFolder(checkpoint, identity) as folder, StopRequest() as stop:
        setup = set_up(spec, pack, device)
        counters, cost = _resume(setup, folder)
        total = len(setup.plan)
        say(
            f"{spec.name}: N = {count_parameters(setup.model):,}, {total} steps on {device}, "
            + (f"resumed at step {counters.step}" if counters.step else "from the start")
        )
        finished = _loop(setup, counters, cost, folder, stop, checkpoint_minutes * 60, say)
        if not finished:
            folder.stopped()
            say(f"{spec.name}: asked to stop; saved at step {counters.step} of {total}")
            return EXIT_STOPPED
        write_curve(output, counters.rows, _metadata(setup, cost, folder) | origin)
        say(f"{spec.name}: done, val {counters.rows[-1]['val_loss']:.4f}, {output}")
    return 0


def _resume(setup: Setup, folder: CheckpointFolder) -> tuple[Counters, StepCost]:
    """State of the last checkpoint, or that of step 0."""
    state = folder.load()
    setup.optimizer.train()
    setup.model.train()
    if state is None:
        if hasattr(setup.model, "calibrate"):
            setup.model.calibrate(islice(setup.train_batches(0), COST_BATCHES))
        return Counters(), measure_cost(setup)
    setup.model.load_state_dict(state["model"])
    setup.optimizer.load_state_dict(state["optimizer"])
    return state["counters"], state["cost"]


def _loop(setup, counters: Counters, cost: StepCost, folder, stop, checkpoint_seconds: float, say) -> bool:
    """Train and validate until the end (True) or until asked to stop (False); saved either way."""
    total = len(setup.plan)
    clock = Clock(counters.seconds)
    loss_sum = torch.tensor(counters.loss_sum, dtype=torch.float64, device=setup.device)
    saved_at = told_at = time.monotonic()
    first_step, first_seconds = counters.step, clock()

    def save() -> None:
        nonlocal saved_at
        counters.loss_sum, counters.seconds = _finite(setup, counters, loss_sum), clock()
        if not all(p.isfinite().all() for p in setup.model.parameters()):  # before their loss shows it
            raise UserError(_not_finite(setup, counters, "next", math.nan))
        folder.save(
            {
                "model": setup.model.state_dict(),
                "optimizer": setup.optimizer.state_dict(),
                "counters": counters,
                "cost": cost,
            }
        )
        report()
        saved_at = time.monotonic()

    def report() -> None:
        folder.progress(
            step=counters.step,
            total_steps=total,
            epoch=counters.step / setup.plan.steps_per_epoch,
            val_loss=counters.rows[-1]["val_loss"] if counters.rows else None,
            seconds=clock(),
        )

    batches = setup.train_batches(counters.step)
    with contextlib.closing(batches):
        while True:
            due = counters.step in setup.validate_after
            if due and (not counters.rows or counters.rows[-1]["step"] < counters.step):
                _finite(setup, counters, loss_sum)
                losses = validate(setup, lambda: stop.requested)
                if losses is not None and not math.isfinite(losses["val_loss"]):
                    raise UserError(_not_finite(setup, counters, "validation", losses["val_loss"]))
                if losses is None:  # the row is made on resuming, from the same weights
                    save()
                    return False
                counters.rows.append(_row(setup, counters, cost, float(loss_sum), clock(), losses))
                loss_sum.zero_()
                counters.loss_steps = 0
            if counters.step == total:
                save()
                _save_weights(setup, folder)
                return True
            if stop.requested:
                save()
                return False
            if time.monotonic() - saved_at > checkpoint_seconds:
                save()
            if time.monotonic() - told_at > LOG_SECONDS and counters.step > first_step:
                told_at = time.monotonic()
                _finite(setup, counters, loss_sum)
                report()
                rate = (clock() - first_seconds) / (counters.step - first_step)
                say(_progress_line(setup.spec.name, counters, total, float(loss_sum), rate))
            data = next(batches)
            loss_sum += train_step(setup, data, counters.step)
            counters.step += 1
            counters.loss_steps += 1
            counters.molecules += data.num_graphs
            counters.atoms += data.z.shape[0]


def _finite(setup: Setup, counters: Counters, loss_sum: Tensor) -> float:
    """The sum of the training loss; raises UserError if it is not a number, before that reaches any file."""
    value = float(loss_sum)
    if not math.isfinite(value):
        raise UserError(_not_finite(setup, counters, "training", value))
    return value


def _not_finite(setup: Setup, counters: Counters, which: str, value: float) -> str:
    since = counters.rows[-1]["step"] if counters.rows else 0
    return (
        f"{setup.spec.name}: the {which} loss became {value} between steps {since} and {counters.step}; "
        "lower 'lr' or raise 'warmup_steps' for this architecture (the last finite checkpoint is kept)"
    )


def _row(setup, counters: Counters, cost: StepCost, loss_sum: float, seconds: float, losses: dict) -> dict:
    return {
        "step": counters.step,
        "epoch": counters.step / setup.plan.steps_per_epoch,
        "fraction": counters.step / len(setup.plan),
        "molecules": counters.molecules,
        "atoms": counters.atoms,
        "flops": cost.training * counters.atoms,
        "device_hours": seconds / 3600 * setup.spec.hours_factor,
        "lr": width_rate(setup.spec),
        "train_loss": loss_sum / max(counters.loss_steps, 1),
        **losses,
    }


def _progress_line(
    name: str, counters: Counters, total: int, loss_sum: float, seconds_per_step: float
) -> str:
    left = round(seconds_per_step * (total - counters.step))
    val = f"{counters.rows[-1]['val_loss']:.4f}" if counters.rows else "-"
    # none since the last row, right after a validation
    train_loss = f"{loss_sum / counters.loss_steps:.4f}" if counters.loss_steps else "-"
    return (
        f"{name}: step {counters.step}/{total} ({100 * counters.step / total:.0f} %)  train {train_loss}  "
        f"val {val}  {1 / seconds_per_step:.1f} steps/s  left {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
    )


def _save_weights(setup: Setup, folder: CheckpointFolder) -> None:
    """The averaged weights, ready for use: model.pt beside the checkpoint."""
    saved = weights_of(setup.model)
    setup.optimizer.eval()
    partial = folder.path / ".model.pt.tmp"
    torch.save({"spec": spec_dict(setup.spec), "model": setup.model.state_dict()}, partial)
    partial.replace(folder.path / "model.pt")
    setup.optimizer.train()
    restore_weights(setup.model, saved)


def _metadata(setup: Setup, cost: StepCost, folder: CheckpointFolder) -> dict:
    parameters = count_parameters(setup.model)
    return {
        "spec": spec_dict(setup.spec),
        "spec_hash": spec_hash(setup.spec),
        "N": parameters,
        "kappa": cost.kappa(parameters),
        "flops_per_atom": cost.training,
        "forward_flops_per_atom": cost.forward,
        "total_steps": len(setup.plan),
        "data_hash": setup.pack.content_hash,
        "train_molecules": len(setup.plan.split),
        "sigma": setup.pack.sigma,
        "restarts": folder.restarts,
        "preemptions": folder.preemptions,
    }
