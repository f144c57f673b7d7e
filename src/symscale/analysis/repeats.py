"""Questions that repeat: the same cell with another seed, a share of the data apart, many passes over it."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pandas as pd

from symscale.analysis import compare
from symscale.analysis import intervals as iv
from symscale.analysis.asking import (
    NAN,
    Answer,
    Question,
    counted,
    finals,
    least_difference,
    mean_interval,
    number,
    percent,
    reservations,
    run_noise,
)
from symscale.analysis.frontier import extract, fit_frontier
from symscale.analysis.sweep import GroupAnalysis
from symscale.errors import UserError

EARLY = 4.0  # epochs of an early law: up to about here repeats are said to be worth fresh data (2305.16264)


def fractions(q: Question) -> Answer:
    """Loss at r read off full runs against runs that were trained on the first r of the data and nothing else.

    A separate run of the same seed and order would retrace the full one step by step (no schedule looks ahead), so
    only other seeds say anything; both sides are means over seeds.
    """
    full_runs = q.sweep[(number(q.sweep, "data_fraction") == 1) & (number(q.sweep, "epochs") == 1)]
    part = q.points.assign(r=number(q.points, "data_fraction"))
    rows, numbers, sentences, words = [], {}, [], []
    full_seeds = set(full_runs["seed"])
    retraced = (part["r"] < 1) & part["seed"].isin(full_seeds & {0}) & (number(part, "epochs") == 1)
    if retraced.any():
        count = part.loc[retraced, "run"].nunique()
        words.append(f"{count} runs of seed 0 left out: they retrace the full run step by step")
        part = part[~retraced]
    for (arch, width), found in part[part["r"] < 1].groupby(["arch", "width"]):
        full = full_runs[(full_runs["group"] == arch) & (full_runs["width"] == width)]
        curves = [curve for _, curve in full.groupby("run")]
        if not curves:
            words.append(f"{arch}, width {width}: no run on all of the data to read off")
            continue
        apart = {float(r): runs["log"].to_numpy(float) for r, runs in finals(found).groupby("r")}
        read = np.array(
            [[log_loss_at(curve, fraction=r) for r in apart] for curve in curves]
        )  # (full runs, r)
        changes = np.array([v.mean() for v in apart.values()]) - read.mean(axis=0)
        rows += [
            {"arch": arch, "width": int(width), "r": r, "separate": float(np.exp(v.mean())),
             "read_off": float(np.exp(read[:, k].mean())), "n_separate": len(v), "n_full": len(curves),
             "difference": float(changes[k])}
            for k, (r, v) in enumerate(apart.items())
        ]  # fmt: skip
        # a full run is off by its own luck at every r alike, so it counts once: by its mean over r
        levels = read.mean(axis=1)
        squares = (
            sum(((v - v.mean()) ** 2).sum() for v in apart.values()) + ((levels - levels.mean()) ** 2).sum()
        )
        n_apart = sum(map(len, apart.values()))
        df = n_apart - len(apart) + len(curves) - 1
        variance = squares / df if df else NAN
        if not df:
            sd, df = run_noise(q.sweep, str(arch))
            variance = sd**2
        mean = float(changes.mean())
        error = float(np.sqrt(variance * (1 / n_apart + 1 / len(curves))))
        value = (mean, *iv.student(mean, error, df)) if df else (mean, NAN, NAN)
        numbers[f"difference:{arch}"] = value
        if not np.isfinite(value[1]):
            verdict = "too few runs for an interval"
        else:
            verdict = "no difference told from the noise" if value[1] <= 0 <= value[2] else "they differ"
        worst = int(np.abs(changes).argmax())
        shares = [f"{r:g}" for r in apart]
        sentences.append(
            f"{arch}: trained on r of the data alone, the loss is {percent(value)} from that read off full runs "
            f"(mean over r = {', '.join(shares)}): {verdict}; largest at r = {shares[worst]}, "
            f"{np.expm1(changes[worst]):+.1%}"
        )
    return Answer(q.study, "fractions", pd.DataFrame(rows), numbers, tuple(sentences), tuple(words))


def log_loss_at(rows: pd.DataFrame, *, fraction: float | None = None, atoms: float | None = None) -> float:
    """log L of one run at a fraction of it, or at D atoms: linear in the logarithms between validations."""
    rows = rows.sort_values("step")
    x, at = ("fraction", fraction) if atoms is None else ("D", atoms)
    values = rows[x].to_numpy(float)
    if not values[0] * (1 - 0.02) <= at <= values[-1] * (1 + 0.02):
        return NAN
    return float(np.interp(np.log(at), np.log(values), np.log(rows["loss"].to_numpy(float))))


def replicates(q: Question) -> Answer:
    """How far runs apart that differ by their seed alone lie, against the residuals and the intervals of the law."""
    from scipy.special import chdtri

    last = finals(q.points).drop_duplicates(["group", "width", "seed"])
    rows, numbers, sentences = [], {}, []
    for (group, width), runs in last.groupby(["group", "width"]):
        if len(runs) > 1:
            rows.append({"group": group, "arch": runs["arch"].iloc[0], "width": int(width),
                         "N": float(runs["N"].mean()), "D": float(runs["D"].max()), "runs": len(runs),
                         "loss": float(np.exp(runs["log"].mean())),
                         "sd": float(runs["log"].std(ddof=1))})  # fmt: skip
    table = pd.DataFrame(rows)
    for group, found in table.groupby("group") if len(table) else ():
        df = int((found["runs"] - 1).sum())
        variance = float(((found["runs"] - 1) * found["sd"] ** 2).sum() / df)
        low, high = (float(np.sqrt(variance * df / chdtri(df, p))) for p in (0.025, 0.975))
        value = float(np.sqrt(variance))
        numbers[f"sd:{group}"] = (value, low, high)
        sentence = (
            f"{group}: runs that differ by their seed alone differ by {value:.2%} [{low:.2%}, {high:.2%}] in loss "
            f"(standard deviation, {len(found)} sizes, {int(found['runs'].sum())} runs)"
        )
        law = law_spread(q.analyses.get(str(group)), found)
        if law:
            residual, predicted = law
            numbers[f"residual:{group}"], numbers[f"predicted:{group}"] = (
                (residual, NAN, NAN),
                (predicted, NAN, NAN),
            )
            sentence += (
                f"; the law's residuals are {residual:.2%}, its uncertainty at these sizes {predicted:.2%}"
            )
            sentence += (
                "; the law misses more than the noise explains"
                if residual > high
                else "; the residuals are not told from the noise"
            )
        sentences.append(sentence)
    words = () if len(table) else ("no two runs of one size",)
    return Answer(q.study, "replicates", table, numbers, tuple(sentences), tuple(words))


def law_spread(analysis: GroupAnalysis | None, sizes: pd.DataFrame) -> tuple[float, float] | None:
    """Standard deviations of the sum law's residuals, and of its prediction (over its draws) at sizes N, D."""
    record = compare.find(analysis, "sum") if analysis else None
    if record is None or analysis.surface is None or "A" not in record.draws:
        return None
    draws = {
        name: record.draws[name][:, None] for name in ("A", "alpha", "B", "beta", "E") if name in record.draws
    }
    N, D = sizes["N"].to_numpy(float)[None], sizes["D"].to_numpy(float)[None]
    with np.errstate(all="ignore"):
        loss = draws.get("E", 0.0) + draws["A"] * N ** -draws["alpha"] + draws["B"] * D ** -draws["beta"]
        logs = np.log(loss)
    logs = logs[np.isfinite(logs).all(axis=1)]
    predicted = float(logs.std(axis=0, ddof=1).mean()) if len(logs) > 1 else NAN
    return float(np.std(analysis.surface.residuals)), predicted


