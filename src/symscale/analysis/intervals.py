"""Intervals: run bootstrap, run jackknife, the paper's per-point bootstrap.

Checkpoints of one run share its luck, so a run is what is drawn again, never a point. With run-correlated noise
a nominal 95 % per-point interval covers alpha in .60-.66 of cases, the run bootstrap in .96-1.0.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from symscale.analysis.laws import Fit, natural, varpro_starts
from symscale.analysis.solver import solve
from symscale.errors import UserError

FEW_RUNS = (
    10  # below, the run jackknife is the interval: the bootstrap of 7 runs covers 0.995 instead of 0.95
)
MIN_DISTINCT_N = 3
SCREEN = (4, 100)  # iterations and (about) points that choose among several starts of a resample


@dataclass(frozen=True)
class Draws:
    """Bootstrap draws of a fit: params {name: (R,)}, kind in words, number of resamples that were refused."""

    params: dict[str, np.ndarray]
    kind: str
    rejected: int


def generator(seed: int, *labels: str) -> np.random.Generator:
    """A stream of its own for every fit, so that results depend on no order and no number of processes."""
    return np.random.default_rng([seed, *(zlib.crc32(label.encode()) for label in labels)])


def run_weights(runs: np.ndarray, N: np.ndarray, n_bootstrap: int, rng) -> tuple[np.ndarray, int]:
    """Weights (R, n) of points when whole runs are drawn with replacement; number of refused resamples.

    A resample needs at least MIN_DISTINCT_N different N (or all there are), or alpha is not determined.
    """
    labels, code = np.unique(runs, return_inverse=True)
    size = np.array([np.median(N[code == g]) for g in range(len(labels))])
    _, size_code = np.unique(size, return_inverse=True)
    need = min(MIN_DISTINCT_N, size_code.max() + 1)
    kept, rejected, have = [], 0, 0
    while have < n_bootstrap:
        counts = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=n_bootstrap)
        present = np.zeros((n_bootstrap, size_code.max() + 1), dtype=bool)
        for g, s in enumerate(size_code):
            present[:, s] |= counts[:, g] > 0
        good = present.sum(axis=1) >= need
        last = (
            np.searchsorted(np.cumsum(good), n_bootstrap - have) if good.sum() > n_bootstrap - have else None
        )
        used = slice(None) if last is None else slice(last + 1)
        rejected += int((~good[used]).sum())
        kept.append(counts[used][good[used]])
        have += len(kept[-1])
    return np.concatenate(kept)[:n_bootstrap][:, code].astype(float), rejected


def refit(fit: Fit, weights: np.ndarray | None = None, y: np.ndarray | None = None, starts: int = 1) -> dict:
    """Natural parameters {name: (R,)} of the law refitted to weights (R, n) or to other log losses y (R, n).

    Warm start at the fit; with more starts, the best of it and the projection's best cells.
    """
    rows = len(weights) if weights is not None else len(y)
    y = fit.y if y is None else y
    begin = [fit.theta, *(varpro_starts(fit.x, fit.y, fit.free, starts - 1) if starts > 1 else [])]
    best, value = np.repeat(fit.theta[None], rows, axis=0), np.full(rows, np.inf)
    thin = slice(None, None, max(1, fit.x.shape[1] // SCREEN[1]))
    part = None if weights is None else weights[:, thin]
    for theta in begin if starts > 1 else ():  # a few steps on some points choose where to search to the end
        start = np.repeat(theta[None], rows, axis=0)
        found = solve(
            fit.x[:, thin],
            y[..., thin],
            start,
            weights=part,
            delta=fit.delta,
            tolerance=1e-3,
            max_iterations=SCREEN[0],
        )
        better = found.objective < value
        best, value = np.where(better[:, None], found.theta, best), np.where(better, found.objective, value)
    best = solve(fit.x, y, best, weights=weights, delta=fit.delta, tolerance=1e-5, max_iterations=100).theta
    return natural(fit.law, best, fit.centre)


def bootstrap_runs(fit: Fit, runs: np.ndarray, N: np.ndarray, n_bootstrap: int, rng) -> Draws:
    """Run (cluster) bootstrap of a fit; runs (n,) labels, N (n,) in the order of the fit's points."""
    n_runs = len(np.unique(runs))
    weights, rejected = run_weights(runs, N, n_bootstrap, rng)
    starts = 8 if n_runs < FEW_RUNS else 1
    return Draws(refit(fit, weights=weights, starts=starts), "run bootstrap", rejected)


def bootstrap_points(fit: Fit, n_bootstrap: int, rng) -> Draws:
    """The paper's own (appendix E): points drawn one by one. Too narrow where they are checkpoints of runs."""
    n = fit.x.shape[1]
    weights = rng.multinomial(n, np.full(n, 1 / n), size=n_bootstrap).astype(float)
    return Draws(refit(fit, weights=weights), "per point, as published", 0)


def jackknife_runs(fit: Fit, runs: np.ndarray) -> Draws:
    """Refits without one run each: params {name: (G,)}."""
    labels = np.unique(runs)
    if len(labels) < 3:
        raise UserError(f"jackknife: {len(labels)} runs; needs at least three")
    weights = (runs[None, :] != labels[:, None]).astype(float)
    return Draws(refit(fit, weights=weights, starts=8), "run jackknife", 0)


def jackknife_df(runs: np.ndarray, size: np.ndarray, free: bool) -> int:
    """Degrees of freedom of the run jackknife: runs less the parameters that only differences between runs determine,
    which are the factor and exponent of `size` (n,), N in the sum law, and L_inf if `free`.

    0, and so no interval, where a leave-one-out fit has fewer sizes than these parameters: three sizes and a free
    L_inf gave intervals that held the truth in .5 to .9 of the cases. A law in something that varies along a run (D)
    leaves runs - 1.
    """
    labels = np.unique(runs)
    if any(np.ptp(size[runs == run]) > 0 for run in labels):
        return len(labels) - 1
    needs = 2 + free
    left = min(len(np.unique(size[runs != run])) for run in labels) if len(labels) > 1 else 0
    return max(len(labels) - needs, 0) if left >= needs else 0


def jackknife_interval(name: str, value: float, left: np.ndarray, df: int) -> tuple[float, float]:
    """t interval of the run jackknife from leave-one-out values (G,); factors in logs, L_inf not below 0; NaN for
    df = 0."""
    if df < 1:
        return float("nan"), float("nan")
    if name in ("A", "B", "F", "G"):
        low, high = student(np.log(value), jackknife_error(np.log(left)), df)
        return float(np.exp(low)), float(np.exp(high))
    low, high = student(value, jackknife_error(left), df)
    return (max(low, 0.0), high) if name == "E" else (low, high)


def jackknife_error(values: np.ndarray) -> float:
    """Standard error of leave-one-out values (G,)."""
    n = len(values)
    return float(np.sqrt((n - 1) / n * np.sum((values - values.mean()) ** 2)))


def percentile(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Equal-tailed interval of draws; NaN draws are left out."""
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def basic(value: float, draws: np.ndarray, centre: float, level: float = 0.95) -> tuple[float, float]:
    """Basic interval: draws scatter about `centre` (their own truth) as the estimate does about the truth."""
    low, high = percentile(draws, level)
    return value - (high - centre), value - (low - centre)


def student(value: float, error: float, df: int, level: float = 0.95) -> tuple[float, float]:
    """t interval."""
    from scipy.special import stdtrit

    half = float(stdtrit(max(df, 1), (1 + level) / 2)) * error
    return value - half, value + half
