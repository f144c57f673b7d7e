"""A law through anyone's table: what `symscale fit` prints."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from symscale.analysis import intervals as iv
from symscale.analysis.diagnostics import NOTHING, Words, diagnose, flag, note
from symscale.analysis.frontier import bootstrap_frontier, extract, fit_frontier
from symscale.analysis.laws import NAMES, Fit, fit
from symscale.analysis.points import canonical, doubts
from symscale.analysis.records import few_runs, interval_of
from symscale.errors import UserError


def fit_table(
    table: pd.DataFrame,
    law: str,
    *,
    free: bool = True,
    x: str | None = None,
    columns: dict[str, str] | None = None,
    n_bootstrap: int = 1000,
    delta: float = 1e-3,
    seed: int = 0,
) -> dict:
    """Fit `law` ('sum', 'frontier', 'power') and return {law, params, objective, n_points, n_bootstrap,
    diagnostics} in JSON-ready values; params name -> {value, lo, hi}, None where there is no interval.

    columns maps roles (N, D, loss, C, H, run) to the table's own names; x is a role or a column. A run column
    (or `cell`) makes intervals resample runs; without one rows are taken for independent runs, and this is said.
    Raises UserError for missing columns and for values that no power law can have.
    """
    points, words = _points(table, columns or {})
    x = x or ("C" if "C" in points or law == "frontier" else "N")
    needed = ["N", "D"] if law == "sum" else [x]
    if x not in points and x in table and law != "sum":
        points[x] = pd.to_numeric(table.loc[points.index, x], errors="coerce").astype(float)
    for name in needed:
        if name not in points:
            known = ", ".join(map(str, table.columns))
            raise UserError(f"no column for {name}; the table has {known}; --column {name}=NAME names one")
    _refuse(points, [*needed, "loss"])
    if law == "frontier" and points["run"].nunique() == len(points):
        words += note("no runs of several rows: each row counts as a finished run")
    if "given_run" not in points:  # labels by value: the order of rows must not matter
        points = points.sort_values([c for c in points if c != "run"]).reset_index(drop=True)
        points["run"] = [f"{i:09d}" for i in range(len(points))]
    points = canonical(points)
    twice = points.duplicated([*needed, "loss", "run"] if "given_run" in points else [*needed, "loss"])
    if twice.any():
        words += note(f"{int(twice.sum())} duplicate rows left out")
        points = points[~twice].reset_index(drop=True)
    if {"N", "D", "C"} <= set(points):
        words += flag(*doubts(points))
    rng = iv.generator(seed, "fit", law)
    fitted, draws, kind, more, centre = _fit(points, law, x, free, delta, n_bootstrap, rng)
    runs = points["run"].to_numpy(str) if law != "frontier" else None
    numbers, words_fit = diagnose(
        fitted, runs, draws.params if draws and len(np.unique(points["run"])) > 3 else None
    )
    words += more + words_fit
    n_runs = points["run"].nunique()
    left, df = None, 0
    if kind == "run bootstrap" and n_runs < iv.FEW_RUNS:
        left = iv.jackknife_runs(fitted, points["run"].to_numpy(str)).params
        df = iv.jackknife_df(
            points["run"].to_numpy(str), points["N" if law == "sum" else x].to_numpy(float), free
        )
        kind = "run jackknife, t" if df else "none"
    if "given_run" in points and law != "frontier" and n_bootstrap and (n_runs < 5 or kind == "none"):
        n_sizes = points["N" if law == "sum" else x].nunique()
        words += flag(few_runs(n_runs, n_sizes, kind != "none"))
    params = {}
    for name in (*NAMES[fitted.law], "E"):
        low, high = math.nan, math.nan
        if left is not None:
            low, high = iv.jackknife_interval(name, fitted.params[name], left[name], df)
        elif draws is not None:
            low, high = interval_of(name, fitted.params[name], draws, centre)
        params[name] = {"value": fitted.params[name], "lo": _number(low), "hi": _number(high)}
    if law == "sum":
        params = {name: params[name] for name in ("A", "B", "E", "alpha", "beta")}
    diagnostics = {
        "status": words.status,
        "words": list(words.text),
        "flags": list(words.flags),
        "interval": kind,
    }
    diagnostics |= {name: _number(v) for name, v in numbers.items()} | {"n_runs": int(n_runs)}
    if draws is not None and draws.rejected:
        diagnostics["rejected"] = draws.rejected
    return {
        "law": law,
        "params": params,
        "objective": fitted.objective,
        "n_points": int(fitted.x.shape[1]),
        "n_bootstrap": n_bootstrap if draws is not None else 0,
        "diagnostics": diagnostics,
    }


def _points(table: pd.DataFrame, columns: dict[str, str]) -> tuple[pd.DataFrame, Words]:
    """The table under the names of roles, with a run for every row."""
    out, words = {}, NOTHING
    for role in ("N", "D", "loss", "C", "H"):
        name = columns.get(role, role)
        if name in table:
            values = pd.to_numeric(table[name], errors="coerce")
            out[role] = values.astype(float)
        elif role in columns or role == "loss":
            raise UserError(f"no column '{name}'; the table has {', '.join(map(str, table.columns))}")
    points = pd.DataFrame(out, index=table.index)
    run = columns.get("run") or next((name for name in ("run", "cell") if name in table), None)
    if run is not None:
        if run not in table:
            raise UserError(f"no column '{run}'; the table has {', '.join(map(str, table.columns))}")
        if table[run].isna().any():
            row = int(table[run].isna().to_numpy().argmax()) + 1
            raise UserError(
                f"column {run}: {int(table[run].isna().sum())} rows have no run (first: data row {row})"
            )
        points["run"] = table[run].astype(str)
        points["given_run"] = True
    else:
        points["run"] = [f"{i:09d}" for i in range(len(table))]
        words += note(
            "no run column: rows are taken for separate runs; if some are checkpoints of one run, "
            "intervals are too narrow (--column run=NAME)"
        )
    return points, words


def _refuse(points: pd.DataFrame, columns: list[str]) -> None:
    """UserError that names the first row whose value has no logarithm."""
    if not len(points):
        raise UserError("the table has no rows")
    for name in columns:
        bad = ~(np.isfinite(points[name]) & (points[name] > 0))
        if bad.any():
            row = int(np.argmax(bad.to_numpy()))
            raise UserError(
                f"column {name}: {int(bad.sum())} values are not finite positive numbers "
                f"(first in data row {row + 1}: {points[name].iloc[row]}); remove or mend these rows"
            )


def _fit(
    points, law, x, free, delta, n_bootstrap, rng
) -> tuple[Fit, iv.Draws | None, str, Words, dict | None]:
    """The fit, its draws (None without), the kind of interval, words, and the draws' own truth (basic intervals)."""
    loss, runs = points["loss"].to_numpy(float), points["run"].to_numpy(str)
    if law != "frontier":
        names = ["N", "D"] if law == "sum" else [x]
        fitted = fit(law, [points[n].to_numpy(float) for n in names], loss, free=free, delta=delta)
        if not n_bootstrap or len(np.unique(runs)) < 3:
            return fitted, None, "none", NOTHING, None
        kind = "run bootstrap" if "given_run" in points else "per-row bootstrap"
        sizes = points["N"].to_numpy(float) if "N" in points else points[x].to_numpy(float)
        return fitted, iv.bootstrap_runs(fitted, runs, sizes, n_bootstrap, rng), kind, NOTHING, None
    points = points.assign(cell=points["run"])
    for name in {"N", "D"} - set(points):
        points[name] = 1.0
    frontier = extract(points, x)
    fitted = fit_frontier(frontier, free=free)
    if not n_bootstrap:
        return fitted, None, "none", NOTHING, None
    try:  # the surface whose residuals are redrawn
        surface = fit("sum", [points["N"].to_numpy(float), points["D"].to_numpy(float)], loss, free=free)
    except UserError:
        surface = None
    if surface is None or "given_run" not in points or len(np.unique(runs)) < 5:
        word = "no N, D and run columns of at least five runs: interval from budgets, which measures curvature only"
        return fitted, iv.bootstrap_points(fitted, n_bootstrap, rng), "per budget", flag(word), None
    inside = np.ones(len(frontier), dtype=bool)
    draws, centre = bootstrap_frontier(
        points, surface, fitted, x=x, inside=inside, n_bootstrap=n_bootstrap, rng=rng
    )
    return fitted, draws, draws.kind, NOTHING, centre


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