def epochs(q: Question) -> Answer:
    """Many passes over little data: the loss against that of fresh data at the same D and width, the epoch from which
    the two part, what augmentation does to it, and whether the frontier of the first epochs predicts the later ones.
    """
    table = excess(q)
    numbers, sentences, words = {}, [], []
    if not len(table):
        return Answer(
            q.study,
            "epochs",
            table,
            {},
            (),
            ("no runs of several epochs with a one-epoch run of their width",),
        )
    beyond = table["excess"].isna()
    for group, rows in table[beyond].groupby("group"):
        words.append(
            f"{group}: no fresh data at the D of {len(rows)} rows from epoch {rows['epoch'].min():.3g} on"
        )
    table = table[~beyond].reset_index(drop=True)
    broken = {}
    for group, rows in table.groupby("group"):
        levels = excess_by_epoch(rows)
        margin = least_difference(q.sweep, str(rows["arch"].iloc[0]))
        at = breaking_epoch(levels, margin)
        broken[group] = at
        end = levels.iloc[-1]
        final = (float(end["excess"]), float(end["lo"]), float(end["hi"]))
        numbers[f"break:{group}"] = (at, NAN, NAN)
        numbers[f"final:{group}"] = final
        sentence = (
            f"{group}: after {end['epoch']:.3g} epochs the loss is {percent(final)} from that of fresh data "
        )
        sentence += f"at the same D ({counted(end['runs'], 'width')})"
        if np.isfinite(at):
            sentence += (
                f"; it stays above fresh data by more than the noise of {margin:.1%} from epoch {at:.2g} on"
            )
        else:
            sentence += f"; no lasting excess beyond the noise of {margin:.1%} between runs"
        law = early_law(q, str(group))
        if law:
            numbers[f"early_law:{group}"], numbers[f"early_law_fresh:{group}"] = ((v, NAN, NAN) for v in law)
            sentence += (
                f"; the later frontier lies {np.expm1(law[0]):+.1%} from that of its first {EARLY:g} epochs, "
            )
            sentence += "carried on"
            if np.isfinite(law[1]):
                sentence += f" (fresh data over the same D: {np.expm1(law[1]):+.1%})"
        sentences.append(sentence)
        if end["runs"] < 3:
            words.append(f"{group}: {counted(end['runs'], 'width')} only: the intervals are indicative")
    words += reservations(q.sweep)
    sentences += _augmented(table, broken, numbers)
    for first, second in combinations(sorted(broken), 2):
        a, b = q.analyses.get(first), q.analyses.get(second)
        if a and b and a.arch != b.arch:
            sentences += [c.verdict for c in compare.exponents(a, b) if c.what == "gamma (frontier, C)"]
    return Answer(q.study, "epochs", table, numbers, tuple(sentences), tuple(words))


