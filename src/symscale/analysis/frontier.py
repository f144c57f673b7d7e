"""Compute-optimal frontier: approach 1 of Hoffmann et al. (2022), as in section 4.1, in C or in H.

For every budget of a log grid, the lowest loss that any run reached within it, read between validations. The
points of a frontier are shared by runs and by one another, so resampling them measures curvature only; the
interval here redraws the runs' residual curves about the fitted surface and extracts the frontier anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from symscale.analysis.closed import Allocation
from symscale.analysis.intervals import Draws, refit
from symscale.analysis.laws import LEAST_SQUARES, Fit, fit
from symscale.analysis.solver import predict
from symscale.errors import UserError

BUDGETS = 200
CENSORED = ("inside", "D* beyond D_max", "N* below the second-smallest N", "N* beyond the largest N")


@dataclass(frozen=True)
class Curves:
    """Runs of one group side by side: order[g] rows of points in rising x, at (B, G) row reached, -1 for none."""

    points: pd.DataFrame
    x: str
    budgets: np.ndarray
    order: list[np.ndarray]
    at: np.ndarray


def lay_out(points: pd.DataFrame, x: str = "C", n_budgets: int = BUDGETS) -> Curves:
    """Sort runs by x and find, for every budget, the last row each run reached. Raises UserError without x > 0."""
    values = points[x].to_numpy(float)
    if not len(values) or not np.all(np.isfinite(values) & (values > 0)):
        raise UserError(f"frontier: column {x} must be there, finite and positive")
    budgets = np.geomspace(values.min(), values.max(), n_budgets)
    budgets[[0, -1]] = values.min(), values.max()  # geomspace rounds
    order, at = [], []
    for _, rows in points.reset_index(drop=True).groupby("run", sort=True):
        index = rows.index.to_numpy()[np.argsort(rows[x].to_numpy(), kind="stable")]
        order.append(index)
        at.append(np.searchsorted(values[index], budgets, side="right") - 1)
    return Curves(points.reset_index(drop=True), x, budgets, order, np.stack(at, axis=1))


def lowest(
    curves: Curves, log_loss: np.ndarray, interpolate: bool = True, finished: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Lowest log loss (R, B) and its row (R, B) for log losses (R, n); inf and -1 where no run has started.

    A run that has ended keeps its last value for larger budgets ("with at most that budget"). Without `finished` a
    budget sees only the runs that were still training there; where a ladder has wide gaps beyond D_max (EGNN's from
    9 to 25 million parameters) the frontier then rises between runs, which lowers gamma.

    Between two validations a run is read on the line between their logs. Without `interpolate` it keeps the earlier
    value until the next one: a staircase that raises F, and gamma too where validations are sparse (22 rows a run:
    eSEN's .402 becomes .424).
    """
    log_loss = np.atleast_2d(log_loss)
    best = np.full((len(log_loss), len(curves.budgets)), np.inf)
    where = np.full(best.shape, -1)
    log_x, log_budget = np.log(curves.points[curves.x].to_numpy(float)), np.log(curves.budgets)
    for g, index in enumerate(curves.order):
        own = log_loss[:, index]
        reached = np.minimum.accumulate(own, axis=1)
        at = curves.at[:, g]
        values = reached[:, at]
        if interpolate:
            following = np.minimum(at + 1, len(index) - 1)
            gap = log_x[index][following] - log_x[index][at]
            part = np.where(gap > 0, (log_budget - log_x[index][at]) / np.where(gap > 0, gap, 1.0), 0.0)
            values = values + part * (reached[:, following] - values)
        seen = (at >= 0) & (finished | (curves.budgets <= np.exp(log_x[index[-1]]) * (1 + 1e-12)))
        values = np.where(seen, values, np.inf)
        better = values < best
        best = np.where(better, values, best)
        # the row of the running minimum: the last row that lowered it
        fell = np.where(own <= reached, np.arange(len(index)), 0)
        where = np.where(better, index[np.maximum.accumulate(fell, axis=1)][:, at], where)
    return best, where


def extract(
    points: pd.DataFrame,
    x: str = "C",
    n_budgets: int = BUDGETS,
    interpolate: bool = True,
    finished: bool = True,
) -> pd.DataFrame:
    """Frontier table: budget, loss, cell, run, N, D, x_reached (of the last validation within the budget of the
    run that holds it). Without `finished`, budgets between the end of one run and the start of the next have no row.
    """
    curves = lay_out(points, x, n_budgets)
    loss, row = lowest(curves, np.log(curves.points["loss"].to_numpy(float)), interpolate, finished)
    there = row[0] >= 0
    chosen = curves.points.iloc[row[0][there]].reset_index(drop=True)
    table = pd.DataFrame({"budget": curves.budgets[there], "loss": np.exp(loss[0][there])})
    for column in ("cell", "run", "N", "D"):
        table[column] = chosen[column] if column in chosen else ""
    table["x_reached"] = chosen[x]
    return table


