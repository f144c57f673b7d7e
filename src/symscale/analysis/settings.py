"""Questions about a setting: which is best, where does it saturate, does a model learn, what does it cost."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from symscale.analysis import compare
from symscale.analysis.asking import (
    NAN,
    Answer,
    Question,
    bounds,
    counted,
    finals,
    least_difference,
    mean_interval,
    percent,
    reservations,
    resolved,
    setting,
    slope_interval,
)

LATE = 0.3  # of a run: from here on its slope is its late one
STOPPED = -0.01  # change of the loss by twice the data that is next to nothing


def grid(q: Question) -> Answer:
    """Final loss over two settings: the best one, what is as good within the noise, and whether it is at an edge."""
    first, second = q.over
    last = finals(q.points).assign(**{name: resolved(finals(q.points), name) for name in q.over})
    table = last.groupby(["arch", first, second], sort=True).agg(
        loss=("log", lambda v: float(np.exp(v.mean()))), runs=("run", "size"), N=("N", "mean")
    ).reset_index()  # fmt: skip
    table["best"] = False
    table["tied"] = False
    numbers, sentences, words = {}, [], []
    for arch, rows in table.groupby("arch"):
        order = rows.sort_values("loss")
        best = order.iloc[0]
        margin = least_difference(q.sweep, str(arch))
        above = np.log(order["loss"] / best["loss"])
        tied = order.index[above <= margin]
        table.loc[best.name, "best"] = True
        table.loc[tied, "tied"] = True
        where = ", ".join(f"{name} {setting(best[name])}" for name in q.over)
        numbers[f"best:{arch}"] = (float(best["loss"]), NAN, NAN)
        numbers[f"spread:{arch}"] = (float(above.max()), NAN, NAN)
        numbers[f"margin:{arch}"] = (margin, NAN, NAN)
        sentence = f"{arch} ends lowest, at {best['loss']:.4g}, with {where} of {len(rows)} settings"
        if len(order) > 1:
            sentence += f"; the worst is {np.expm1(above.max()):.0%} higher"
        others = len(tied) - 1
        sentence += (
            f"; {others} more within the noise of {margin:.1%} between runs"
            if others
            else "; no other within the noise"
        )
        edges = [
            name
            for name in q.over
            if rows[name].nunique() > 2 and best[name] in (rows[name].min(), rows[name].max())
        ]
        if edges:
            sentence += (
                f"; at the edge of the grid in {' and '.join(edges)}, so that the optimum may lie beyond"
            )
        sentences.append(sentence)
    words += reservations(q.sweep)
    return Answer(q.study, "grid", table, numbers, tuple(sentences), tuple(words))


def sweep(q: Question) -> Answer:
    """Final loss along one setting: where it is lowest, and from where on it falls no more than the noise."""
    (name,) = q.over
    last = finals(q.points)
    last[name] = resolved(last, name).astype(float)
    table = last.groupby(["arch", name], sort=True).agg(
        log=("log", "mean"), runs=("run", "size"), N=("N", "mean"), width=("width", "mean")
    ).reset_index()  # fmt: skip
    table["loss"] = np.exp(table["log"])
    numbers, sentences, words = {}, [], []
    for arch, rows in table.groupby("arch"):
        rows = rows.sort_values(name)
        x, y = rows[name].to_numpy(), rows["log"].to_numpy()
        if len(x) < 2:
            words.append(f"{arch}: one value of {name} only")
            continue
        margin = least_difference(q.sweep, str(arch))
        lowest, saturated = int(y.argmin()), saturation(y, margin)
        numbers[f"lowest:{arch}"] = (float(x[lowest]), NAN, NAN)
        numbers[f"saturated:{arch}"] = (float(x[saturated]), NAN, NAN)
        half = margin if np.isfinite(margin) else NAN
        gain = (float(y[lowest] - y[0]), float(y[lowest] - y[0] - half), float(y[lowest] - y[0] + half))
        numbers[f"gain:{arch}"] = gain
        worse = y[-1] - y[lowest] > margin
        sentence = (
            f"{arch} ends lowest at {name} {setting(x[lowest])} of {setting(x[0])} ... {setting(x[-1])}"
        )
        if lowest:
            sentence += f", {percent(gain)} from {name} {setting(x[0])}"
        if saturated == len(x) - 1 and lowest == len(x) - 1:
            sentence += "; it still falls at the end of the range: no saturation in sight"
        elif worse:
            sentence += (
                f"; from {name} {setting(x[saturated])} on it gains nothing beyond the noise of {margin:.1%} "
                f"between runs, and at {setting(x[-1])} it is {np.expm1(y[-1] - y[lowest]):.1%} worse"
            )
        else:
            sentence += (
                f"; saturated from {name} {setting(x[saturated])} on, within the noise of {margin:.1%}"
            )
            sentence += " between runs"
        spread = float(rows["N"].max() / rows["N"].min())
        sentence += f" (N {rows['N'].min():,.0f} to {rows['N'].max():,.0f})"
        if spread > 1.15:
            words.append(f"{arch}: N differs {spread:.2f}-fold along {name}, which is part of the change")
        widths = float(rows["width"].max() / rows["width"].min())
        if widths > 1.15:
            words.append(
                f"{arch}: the width differs {widths:.2f}-fold along {name}, and with it a learning rate that goes as "
                "1/w: a short run may prefer the faster one"
            )
        sentences.append(sentence)
    words += reservations(q.sweep)
    return Answer(q.study, "sweep", table, numbers, tuple(sentences), tuple(words))


def saturation(y: np.ndarray, margin: float) -> int:
    """First place from which no later value is lower by more than `margin`."""
    return next(i for i in range(len(y)) if y[i] - y[i:].min() <= margin)


def learning(q: Question) -> Answer:
    """Does an architecture learn to the end? Slope of log L in log D over the last 70 % of every run."""
    rows = []
    for run, curve in q.points.groupby("run"):
        curve = curve.sort_values("step")
        late = curve[curve["fraction"] >= LATE - 1e-9]
        slope, _, _ = slope_interval(np.log(late["D"].astype(float)), np.log(late["loss"].astype(float)))
        rows.append({"run": run, "group": curve["group"].iloc[0], "arch": curve["arch"].iloc[0],
                     "N": float(curve["N"].iloc[0]), "slope": slope, "first": float(curve["loss"].iloc[0]),
                     "final": float(curve["loss"].iloc[-1])})  # fmt: skip
    table = pd.DataFrame(rows).dropna(subset=["slope"])
    numbers, sentences, slopes = {}, [], {}
    for group, found in table.groupby("group"):
        slopes[group] = found["slope"].to_numpy(float)
        value = mean_interval(slopes[group])
        numbers[f"slope:{group}"] = value
        fall = float(np.exp(np.log(found["final"] / found["first"]).mean()))
        numbers[f"fall:{group}"] = (fall, NAN, NAN)
        best = found.loc[found["final"].idxmin()]
        doubling = tuple(np.log(2) * v for v in value)
        if not np.isfinite(value[2]):
            still = ": one run, so no interval"
        elif value[2] >= 0:
            still = ": no learning is told from the noise there"
        else:
            still = ": it has all but stopped learning" if np.expm1(doubling[0]) > STOPPED else ""
        sentences.append(
            f"{group}: over the last {1 - LATE:.0%} of a run, twice the data changes the loss by {percent(doubling)} "
            f"({counted(len(found), 'size')}){still}; a run ends at {fall:.2f} of the loss of its "
            f"first validation, the best at {best['final']:.4g}"
        )
    for first, second in combinations(sorted(slopes), 2):
        a, b = slopes[first], slopes[second]
        if min(len(a), len(b)) > 1:
            errors = (a.std(ddof=1) / np.sqrt(len(a)), b.std(ddof=1) / np.sqrt(len(b)))
            change = float(b.mean() - a.mean())
            low, high, p = compare.welch(change, errors, len(a) + len(b) - 2)
            numbers[f"slope:{second}-{first}"] = (change, low, high)
            verb = "differs from" if p < 0.05 else "is not told from"
            sentences.append(
                f"the late slope of {second} {verb} that of {first}, by {bounds((change, low, high), sign='+')}, "
                f"p = {p:.2g}"
            )
    return Answer(q.study, "learning", table, numbers, tuple(sentences))


def kappa(q: Question) -> Answer:
    """FLOPs per parameter and atom (eq. 3): one number an architecture, or does it drift with N or D?"""
    words: tuple[str, ...] = ()
    cells = set(q.points["cell"])
    if len(q.kappa):
        table = q.kappa[q.kappa["cell"].isin(cells)].reset_index(drop=True)
    else:
        last = finals(q.points)
        table = last[["cell", "arch", "N"]].assign(
            atoms=last["D"], kappa=last["C"] * 1e15 / (3 * last["N"] * last["D"])
        )
        words = ("counted in training only, where C is proportional to D: nothing is said about D",)
    groups = q.points.drop_duplicates("cell").set_index("cell")["group"]  # a variant has a kappa of its own
    table = table.assign(
        group=table["cell"].map(groups), flops=3 * table["kappa"] * table["N"] * table["atoms"]
    )
    numbers, sentences = {}, []
    for group, rows in table.groupby("group"):
        by_size = rows.assign(log=np.log(rows["kappa"])).groupby("N")["log"].mean()
        mean = tuple(float(np.exp(v)) for v in mean_interval(by_size))
        drift = slope_interval(np.log(by_size.index.to_numpy(float)), by_size)
        numbers[f"kappa:{group}"], numbers[f"drift_N:{group}"] = mean, drift
        if len(by_size) < 2:
            sentences.append(f"{group}: kappa = {mean[0]:.2f} at one size, which says nothing about a drift")
            continue
        sentence = f"{group}: kappa = {bounds(mean, 2)} over {len(by_size)} sizes, going with N as "
        sentence += f"N^{bounds(drift, sign='+')}"
        slopes = [slope_interval(np.log(r["atoms"]), np.log(r["kappa"]))[0] for _, r in rows.groupby("cell")]
        slopes = [s for s in slopes if np.isfinite(s)]
        if slopes:
            numbers[f"drift_D:{group}"] = mean_interval(slopes)
            sentence += f" and with D as D^{bounds(mean_interval(slopes), sign='+')}"
        spread = float(np.exp(by_size.max() - by_size.min()))
        sentence += f"; largest over smallest {spread:.2f}: " + (
            "not one constant" if spread > 1.5 else "one constant to that factor"
        )
        sentences.append(sentence)
    return Answer(q.study, "kappa", table, numbers, tuple(sentences), words)