def _augmented(table: pd.DataFrame, broken: dict[str, float], numbers: dict) -> list[str]:
    """What augmentation does to the excess at the end, width by width."""
    out = []
    last = table.sort_values("epoch").groupby(["group", "width"]).tail(1).set_index("width")
    for group in broken:
        plain = "_".join(t for t in group.split("_") if t != "aug")
        if plain == group or plain not in broken:
            continue
        a, b = last[last["group"] == plain]["log"], last[last["group"] == group]["log"]
        both = a.index.intersection(b.index)
        change = mean_interval((b[both] - a[both]).to_numpy())
        numbers[f"augmentation:{group}"] = change
        before, after = numbers[f"final:{plain}"][0], numbers[f"final:{group}"][0]
        share = 1 - after / before if before > 0 else NAN
        numbers[f"mended:{group}"] = (share, NAN, NAN)
        if not np.isfinite(broken[plain]):
            verdict = "there was nothing to mend"
        elif not np.isfinite(broken[group]):
            verdict = "it mends the break"
        elif not np.isfinite(change[2]):
            verdict = f"of one width, {share:.0%} of the excess is gone, without an interval"
        elif change[2] < 0:
            verdict = f"it mends part of the break ({share:.0%} of the excess)"
        else:
            verdict = "no mending is told from the noise"
        out.append(f"augmentation changes the final loss of {plain} by {percent(change)}: {verdict}")
    return out


