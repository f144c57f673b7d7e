"""One law at a time, with its intervals and words: what a reader is told about each fit."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from symscale.analysis import intervals as iv
from symscale.analysis.closed import Allocation, fit_cost
from symscale.analysis.diagnostics import (
    NOTHING,
    Words,
    diagnose,
    flag,
    note,
    replicate_spread,
    spread_interval,
)
from symscale.analysis.frontier import bootstrap_frontier, fit_frontier
from symscale.analysis.laws import NAMES, Fit, fit
from symscale.errors import UserError

MIN_WINDOW = 12  # budgets of an uncensored window that is worth a fit


@dataclass(frozen=True)
class Options:
    """How to analyse; the keys of a config's `analysis` section."""

    burn_in: float = 0.02
    bootstraps: int = 1000
    delta: float = 1e-3
    linf: str | int = 0
    ema: dict[str, float] = field(default_factory=dict)
    seed: int = 0

    @property
    def free(self) -> bool:
        return str(self.linf) == "free"


@dataclass(frozen=True)
class Record:
    """One fit as it is written. params: name -> (value, lo, hi, naive_lo, naive_hi); jackknife: name -> (lo, hi)."""

    law: str
    group: str
    arch: str
    x: str
    variant: str
    status: str  # 'ok', 'flagged', 'not fitted'
    words: tuple[str, ...]  # flags first
    params: dict[str, tuple[float, float, float, float, float]] = field(default_factory=dict)
    interval: str = ""
    jackknife: dict[str, tuple[float, float]] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    cells: tuple[str, ...] = ()
    n_points: int = 0
    n_bootstrap: int = 0
    rejected: int = 0
    seed: int = 0
    draws: dict[str, np.ndarray] = field(default_factory=dict)
    left: dict[str, np.ndarray] = field(default_factory=dict)  # leave-one-run-out values behind the jackknife
    flags: tuple[str, ...] = ()  # the words that make it 'flagged'

    @property
    def name(self) -> str:
        return ":".join(p for p in (self.law, self.group, self.x, self.variant) if p)


def few_runs(n_runs: int, n_sizes: int, interval: bool) -> str:
    """The flag of a fit to few runs."""
    return f"{n_runs} runs only" + (
        ": intervals are indicative" if interval else f", of {n_sizes} sizes: no interval"
    )


def cells_of(table: pd.DataFrame) -> tuple[str, ...]:
    return tuple(np.unique(table["cell"].astype(str)))


def interval_of(name: str, value: float, draws: iv.Draws, centre: dict | None = None) -> tuple[float, float]:
    """Percentile interval of draws, or basic about their own truth (in logs for factors)."""
    if centre is None:
        return iv.percentile(draws.params[name])
    if name == "F":
        with np.errstate(divide="ignore"):
            low, high = iv.basic(np.log(value), np.log(draws.params[name]), np.log(centre[name]))
        return float(np.exp(low)), float(np.exp(high))
    return iv.basic(value, draws.params[name], centre[name])


