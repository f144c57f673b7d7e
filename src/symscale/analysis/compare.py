"""Tests between architectures and studies, and of a law against itself. Each gives a number, an interval, a p value
and a sentence."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from symscale.analysis import intervals as iv
from symscale.analysis.frontier import fit_frontier, redraw
from symscale.analysis.laws import Fit, fit
from symscale.analysis.records import Options, Record
from symscale.analysis.solver import predict, solve
from symscale.analysis.sweep import GroupAnalysis
from symscale.errors import UserError

LR_DRAWS = 399
MIN_RUNS = 3


@dataclass(frozen=True)
class Comparison:
    """estimate is second minus first (exponents), log10 of a factor (shift), a likelihood ratio or an error in
    log L, as `kind` says; p is two-sided, NaN where there is no test."""

    kind: str
    what: str
    first: str
    second: str
    estimate: float
    lo: float
    hi: float
    p: float
    verdict: str
    numbers: dict[str, float] = field(default_factory=dict)


def welch(difference: float, errors: tuple[float, float], df: int) -> tuple[float, float, float]:
    """lo, hi, p of a difference of independent estimates by Student's t."""
    from scipy.special import stdtr

    error = float(np.hypot(*errors))
    if not np.isfinite(error) or error <= 0:
        return float("nan"), float("nan"), float("nan")
    low, high = iv.student(difference, error, df)
    return low, high, float(2 * stdtr(max(df, 1), -abs(difference) / error))


def find(analysis: GroupAnalysis, law: str, x: str = "", variant: str = "") -> Record | None:
    """The record of a law, if it was fitted."""
    for r in analysis.records:
        if (r.law, r.x, r.variant) == (law, x, variant) and r.status != "not fitted":
            return r
    return None


def error_of(record: Record, name: str) -> float:
    """Standard error over runs: of the draws (bootstrap), or the jackknife's if it is wider."""
    draws = record.draws.get(name)
    error = float(np.std(draws[np.isfinite(draws)], ddof=1)) if draws is not None else float("nan")
    if name in record.left:
        error = float(np.fmax(error, iv.jackknife_error(record.left[name])))
    return error


def exponents(first: GroupAnalysis, second: GroupAnalysis) -> list[Comparison]:
    """Difference of every exponent two groups share: t on per-run standard errors, df G1 + G2 - 2.

    A per-point test would reject 22-25 % of true nulls at its nominal 5 %.
    """
    out = []
    df = first.points["run"].nunique() + second.points["run"].nunique() - 2
    cases = (("sum", "", "alpha"), ("sum", "", "beta"), ("closed_form", "C", "gamma"), ("frontier", "C", "gamma"),
             ("frontier", "H", "gamma"))  # fmt: skip
    for law, x, name in cases:
        a, b = find(first, law, x), find(second, law, x)
        if a is None or b is None or not a.n_bootstrap or not b.n_bootstrap:
            continue
        difference = b.params[name][0] - a.params[name][0]
        low, high, p = welch(difference, (error_of(a, name), error_of(b, name)), df)
        label = f"{name} ({law}{', ' + x if x else ''})"
        out.append(Comparison("exponent", label, first.group, second.group, difference, low, high, p,
                              _sentence(label, first.group, second.group, difference, low, high, p)))  # fmt: skip
    return out


def _sentence(what, first, second, difference, low, high, p) -> str:
    if not np.isfinite(p):
        return f"{what}: {second} minus {first} is {difference:+.3f}; too few runs for a test"
    verb = "differs from" if p < 0.05 else "is not distinguished from"
    tail = f"by {difference:+.3f} [{low:+.3f}, {high:+.3f}], p = {p:.2g}"
    return f"{what} of {second} {verb} {first}'s {tail}"


