"""Energy and force parts of the loss (appendix I), and group averaging at test time (appendix H)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd

from symscale.analysis import intervals as iv
from symscale.analysis.diagnostics import NOTHING, Words
from symscale.analysis.frontier import extract
from symscale.analysis.laws import LEAST_SQUARES, fit
from symscale.analysis.points import at_fractions, canonical
from symscale.analysis.records import Options, Record, analyse_frontier, analyse_sum
from symscale.errors import UserError

PARTS = {"energy": "energy_loss", "force": "force_loss"}
PART_BOOTSTRAPS = 400
SATURATED = 0.1  # averaging has saturated where at most this share of the whole gain is still to come


def decompose(
    points: pd.DataFrame, group: str, arch: str, options: Options, words: Words = NOTHING
) -> list[Record]:
    """Sum law and frontier in C of each term of eq. (1), as variants 'energy' and 'force'. A term that is nowhere
    positive (absent from the training loss) has no law."""
    records = []
    options = dataclasses.replace(options, bootstraps=min(options.bootstraps, PART_BOOTSTRAPS))
    for variant, column in PARTS.items():
        if column not in points:
            continue
        part = points.assign(loss=points[column])
        part = part[np.isfinite(part["loss"]) & (part["loss"] > 0)]
        if not len(part):
            continue
        surface, record = analyse_sum(canonical(at_fractions(part)), group, arch, options, variant, words)
        records.append(record)
        if (part["C"] > 0).all():
            table = extract(part, "C")
            every = np.ones(len(table), dtype=bool)
            records.append(
                analyse_frontier(table, part, surface, group, arch, "C", variant, every, options, words)
            )
    return records


@dataclass(frozen=True)
class Averaging:
    """Fits of L - L_D = A N^-alpha (eq. 24), one for each number M of rotations.

    alpha, A: M -> (value, lo, hi). slope_change and shift compare the largest M with the smallest (values are
    paired by run): alpha(M) - alpha(1), and log10 of (L - L_D) at the middle of the ladder. slope_p: p value of equal
    alpha, Student's t on the paired draws with runs - 2 degrees of freedom. gain: M -> mean of
    log L(1) - log L(M). saturated: smallest M with at most 10 % of the gain still to come.
    """

    L_D: float
    alpha: dict[int, tuple[float, float, float]]
    A: dict[int, tuple[float, float, float]]
    slope_change: tuple[float, float, float]
    shift: tuple[float, float, float]
    gain: dict[int, float]
    saturated: int
    words: tuple[str, ...]
    slope_p: float = float("nan")


def data_limit(params: dict, d: float) -> float:
    """L_D = E + B D^-beta of a sum law: the loss that no number of parameters gets below (appendix H)."""
    return float(params.get("E", 0.0) + params["B"] * d ** -params["beta"])


def averaging(table: pd.DataFrame, L_D: float, *, n_bootstrap: int = 1000, seed: int = 0) -> Averaging:
    """Fit eq. (24) for every M of a table with columns run, N, M, loss.

    Runs are drawn with replacement, the same ones for every M. Raises UserError where a loss is not above L_D,
    or runs differ between M.
    """
    from scipy.special import stdtr

    table = table.sort_values(["M", "N", "run"]).reset_index(drop=True)
    counts = np.unique(table["M"])
    below = table["loss"] <= L_D
    if below.any():
        row = table[below].iloc[0]
        raise UserError(f"L_D = {L_D:.4g} is not below the loss {row['loss']:.4g} of {row['run']}: refit L_D")
    by_m = {int(m): rows.reset_index(drop=True) for m, rows in table.groupby("M")}
    runs = by_m[int(counts[0])]["run"].to_numpy(str)
    for m, rows in by_m.items():
        if len(rows) != len(runs) or (rows["run"].to_numpy(str) != runs).any():
            raise UserError(f"M = {m}: not the same runs as M = {counts[0]}")
    N = by_m[int(counts[0])]["N"].to_numpy(float)
    weights, rejected = iv.run_weights(runs, N, n_bootstrap, iv.generator(seed, "averaging"))
    fits, draws = {}, {}
    for m, rows in by_m.items():
        fits[m] = fit("power", [N], rows["loss"].to_numpy(float) - L_D, delta=LEAST_SQUARES)
        draws[m] = iv.refit(fits[m], weights=weights)
    first, last = int(counts[0]), int(counts[-1])
    middle = np.log(N).mean()

    def level(params):
        return (np.log(params["F"]) - params["gamma"] * middle) / np.log(10)

    gain = {m: float(np.mean(np.log(by_m[first]["loss"]) - np.log(r["loss"]))) for m, r in by_m.items()}
    whole = gain[last]
    saturated = next(m for m in by_m if abs(whole - gain[m]) <= SATURATED * abs(whole) or m == last)
    change = draws[last]["gamma"] - draws[first]["gamma"]
    shift = level(draws[last]) - level(draws[first])
    error = float(np.std(change, ddof=1))
    slope_p = 1.0  # equal to rounding
    if abs(fits[last].params["gamma"] - fits[first].params["gamma"]) > 1e-9:
        df = len(runs) - 2
        t = (fits[last].params["gamma"] - fits[first].params["gamma"]) / max(error, 1e-12)
        slope_p = float(2 * stdtr(df, -abs(t))) if df > 0 else float("nan")
    words = [f"{rejected} resamples with fewer than three sizes were drawn again"] if rejected else []
    if len(np.unique(N)) < 4:
        words.append(f"{len(np.unique(N))} sizes only: the exponent is indicative")
    return Averaging(
        L_D,
        {m: (f.params["gamma"], *iv.percentile(draws[m]["gamma"])) for m, f in fits.items()},
        {m: (f.params["F"], *iv.percentile(draws[m]["F"])) for m, f in fits.items()},
        (fits[last].params["gamma"] - fits[first].params["gamma"], *iv.percentile(change)),
        (float(level(fits[last].params) - level(fits[first].params)), *iv.percentile(shift)),
        gain,
        int(saturated),
        tuple(words),
        slope_p,
    )
