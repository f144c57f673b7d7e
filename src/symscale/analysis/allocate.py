"""Allocation of a budget from a finished analysis, with intervals from its draws, and where groups cross."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from symscale.analysis import intervals as iv
from symscale.analysis.closed import Allocation, Cost, crossing

MIN_RUNS = 5  # for an interval
GRID = 600  # budgets on which frontiers with irreducible losses are compared
NEAR = 1e3  # a crossing this many times outside of the measured budgets is none


def groups_of(results: dict, x: str) -> dict[str, Allocation]:
    """group -> allocation, for the plain sum laws of an analysis (tables.read) with a cost in x."""
    fits = {f["name"]: f for f in results["document"]["fits"] if f["status"] != "not fitted"}
    out = {}
    for name, f in fits.items():
        cost = fits.get(f"kappa:{f['group']}:C" if x == "C" else f"hours:{f['group']}:H")
        closed = f"closed_form:{f['group']}:{x}" in fits
        if f["law"] == "sum" and not f["variant"] and cost and closed:
            params = {k: v["value"] for k, v in f["params"].items()}
            values = {k: v["value"] for k, v in cost["params"].items()}
            xi, p = (3 * values["kappa"] / 1e15, 1.0) if x == "C" else (values["xi"], values["p"])
            out[name.split(":")[1]] = Allocation(params, Cost(xi, p, 0.0, 0.0))
    return out


def draws_of(results: dict, group: str) -> dict[str, np.ndarray]:
    """Draws of a group's sum law; empty without, or where there are too few runs for draws to mean anything."""
    fit = next(f for f in results["document"]["fits"] if f["name"] == f"sum:{group}")
    if len(fit["cells"]) < MIN_RUNS:
        return {}
    rows = results["draws"][results["draws"]["fit"] == f"sum:{group}"]
    return (
        {name: rows[name].to_numpy(float) for name in ("A", "alpha", "B", "beta", "E")} if len(rows) else {}
    )


def allocate(results: dict, groups: dict[str, Allocation], x: str, budget: float) -> list[dict]:
    """N*, D* and the loss at one budget for each group, with 95 % intervals (NaN without draws) and words."""
    out = []
    for group, allocation in groups.items():
        n, d = (float(v) for v in allocation.optimum(budget))
        row = {"group": group, "budget": budget, "N": n, "D": d, "loss": float(allocation.loss(budget))}
        draws = draws_of(results, group)
        spread = {k: np.array([np.nan]) for k in ("N", "D", "loss")}
        if draws:
            many = Allocation(draws, allocation.cost)
            with np.errstate(all="ignore"):
                spread = dict(zip(("N", "D"), many.optimum(budget), strict=True)) | {
                    "loss": many.loss(budget)
                }
        for key, values in spread.items():
            row[f"{key}_lo"], row[f"{key}_hi"] = iv.percentile(values)
        words = outside(results["points"], group, x, budget, n, d)
        runs = next(len(f["cells"]) for f in results["document"]["fits"] if f["name"] == f"sum:{group}")
        if not draws:
            words.append("too few runs for an interval")
        elif runs < iv.FEW_RUNS:
            words.append(f"{runs} runs only: bootstrap intervals, indicative")
        out.append(row | {"words": words})
    return out


def outside(points: pd.DataFrame, group: str, x: str, budget: float, n: float, d: float) -> list[str]:
    """In words, by how much a budget leaves what was measured."""
    rows = points[points["group"] == group]
    words = []
    for what, value, low, high in (
        ("the budget", budget, rows[x].min(), rows[x].max()),
        ("N*", n, rows["N"].min(), rows["N"].max()),
        ("D*", d, rows["D"].min(), rows["D"].max()),
    ):
        if value > high:
            words.append(f"extrapolated: {what} is {value / high:.3g} times the largest that was measured")
        elif value < low:
            words.append(
                f"extrapolated: {what} is {low / value:.3g} times below the smallest that was measured"
            )
    return words


