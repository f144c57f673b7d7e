"""How far the exponents depend on choices that nobody can defend to the last digit."""

from __future__ import annotations

import numpy as np
import pandas as pd

from symscale.analysis.closed import Allocation, fit_cost
from symscale.analysis.frontier import extract, fit_frontier
from symscale.analysis.laws import fit
from symscale.analysis.points import after_burn_in, at_fractions, canonical, ema, usable
from symscale.errors import UserError

BURN_IN = (0.01, 0.02, 0.05, 0.10)
DELTA = (1e-4, 1e-3, 1e-2)
EMA = 0.9


def estimates(
    points: pd.DataFrame,
    *,
    rows: str = "fractions",
    delta: float,
    free: bool,
    interpolate: bool = True,
    finished: bool = True,
):
    """{(law, x, parameter): value} of the sum law, its closed form and the frontier in C; skips what cannot be."""
    out = {}
    chosen = canonical(at_fractions(points) if rows == "fractions" else points)
    try:
        law = fit("sum", [chosen["N"].to_numpy(float), chosen["D"].to_numpy(float)], chosen["loss"].to_numpy(float),
                  free=free, delta=delta)  # fmt: skip
        out |= {("sum", "", name): law.params[name] for name in ("alpha", "beta")}
        out["closed_form", "C", "gamma"] = Allocation(law.params, fit_cost(points)).gamma
    except UserError:
        pass
    try:
        out["frontier", "C", "gamma"] = fit_frontier(
            extract(points, "C", interpolate=interpolate, finished=finished), free=free
        ).params["gamma"]
    except UserError:
        pass
    return out


def sensitivity(points: pd.DataFrame, options) -> pd.DataFrame:
    """Table group, law, x, setting, value, parameter, estimate: one setting changed at a time.

    settings: burn_in, delta, linf ('free'), rows ('all' after burn-in instead of r = 0.1 ... 1.0), ema (factor 0.9,
    lag-matched), frontier ('steps': the last validation within the budget instead of the line between two; 'running':
    only runs that were still training at the budget).
    """
    clean, _ = usable(points)
    records = []
    for group, raw in clean.groupby("group"):
        factor = options.ema.get(str(raw["arch"].iloc[0]), 0.0)

        def rows_of(burn_in, smooth, raw=raw):
            rows = after_burn_in(raw, burn_in)
            return canonical(ema(rows, smooth) if smooth else rows)

        base = {"rows": "fractions", "delta": options.delta, "free": options.free}
        cases = [("burn_in", f"{b:g}", rows_of(b, factor), base | {"rows": "all"}) for b in BURN_IN]
        now = rows_of(options.burn_in, factor)
        cases += [("delta", f"{d:g}", now, base | {"delta": d}) for d in DELTA]
        cases.append(("linf", "free", now, base | {"free": True}))
        cases.append(("rows", "all", now, base | {"rows": "all"}))
        cases.append(("ema", f"{EMA:g}", rows_of(options.burn_in, EMA), base))
        cases.append(("frontier", "steps", now, base | {"interpolate": False}))
        cases.append(("frontier", "running", now, base | {"finished": False}))
        for setting, value, rows, how in cases:
            for (law, x, parameter), estimate in estimates(rows, **how).items():
                records.append((group, law, x, setting, value, parameter, float(estimate)))
    columns = ["group", "law", "x", "setting", "value", "parameter", "estimate"]
    return pd.DataFrame(records, columns=columns).astype({"estimate": np.float64})