def analyse_sum(
    points: pd.DataFrame,
    group: str,
    arch: str,
    options: Options,
    variant: str = "",
    words: Words = NOTHING,
) -> tuple[Fit | None, Record]:
    """Fit 1 with run bootstrap, jackknife below ten runs, and the published kind of interval; words: what is known
    about the points beforehand."""
    runs, N = points["run"].to_numpy(str), points["N"].to_numpy(float)
    n_runs, n_sizes = len(np.unique(runs)), len(np.unique(N))
    base = {"group": group, "arch": arch, "x": "", "variant": variant, "cells": cells_of(points)}
    try:
        if n_sizes < 2:
            raise UserError(f"{n_sizes} model size; alpha needs runs of at least two")
        law = fit("sum", [N, points["D"].to_numpy(float)], points["loss"].to_numpy(float),
                  free=options.free, delta=options.delta)  # fmt: skip
    except UserError as error:
        return None, Record("sum", status="not fitted", words=(str(error),), **base)
    jack, left, rejected, df = {}, {}, 0, 0
    rng = iv.generator(options.seed, "sum", group, variant)
    naive = iv.bootstrap_points(law, options.bootstraps, rng)
    main = None
    if n_runs >= 3:
        main = iv.bootstrap_runs(law, runs, N, options.bootstraps, rng)
        rejected = main.rejected
        if n_runs < iv.FEW_RUNS:
            df = iv.jackknife_df(runs, N, options.free)
            left = iv.jackknife_runs(law, runs).params
            jack = {
                name: iv.jackknife_interval(name, law.params[name], left[name], df) for name in left if df
            }
    kind = main.kind if main and not left else "run jackknife, t" if jack else "none"
    if n_runs < 5 or kind == "none":
        words += flag(few_runs(n_runs, n_sizes, bool(jack)))
    numbers, more = diagnose(law, runs, main.params if main else None)
    numbers |= {"objective": law.objective, "n_sizes": n_sizes, "jackknife_df": df}
    spread, seeds = replicate_spread(law, N, runs)
    if seeds:
        low, high = spread_interval(spread, seeds)
        numbers |= {"replicate_sd": spread, "replicate_lo": low, "replicate_hi": high, "replicate_df": seeds}
    params = {}
    for name in (*NAMES["sum"], "E"):
        low, high = float("nan"), float("nan")
        if kind.startswith("run jackknife"):
            low, high = jack[name]
        elif main and kind == main.kind:
            low, high = iv.percentile(main.params[name])
        params[name] = (law.params[name], low, high, *iv.percentile(naive.params[name]))
    words += more
    return law, Record("sum", status=words.status, words=words.text, flags=words.flags, params=params, interval=kind,
                       jackknife=jack, numbers=numbers, n_points=len(points),
                       n_bootstrap=options.bootstraps if main else 0, rejected=rejected, seed=options.seed, left=left,
                       draws=(main or naive).params | {f"naive_{k}": v for k, v in naive.params.items()},
                       **base)  # fmt: skip


def analyse_cost(points: pd.DataFrame, group: str, arch: str, x: str) -> tuple[object | None, Record]:
    """Fit 4: kappa from C (p = 1), or hours from H (p fitted)."""
    law = "kappa" if x == "C" else "hours"
    base = {"group": group, "arch": arch, "x": x, "variant": "", "cells": cells_of(points)}
    try:
        cost = fit_cost(points, x, 1.0 if x == "C" else None)
    except UserError as error:
        return None, Record(law, status="not fitted", words=(str(error),), **base)
    runs = points["run"].to_numpy(str)
    labels = np.unique(runs)
    values = {"kappa": cost.kappa, "drift": cost.drift} if x == "C" else {"xi": cost.xi, "p": cost.p}
    params = {name: (v, *[float("nan")] * 4) for name, v in values.items()}
    if len(labels) >= 3:
        left = [fit_cost(points[runs != g], x, 1.0 if x == "C" else None) for g in labels]
        for name, value in values.items():
            error = iv.jackknife_error(np.array([getattr(c, name) for c in left]))
            params[name] = (value, *iv.student(value, error, len(labels) - 1), float("nan"), float("nan"))
    words = NOTHING
    if abs(cost.drift) > 0.05 and x == "C":
        words = flag(f"C/(N D) changes as N^{cost.drift:+.2f}: kappa is no constant on this ladder")
    numbers = {"spread": cost.spread, "drift": cost.drift}
    return cost, Record(law, status=words.status, words=words.text, flags=words.flags, params=params,
                        interval="run jackknife, t", numbers=numbers, n_points=len(points), **base)  # fmt: skip