def crossings(results: dict, groups: dict[str, Allocation], x: str) -> list[dict]:
    """Budgets at which two groups' frontiers cross, with intervals, and who is better above each.

    Without irreducible losses two frontiers meet once at most (closed form); with them twice, once or never, and
    every crossing within NEAR times the measured budgets is a row.
    """
    out = []
    for a, b in itertools.combinations(groups, 2):
        measured = results["points"].loc[
            results["points"]["group"].isin([a, b]) & (results["points"][x] > 0), x
        ]
        first, second = groups[a], groups[b]
        window = np.log(measured.min() / NEAR), np.log(measured.max() * NEAR)
        draws = draws_of(results, a), draws_of(results, b)
        many = None
        if all(draws):
            size = min(len(d["A"]) for d in draws)
            many = [
                Allocation({k: v[:size] for k, v in d.items()}, g.cost)
                for d, g in zip(draws, (first, second), strict=True)
            ]
        meet = meetings(first, second, window)
        if not len(meet):
            better = a if first.loss(measured.median()) < second.loss(measured.median()) else b
            row = {"first": a, "second": b, "budget": None, "lo": None, "hi": None, "better_above": better}
            out.append(
                row
                | {"verdict": f"{a} and {b} do not cross near the measured budgets; {better} is better there"}
            )
        for log in meet:
            low, high, without = (float("nan"),) * 2 + (0.0,)
            if many:
                with np.errstate(all="ignore"):
                    found = nearest(*many, log, window)
                low, high = np.exp(iv.percentile(found))
                without = float(np.mean(~np.isfinite(found)))
            budget = float(np.exp(log))
            winner = a if first.loss(1.01 * budget) < second.loss(1.01 * budget) else b
            verdict = f"{a} and {b} cross at {budget:.4g} [{low:.3g}, {high:.3g}] {{unit}}"
            verdict += f"; above it {winner} is better"
            if not measured.min() <= budget <= measured.max():
                verdict += " (extrapolated: no run of either had such a budget)"
            if without > 0.025:
                verdict += f" (no crossing in {without:.0%} of the resamples, which the interval leaves out)"
            row = {"first": a, "second": b, "budget": budget, "lo": float(low), "hi": float(high)}
            out.append(row | {"better_above": winner, "verdict": verdict})
    return out


def meetings(first: Allocation, second: Allocation, window: tuple[float, float]) -> np.ndarray:
    """Logs of the budgets inside a window (of logs) at which two frontiers have one loss."""
    if not (np.any(first.params["E"]) or np.any(second.params["E"])):
        log = float(crossing((first.F, first.gamma), (second.F, second.gamma)))
        return np.array([log] if window[0] <= log <= window[1] else [])
    grid = np.linspace(*window, GRID)
    gap = np.log(first.loss(np.exp(grid))) - np.log(second.loss(np.exp(grid)))
    at = np.flatnonzero(np.sign(gap[1:]) * np.sign(gap[:-1]) < 0)
    return grid[at] - gap[at] * (grid[at + 1] - grid[at]) / (gap[at + 1] - gap[at])


def nearest(first: Allocation, second: Allocation, log: float, window: tuple[float, float]) -> np.ndarray:
    """For draws of two allocations, the log budget of the crossing nearest to `log`, (R,); NaN without one."""
    if not (np.any(first.params["E"]) or np.any(second.params["E"])):
        return np.asarray(crossing((first.F, first.gamma), (second.F, second.gamma)))
    grid = np.linspace(*window, GRID)[:, None]
    gap = np.log(first.loss(np.exp(grid))) - np.log(second.loss(np.exp(grid)))  # (GRID, R)
    step = gap[1:] - gap[:-1]
    at = np.where(
        gap[1:] * gap[:-1] < 0, grid[:-1] - gap[:-1] * (grid[1] - grid[0]) / np.where(step, step, 1.0), np.nan
    )
    distance = np.where(np.isfinite(at), np.abs(at - log), np.inf)
    best = distance.argmin(axis=0)
    return at[best, np.arange(at.shape[1])]