def censor(table: pd.DataFrame, points: pd.DataFrame, allocation: Allocation | None) -> np.ndarray:
    """Where each budget's optimum lies, (B,) of CENSORED.

    With an allocation (from the sum law), N* and D* of the budget against the ladder and D_max; without, the
    model that holds the budget: the largest, the smallest, or one that had run out of data.
    """
    sizes = np.unique(points["N"])
    d_max = points["D"].max()
    second, largest = sizes[min(1, len(sizes) - 1)], sizes[-1]
    if allocation is not None:
        n, d = allocation.optimum(table["budget"].to_numpy(float))
    else:
        n, d = table["N"].to_numpy(float), table["D"].to_numpy(float)
        n = np.where((n >= largest) & (len(sizes) > 1), np.inf, n)
        d = np.where(d >= d_max, np.inf, d)
    marks = np.full(len(table), CENSORED[0], dtype=object)
    marks[n > largest] = CENSORED[3]
    marks[n < second] = CENSORED[2]
    marks[d > d_max] = CENSORED[1]
    return marks


def fit_frontier(table: pd.DataFrame, *, free: bool = False, delta: float = LEAST_SQUARES) -> Fit:
    """L = L_inf + F X^-gamma through frontier points (eq. 4), least squares on log L over the log grid."""
    return fit(
        "power", [table["budget"].to_numpy(float)], table["loss"].to_numpy(float), free=free, delta=delta
    )


def residual_curves(
    points: pd.DataFrame, surface: Fit
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Per run (sorted by name): positions log D - max log D, residuals log L - log L_hat; log L_hat of all (n,)."""
    logs = np.log(points[["N", "D"]].to_numpy(float)).T - surface.centre[:, None]
    smooth = predict(surface.theta, logs)
    residual = np.log(points["loss"].to_numpy(float)) - smooth
    places, curves = [], []
    for _, index in points.groupby("run", sort=True).indices.items():
        d = logs[1, index]
        order = np.argsort(d, kind="stable")
        places.append(d[order] - d.max())
        curves.append(residual[index][order])
    return places, curves, smooth


def redraw(points: pd.DataFrame, surface: Fit, n_draws: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Simulated log losses (R, n) about the fitted surface, and the surface itself (n,).

    Every run gets s r_j: the whole residual curve of a random run, random sign, stretched by sqrt(G/(G - p)).
    """
    places, curves, smooth = residual_curves(points, surface)
    groups = list(points.groupby("run", sort=True).indices.values())
    n_runs, n_params = len(groups), len(surface.theta)
    stretch = np.sqrt(n_runs / (n_runs - n_params)) if n_runs > n_params else np.sqrt(n_runs)
    y = np.tile(smooth, (n_draws, 1))
    log_d = np.log(points["D"].to_numpy(float))
    donor = rng.integers(0, n_runs, size=(n_draws, n_runs))
    sign = rng.choice([-1.0, 1.0], size=(n_draws, n_runs))
    for g, index in enumerate(groups):
        place = log_d[index] - log_d[index].max()
        bank = np.stack([np.interp(place, p, c) for p, c in zip(places, curves, strict=True)])  # (G, rows)
        y[:, index] += stretch * sign[:, g, None] * bank[donor[:, g]]
    return y, smooth


def bootstrap_frontier(
    points: pd.DataFrame,
    surface: Fit,
    frontier: Fit,
    *,
    x: str,
    inside: np.ndarray,
    n_bootstrap: int,
    rng,
    n_budgets: int = BUDGETS,
) -> tuple[Draws, dict[str, float]]:
    """Run-residual bootstrap: draws of the frontier's parameters, and their own truth (the noise-free surface's
    frontier), for basic intervals. inside (B,) bool selects the budgets that were fitted."""
    curves = lay_out(points, x, n_budgets)
    y, smooth = redraw(points, surface, n_bootstrap, rng)
    found = []
    for first in range(0, n_bootstrap, 100):
        found.append(lowest(curves, y[first : first + 100])[0][:, inside])
    truth = lowest(curves, smooth)[0][:, inside]
    draws = refit(frontier, y=np.concatenate(found))
    centre = refit(frontier, y=truth)
    kind = "run-residual bootstrap, basic"
    return Draws(draws, kind, 0), {name: float(v[0]) for name, v in centre.items()}