def analyse_closed(law: Fit, record: Record, cost, x: str) -> tuple[Allocation, Record]:
    """Fit 3: the frontier that the sum law implies, with its draws."""
    names = ("gamma", "F", "a", "b", "G")
    allocation = Allocation(law.params, cost)

    def derived(draws: dict) -> dict[str, np.ndarray]:
        with np.errstate(all="ignore"):
            return (
                {name: np.asarray(getattr(Allocation(draws, cost), name)) for name in names} if draws else {}
            )

    draws = derived({k: v for k, v in record.draws.items() if not k.startswith("naive_")})
    naive = derived({k[6:]: v for k, v in record.draws.items() if k.startswith("naive_")})
    left = derived(record.left)
    values = {name: float(getattr(allocation, name)) for name in names}
    df = int(record.numbers.get("jackknife_df", 0))
    jack = {name: iv.jackknife_interval(name, values[name], left[name], df) for name in left if df}
    params = {}
    for name, value in values.items():
        low, high = iv.percentile(draws[name]) if record.interval == "run bootstrap" else (float("nan"),) * 2
        if record.interval.startswith("run jackknife"):
            low, high = jack[name]
        params[name] = (value, low, high, *iv.percentile(naive[name]))
    return allocation, Record("closed_form", record.group, record.arch, x, "", record.status, record.words, params,
                              record.interval, jack, cells=record.cells, n_points=record.n_points,
                              n_bootstrap=record.n_bootstrap, rejected=record.rejected, seed=record.seed, draws=draws,
                              left=left, flags=record.flags)  # fmt: skip


def analyse_frontier(
    table, points, surface, group, arch, x, variant, inside, options, words: Words = NOTHING
) -> Record:
    """Fit 2 on the budgets `inside`, with the run-residual bootstrap where there is a surface."""
    base = {
        "group": group,
        "arch": arch,
        "x": x,
        "variant": variant,
        "cells": cells_of(table[inside]),
    }
    try:
        if inside.sum() < MIN_WINDOW:
            raise UserError(f"{int(inside.sum())} budgets in the window; needs {MIN_WINDOW}")
        law = fit_frontier(table[inside], free=options.free)
    except UserError as error:
        return Record("frontier", status="not fitted", words=(str(error),), **base)
    rng = iv.generator(options.seed, "frontier", group, x, variant)
    naive = iv.bootstrap_points(law, options.bootstraps, rng)
    n_runs = points["run"].nunique()
    kind, draws, centre = "none", None, None
    if surface is not None and n_runs >= 3:
        draws, centre = bootstrap_frontier(points, surface, law, x=x, inside=inside,
                                           n_bootstrap=options.bootstraps, rng=rng, n_budgets=len(table))  # fmt: skip
        kind = draws.kind
        if n_runs < 5:
            words += flag(f"{n_runs} runs only: the interval is indicative")
    else:
        words += flag(
            f"{n_runs} runs only: no interval"
            if n_runs < 3
            else "no sum law to redraw runs about: no interval"
        )
    numbers, more = diagnose(law, None, None)
    numbers["objective"] = law.objective
    holders = table["run"][inside].nunique()
    if holders < 2:
        words += flag("one run holds the whole frontier: this is its learning curve, not a frontier")
    params = {}
    for name in ("gamma", "F", "E"):
        low, high = (
            (float("nan"),) * 2 if draws is None else interval_of(name, law.params[name], draws, centre)
        )
        params[name] = (law.params[name], low, high, *iv.percentile(naive.params[name]))
        if name != "E" and (law.params[name] < low or law.params[name] > high):
            words += note(
                f"{name} lies outside of its interval, which corrects for taking the luckiest of noisy runs"
            )
    words += more
    return Record("frontier", status=words.status, words=words.text, flags=words.flags, params=params, interval=kind,
                  numbers=numbers, n_points=int(inside.sum()), n_bootstrap=options.bootstraps if draws else 0,
                  seed=options.seed, draws=draws.params if draws else {}, **base)  # fmt: skip