def parallel_shift(
    first: GroupAnalysis, second: GroupAnalysis, x: str = "C", variant: str = ""
) -> Comparison | None:
    """Same slope, different factor? The slopes are tested as above. The estimate is log10 of second's loss over
    first's: under one common slope if the test does not tell them apart, else by their own slopes at the middle of
    the budgets that both have.

    A frontier's level is read at the middle of its own budgets, where least squares knows it best, and carried along
    the common slope, whose uncertainty counts. numbers: slope_p, slope_difference, slope_lo, slope_hi, common_gamma,
    same_slope, horizontal (log10 of how much more budget the second needs for the same loss: the estimate over the
    common slope) with horizontal_lo, horizontal_hi, middle, own_slopes (the estimate by own slopes).
    """
    a, b = find(first, "frontier", x, variant), find(second, "frontier", x, variant)
    if a is None or b is None or not a.n_bootstrap or not b.n_bootstrap:
        return None
    df = first.points["run"].nunique() + second.points["run"].nunique() - 2
    difference = b.params["gamma"][0] - a.params["gamma"][0]
    errors = error_of(a, "gamma"), error_of(b, "gamma")
    low, high, slope_p = welch(difference, errors, df)
    budgets = [_log_budgets(g.frontier, x, variant) for g in (first, second)]
    own_middles = [float(v.mean()) for v in budgets]
    middle = 0.5 * (max(v.min() for v in budgets) + min(v.max() for v in budgets))
    weights = np.square(errors[::-1]) if all(np.square(errors) > 0) else np.ones(2)  # inverse variances
    n_draws = min(a.n_bootstrap, b.n_bootstrap)

    def shifts(lines: list[tuple]) -> tuple:
        """Vertical shift under the common slope, the same by own slopes, the common slope."""
        (f1, g1), (f2, g2) = lines
        gamma = (weights[0] * g1 + weights[1] * g2) / weights.sum()
        levels = [np.log(f) - g * m for (f, g), m in zip(lines, own_middles, strict=True)]
        common = levels[1] - levels[0] + gamma * (own_middles[1] - own_middles[0])
        own = np.log(f2) - np.log(f1) - (g2 - g1) * middle
        return common / np.log(10), own / np.log(10), gamma

    common, own, gamma = (
        float(v) for v in shifts([(r.params["F"][0], r.params["gamma"][0]) for r in (a, b)])
    )
    drawn = shifts([(r.draws["F"][:n_draws], r.draws["gamma"][:n_draws]) for r in (a, b)])
    same = not slope_p < 0.05
    vertical, scatter = (common, drawn[0]) if same else (own, drawn[1])
    v_low, v_high, p = welch(vertical, (float(np.std(scatter, ddof=1)), 0.0), df)
    h_low, h_high, _ = welch(vertical / gamma, (float(np.std(scatter / drawn[2], ddof=1)), 0.0), df)
    verdict = (
        f"frontiers of {first.group} and {second.group} in {x} are "
        f"{'parallel within the noise' if same else 'not parallel'} (slopes differ by {difference:+.3f}, "
        f"p = {slope_p:.2g}); {second.group} lies {vertical:+.3f} [{v_low:+.3f}, {v_high:+.3f}] in log10 L"
        + (
            f", that is {vertical / gamma:+.3f} in log10 {x}"
            if same
            else f" at {np.exp(middle):.3g}, the middle of their common budgets"
        )
    )
    numbers = {"slope_p": slope_p, "slope_difference": difference, "slope_lo": low, "slope_hi": high}
    numbers |= {"common_gamma": gamma, "horizontal": vertical / gamma, "horizontal_lo": h_low}
    numbers |= {"horizontal_hi": h_high, "middle": float(np.exp(middle)), "same_slope": float(same)}
    numbers |= {"own_slopes": own}
    return Comparison("shift", f"frontier in {x}", first.group, second.group, vertical, v_low, v_high, p, verdict,
                      numbers)  # fmt: skip


def _log_budgets(frontier, x: str, variant: str) -> np.ndarray:
    """Logs of the budgets that a variant of the frontier was fitted to."""
    rows = frontier[frontier["x"] == x]
    return np.log(
        rows.loc[~rows["censored"], "budget"] if variant == "uncensored" else rows["budget"]
    ).to_numpy()


def irreducible(analysis: GroupAnalysis, options: Options, draws: int = LR_DRAWS) -> Comparison | None:
    """L_inf = 0 against free in the sum law: run-residual likelihood ratio.

    Losses are redrawn about the L_inf = 0 surface with whole residual curves of other runs; p is the share of
    redraws whose objective gains at least as much from a free L_inf.
    """
    points = analysis.sum_points
    if points["run"].nunique() < MIN_RUNS:
        return None
    columns = [points["N"].to_numpy(float), points["D"].to_numpy(float)]
    try:
        null = fit("sum", columns, points["loss"].to_numpy(float), delta=options.delta)
        free = fit("sum", columns, points["loss"].to_numpy(float), free=True, delta=options.delta)
    except UserError:
        return None
    gain = null.objective - free.objective
    rng = iv.generator(options.seed, "linf", analysis.group)
    y, _ = redraw(points, null, draws, rng)
    gains = _gains(null, free, y)
    p = (1 + int((gains >= gain * (1 - 1e-9)).sum())) / (draws + 1)
    refused = f"L_inf = {free.params['E']:.3g} improves on 0" if p < 0.05 else "L_inf = 0 is not refused"
    verdict = f"{analysis.group}: {refused} (p = {p:.2g})"
    numbers = {"E": free.params["E"], "alpha_free": free.params["alpha"], "beta_free": free.params["beta"]}
    return Comparison(
        "L_inf", "sum", analysis.group, "", gain, float("nan"), float("nan"), p, verdict, numbers
    )


def _gains(null: Fit, free: Fit, y: np.ndarray) -> np.ndarray:
    """Gain of objective (R,) from a free L_inf for log losses y (R, n)."""
    options = {"delta": null.delta, "tolerance": 1e-7, "max_iterations": 150}
    start = np.repeat(null.theta[None], len(y), axis=0)
    plain = solve(null.x, y, start, **options)
    best = plain.objective
    for theta in (
        np.column_stack([plain.theta, np.zeros(len(y))]),
        np.repeat(free.theta[None], len(y), axis=0),
    ):
        best = np.minimum(best, solve(null.x, y, theta, **options).objective)
    return plain.objective - best


