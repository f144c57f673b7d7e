"""Residuals and identifiability of a fit, as numbers and as words for the reader."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from symscale.analysis.laws import NAMES, Fit
from symscale.analysis.solver import _model

MISFIT = 0.05  # residual sd of log L
CORRELATED = 0.3  # lag-1 correlation of residuals along runs that is worth a word
WIDE = 4.0  # N or D that span less than this factor say little about an exponent


@dataclass(frozen=True)
class Words:
    """What a reader is told about a fit. A flag says that its number must not be taken at its face and makes the
    fit 'flagged'; a note explains."""

    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: Words) -> Words:
        return Words(self.flags + other.flags, self.notes + other.notes)

    @property
    def status(self) -> str:
        return "flagged" if self.flags else "ok"

    @property
    def text(self) -> tuple[str, ...]:
        """All words, flags first."""
        return self.flags + self.notes


NOTHING = Words()


def flag(*words: str) -> Words:
    return Words(flags=words)


def note(*words: str) -> Words:
    return Words(notes=words)


def diagnose(fit: Fit, runs: np.ndarray | None = None, draws: dict | None = None) -> tuple[dict, Words]:
    """Numbers and words about a fit; runs (n,) labels in the order of its points, draws from a bootstrap."""
    numbers, flags, notes = {}, list(fit.words), []
    r = fit.residuals
    numbers["residual_sd"] = float(r.std())
    rho = None  # known where runs have several rows
    if runs is not None:
        numbers["n_runs"] = len(np.unique(runs))
        rho, numbers["between_run_share"] = correlation_along(r, runs)
        numbers["autocorrelation"] = rho
        rho = rho if numbers["n_runs"] < len(runs) else None
    if numbers["residual_sd"] > MISFIT:
        size = f"residuals of {numbers['residual_sd']:.0%} in the loss"
        if rho is None or rho > CORRELATED:
            flags.append(f"{size}: the law misses what these curves do")
        else:
            notes.append(f"{size}, without a pattern along the runs: noisy curves")
    _, jac = _model(fit.theta[None], fit.x)
    j = jac[0].T  # (n, P), centred logs
    active = np.linalg.norm(j, axis=0) > 0
    j = j[:, active]
    numbers["condition"] = float(np.linalg.cond(j.T @ j)) if j.size else float("nan")
    if numbers["condition"] > 1e6:
        flags.append(
            f"condition number {numbers['condition']:.1e}: the parameters are barely determined together"
        )
    names = NAMES[fit.law]
    for k in range(0, len(names), 2):
        scale, exponent = names[k], names[k + 1]
        correlation = _correlation(fit, draws, scale, exponent, k)
        numbers[f"corr({exponent}, log {scale})"] = correlation
    strong = [n for n, v in numbers.items() if n.startswith("corr") and abs(v) > 0.95]
    if strong:
        notes.append(f"{' and '.join(strong)} above 0.95: read exponent and factor together")
    for name, row in zip(("N", "D") if fit.law == "sum" else ("x",), fit.x, strict=True):
        span = float(np.exp(np.ptp(row)))
        numbers[f"span_{name}"] = span
        if span < WIDE:
            flags.append(f"{name} spans a factor {span:.2g} only: its exponent is weakly determined")
    if rho is not None and rho > CORRELATED:
        notes.append(
            f"residuals of one run are correlated (lag 1: {rho:.2f}): the per-point interval is too narrow"
        )
    if draws is not None:
        for name in (n for n in names if n in draws):
            lost = ~np.isfinite(draws[name])
            if lost.mean() > 0.01:
                flags.append(f"{lost.mean():.0%} of the resamples gave no finite {name}")
    return numbers, Words(tuple(flags), tuple(notes))


def _correlation(fit: Fit, draws: dict | None, scale: str, exponent: str, k: int) -> float:
    """corr(exponent, log factor) over the draws, or by the local quadratic where there are none."""
    varied = draws is not None and np.std(draws[exponent]) > 1e-6 * abs(fit.params[exponent])
    if varied and np.all(draws[scale] > 0):
        return float(np.corrcoef(draws[exponent], np.log(draws[scale]))[0, 1])
    _, jac = _model(fit.theta[None], fit.x)
    covariance = np.linalg.pinv(jac[0] @ jac[0].T)
    change = np.eye(len(fit.theta))
    for t in range(len(fit.x)):
        change[2 * t, 2 * t + 1] = fit.centre[t]  # log factor = c + g centre
    covariance = change @ covariance @ change.T
    scale = np.sqrt(covariance[k, k] * covariance[k + 1, k + 1])
    return float(covariance[k, k + 1] / scale) if scale > 0 else float("nan")


def correlation_along(residuals: np.ndarray, runs: np.ndarray) -> tuple[float, float]:
    """Lag-1 autocorrelation of residuals within runs (in the order given), and the share of their variance
    that lies between runs."""
    pairs, first, second, means, counts = 0.0, 0.0, 0.0, [], []
    mean = residuals.mean()
    for run in np.unique(runs):
        r = residuals[runs == run] - mean
        means.append(r.mean())
        counts.append(len(r))
        pairs += (r[1:] * r[:-1]).sum()
        first, second = first + (r[:-1] ** 2).sum(), second + (r[1:] ** 2).sum()
    variance, scale = residuals.var(), np.sqrt(first * second)
    between = np.average(np.square(means), weights=counts) / variance if variance > 0 else 0.0
    return (float(pairs / scale) if scale > 0 else 0.0), float(between)


def replicate_spread(fit: Fit, N: np.ndarray, runs: np.ndarray) -> tuple[float, int]:
    """Standard deviation of log L between runs of one N (seeds), and its degrees of freedom; (nan, 0) without."""
    squares, df = 0.0, 0
    for n in np.unique(N):
        labels = np.unique(runs[n == N])
        if len(labels) > 1:
            means = np.array([fit.residuals[runs == run].mean() for run in labels])
            squares += ((means - means.mean()) ** 2).sum()
            df += len(labels) - 1
    return (float(np.sqrt(squares / df)) if df else float("nan")), df


def spread_interval(sd: float, df: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a standard deviation from df degrees of freedom (chi-square, normal deviations); NaN for df = 0."""
    from scipy.special import chdtri

    if df < 1 or not np.isfinite(sd):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    return float(sd * np.sqrt(df / chdtri(df, tail))), float(sd * np.sqrt(df / chdtri(df, 1 - tail)))