def excess(q: Question) -> pd.DataFrame:
    """Every row of a run of several epochs with the log L of fresh data: of the one-epoch runs of the same width, at
    the same number of atoms seen. Columns group, arch, run, width, N, epoch, D, C, loss, log, fresh, excess (NaN
    beyond the D of fresh data)."""
    passes = number(q.points, "epochs")
    repeated = q.points[passes > 1].assign(epoch=q.points["fraction"] * passes)
    repeated = repeated[repeated["fraction"] >= q.options.burn_in]
    out = []
    for (group, width), rows in repeated.groupby(["group", "width"]):
        fresh = q.sweep[(q.sweep["group"] == one_epoch(str(group))) & (q.sweep["width"] == width)]
        fresh_runs = [r for _, r in fresh.groupby("run")]
        if not fresh_runs:
            continue
        level = np.array([np.mean([log_loss_at(r, atoms=d) for r in fresh_runs]) for d in rows["D"]])
        log = np.log(rows["loss"].to_numpy(float))
        columns = rows[["group", "arch", "run", "width", "N", "epoch", "D", "C", "loss"]]
        out.append(columns.assign(log=log, fresh=np.exp(level), excess=log - level))
    return pd.concat(out, ignore_index=True) if out else pd.DataFrame()


def one_epoch(group: str) -> str:
    """'mpnn_d1_e100_aug' -> 'mpnn': the group of the same model on all of the data, once."""
    return "_".join(t for t in group.split("_") if not re.fullmatch(r"d[\d.]+|e\d+|aug", t))


def excess_by_epoch(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean excess over the runs of a group at every epoch that all have: epoch, excess, lo, hi, runs."""
    level = rows.assign(epoch=rows["epoch"].round(6)).groupby("epoch")["excess"]
    table = pd.DataFrame(
        [(e, *mean_interval(v), len(v)) for e, v in level], columns=["epoch", "excess", "lo", "hi", "runs"]
    )
    return table[table["runs"] == table["runs"].max()].reset_index(drop=True)


def breaking_epoch(levels: pd.DataFrame, margin: float) -> float:
    """First epoch from which the mean excess stays above the noise, its interval above 0; NaN where it never does."""
    above = (levels["excess"] > margin) & ~(levels["lo"] <= 0)
    inside = np.flatnonzero(~above.to_numpy())
    first = inside[-1] + 1 if len(inside) else 0
    return float(levels["epoch"].iloc[first]) if first < len(levels) else NAN


def early_law(q: Question, group: str) -> tuple[float, float] | None:
    """Mean of log L minus the frontier fitted to the first epochs, over all later budgets; and the same for fresh
    data, its law fitted up to the same D. None where the ladder has no two sizes or nothing comes later."""
    rows = q.points[q.points["group"] == group]
    rows = rows.assign(epoch=rows["fraction"] * number(rows, "epochs"))
    rows = rows[rows["fraction"] >= q.options.burn_in]
    if rows["N"].nunique() < 2 or rows["epoch"].max() <= EARLY:
        return None
    mine = _held_out(rows, rows["epoch"] <= EARLY)
    if mine is None:
        return None
    seen = float(rows.loc[rows["epoch"] <= EARLY, "D"].max())
    fresh = q.sweep[(q.sweep["group"] == one_epoch(group)) & q.sweep["width"].isin(rows["width"].unique())]
    fresh = fresh[fresh["D"] >= rows["D"].min()]
    control = _held_out(fresh, fresh["D"] <= seen * (1 + 1e-6)) if fresh["N"].nunique() > 1 else None
    return mine, NAN if control is None else control


def _held_out(rows: pd.DataFrame, early: pd.Series) -> float | None:
    try:
        law = fit_frontier(extract(rows[early], "C"))
        frontier = extract(rows, "C")
    except UserError:
        return None
    later = frontier[frontier["budget"] > rows.loc[early, "C"].max()]
    if not len(later):
        return None
    return float(np.mean(np.log(later["loss"].to_numpy()) - np.log(law.loss(later["budget"].to_numpy()))))