def extrapolate(analysis: GroupAnalysis, options: Options, share: float = 0.2) -> list[Comparison]:
    """Leave out the largest `share` of sizes (by N), of points (by C) and of budgets (frontier), and predict
    them from the rest: error of log L, observed minus predicted."""
    out = []
    points = analysis.sum_points
    sizes = np.unique(points["N"])
    cases = {}
    if len(sizes) >= 3:
        cases["sum, largest by N"] = points["N"] > sizes[-max(1, round(share * len(sizes))) - 1]
    if "C" in points and points["C"].gt(0).all():
        cases["sum, largest by C"] = points["C"] > np.quantile(points["C"], 1 - share)
    for what, held in cases.items():
        rest = points[~held]
        try:
            law = fit("sum", [rest["N"].to_numpy(float), rest["D"].to_numpy(float)], rest["loss"].to_numpy(float),
                      free=options.free, delta=options.delta)  # fmt: skip
        except UserError:
            continue
        logs = np.log(points.loc[held, ["N", "D"]].to_numpy(float)).T - law.centre[:, None]
        errors = np.log(points.loc[held, "loss"].to_numpy(float)) - predict(law.theta, logs)
        sizes_left = rest["N"].nunique()
        out.append(_extrapolation(analysis.group, what, errors, sizes_left))
    frontier = analysis.frontier
    if len(frontier):
        table = frontier[frontier["x"] == "C"]
        first = np.log(table["budget"])
        held = first > first.min() + (1 - share) * (first.max() - first.min()) if len(table) else first > 0
        if (~held).sum() > 10 and held.any():
            law = fit_frontier(table[~held], free=options.free)
            errors = np.log(table.loc[held, "loss"].to_numpy()) - np.log(
                law.loss(table.loc[held, "budget"].to_numpy())
            )
            out.append(_extrapolation(analysis.group, "frontier in C, largest budgets", errors, 0))
    return out


def _extrapolation(group: str, what: str, errors: np.ndarray, sizes: int) -> Comparison:
    rms, worst, nan = float(np.sqrt(np.mean(errors**2))), float(np.max(np.abs(errors))), float("nan")
    verdict = (
        f"{group}, {what}: held-out log L is off by {errors.mean():+.3f}, rms {rms:.3f}, worst {worst:.3f}"
    )
    if 0 < sizes < 3:
        verdict += f" (fitted to {sizes} sizes only)"
    numbers = {"rms": rms, "worst": worst, "n": float(len(errors))}
    return Comparison("extrapolation", what, group, "", float(errors.mean()), nan, nan, nan, verdict, numbers)


def across(analyses: list[GroupAnalysis], options: Options, studies: dict | None = None) -> list[Comparison]:
    """Every comparison of a sweep: architectures with each other, every variant with its architecture's plain
    group and, where studies are given, the groups of one study and architecture with each other."""
    fitted = {a.group: a for a in analyses if a.points["run"].nunique() >= MIN_RUNS and a.surface is not None}
    pairs = {(a, b) for a in fitted for b in fitted if a < b and a == fitted[a].arch and b == fitted[b].arch}
    pairs |= {(fitted[b].arch, b) for b in fitted if b != fitted[b].arch and fitted[b].arch in fitted}
    for study in (studies or {}).values():
        groups = sorted({a.group for a in fitted.values() if set(a.points["cell"]) & set(study["cells"])})
        pairs |= {(a, b) for a in groups for b in groups if a < b and fitted[a].arch == fitted[b].arch
                  and (b, a) not in pairs}  # fmt: skip
    out: list[Comparison] = []
    for first, second in sorted(pairs):
        a, b = fitted[first], fitted[second]
        found = exponents(a, b)
        if a.arch == b.arch:
            found += [c for x in ("C", "H") if (c := parallel_shift(a, b, x)) is not None]
        out += found if same_data(a, b) else [_on_other_data(c) for c in found]
    for a in fitted.values():
        out += [c for c in (irreducible(a, options),) if c is not None]
        out += extrapolate(a, options)
    return out


def same_data(first: GroupAnalysis, second: GroupAnalysis) -> bool:
    """Whether two groups were trained on one pack (or nothing is known of it)."""
    packs = [set(g.points["data_hash"]) if "data_hash" in g.points else {""} for g in (first, second)]
    return packs[0] == packs[1]


def _on_other_data(c: Comparison) -> Comparison:
    verdict = f"{c.verdict}; they were trained on different packs of data, whose losses are normalised apart"
    return replace(c, verdict=verdict, numbers=c.numbers | {"same_data": 0.0})


def as_dicts(comparisons: list[Comparison]) -> list[dict]:
    """comparisons.json."""
    return [vars(c) for c in comparisons]
