"""Learning curves drawn from a known law, with noise that is correlated along a run.

log L = log L(N, D) + offset of the run + Ornstein-Uhlenbeck term along log D + noise of each evaluation.
A stand-in for a full sweep: it says what an analysis would make of curves whose truth is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from symscale.analysis import paper
from symscale.analysis.laws import evaluate
from symscale.analysis.points import FRACTIONS, PFLOP, group_of

ATOMS_PER_MOLECULE = paper.D_MAX / paper.MOLECULES
REPEATS_WORTH = 15.0  # passes over repeated data that are worth about as much as fresh ones


@dataclass(frozen=True)
class Noise:
    """Standard deviations in log L; memory is the correlation length of `along` in log D."""

    run: float = 0.01
    along: float = 0.01
    evaluation: float = 0.003
    memory: float = 0.7


NOISE_FREE = Noise(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Truth:
    """A ground-truth law and what its runs cost.

    unique: atoms of the training set; what a run sees beyond it are repeats, worth less with every pass
    (Muennighoff et al., 2023: an effective D that saturates at 16 times the set); infinite where data are fresh
    or augmented.
    params: A, alpha, B, beta, E. kappa: forward FLOPs per parameter per atom. ladder: (width, N) pairs.
    flop_rate: FLOP/s of the device at a million parameters (made up: the paper gives no hours), which grows as
    N^-hours_drift because larger matrices use a device better.
    """

    arch: str
    params: dict
    kappa: float
    ladder: tuple[tuple[int, int], ...]
    axis: str = "w"
    batch_size: int = 64
    flop_rate: float = 4e12
    hours_drift: float = -0.15
    hours_factor: float = 1.0
    suffix: str = ""
    unique: float = float("inf")

    def effective(self, d: np.ndarray) -> np.ndarray:
        """Atoms of fresh data that d atoms with repeats are worth."""
        repeats = np.maximum(d / self.unique - 1, 0.0)
        return np.where(
            repeats > 0, self.unique * (1 + REPEATS_WORTH * -np.expm1(-repeats / REPEATS_WORTH)), d
        )

    def hours(self, compute: np.ndarray, n: float) -> np.ndarray:
        """Device-hours of compute (FLOP) at N = n."""
        return compute / (self.flop_rate * (n / 1e6) ** -self.hours_drift) / 3600 * self.hours_factor


def paper_truth(arch: str) -> Truth:
    """Table 7's law on the published ladder; EGNN's hours count double, as in the paper."""
    return Truth(
        arch,
        paper.table7_law(arch),
        paper.KAPPA[arch],
        paper.LADDERS[arch],
        paper.AXES[arch],
        paper.BATCH_SIZE[arch],
        hours_factor=2.0 if arch == "egnn" else 1.0,
    )


def validation_steps(total: int, validations: int = 30, first: float = 1e-3) -> np.ndarray:
    """Log-spaced steps from `first` of the run to its end, and those at r = 0.1 ... 1.0."""
    spaced = np.geomspace(max(1.0, first * total), total, validations) if validations > 1 else [total]
    at = [round(r * total) for r in FRACTIONS]
    return np.unique(np.clip(np.concatenate([np.round(spaced), at]), 1, total).astype(int))


def noise_along(log_d: np.ndarray, noise: Noise, rng) -> np.ndarray:
    """One run's deviation of log L, (n,) for increasing log D (n,)."""
    n = len(log_d)
    out = np.full(n, noise.run * rng.standard_normal())
    shocks = rng.standard_normal(n)
    keep = np.exp(-np.diff(log_d) / noise.memory)
    level = noise.along * shocks[0]
    out[0] += level
    for i in range(1, n):
        level = keep[i - 1] * level + noise.along * np.sqrt(1 - keep[i - 1] ** 2) * shocks[i]
        out[i] += level
    return out + noise.evaluation * rng.standard_normal(n)


def one_run(
    truth: Truth, cell: str, width: int, n: int, seed: int, rng, noise: Noise, d_max: float, validations: int
):
    """Points of one run (points.py)."""
    total = max(20, round(d_max / ATOMS_PER_MOLECULE / truth.batch_size))
    steps = validation_steps(total, validations)
    d = steps / total * d_max
    loss = evaluate(truth.params, n, truth.effective(d)) * np.exp(noise_along(np.log(d), noise, rng))
    share = 0.2 * np.exp(0.05 * rng.standard_normal(len(d)))  # energy curves are the noisier (Figure 14)
    compute = 3 * truth.kappa * n * d
    return pd.DataFrame(
        {
            "cell": cell,
            "group": group_of(cell),
            "arch": truth.arch,
            "run": cell,
            "seed": seed,
            "width": width,
            "N": float(n),
            "D": d,
            "C": compute / PFLOP,
            "H": truth.hours(compute, n),
            "step": steps,
            "total_steps": total,
            "fraction": steps / total,
            "loss": loss,
            "energy_loss": share * loss,
            "force_loss": (1 - share) * loss,
        }
    )


def simulate(
    truth: Truth,
    rng,
    *,
    noise: Noise | None = None,
    d_max: float = paper.D_MAX,
    validations: int = 30,
    seeds: int = 1,
) -> pd.DataFrame:
    """A points table (see points.py) of one run per rung and seed."""
    noise = Noise() if noise is None else noise
    frames = []
    for width, n in truth.ladder:
        for seed in range(seeds):
            cell = f"{truth.arch}_{truth.axis}{width}{truth.suffix}" + (f"_s{seed}" if seed else "")
            frames.append(one_run(truth, cell, width, n, seed, rng, noise, d_max, validations))
    return pd.concat(frames, ignore_index=True)


def paper_sweep(seed: int = 0, noise: Noise | None = None, **options) -> pd.DataFrame:
    """The paper's 48 runs; every architecture has a random stream of its own."""
    from symscale.analysis.intervals import generator

    parts = [
        simulate(paper_truth(a), generator(seed, "simulate", a), noise=noise, **options)
        for a in paper.LADDERS
    ]
    return pd.concat(parts, ignore_index=True)
