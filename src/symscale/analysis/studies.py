"""What a study asks of its cells, and what their curves answer.

`ask` of a study in the config names a kind of question; a kind is a pure function of QUESTIONS below, from the curves
of the study's cells to an Answer: a table, numbers with intervals, and the sentences that the data support. No kind
knows the name of a study. Sentences name groups as cells do ('mpnn_abs'); figures and report put titles instead.

exponents   a law for every ladder, tests between them, the change of loss at equal width
grid        the best of two settings                   sweep          where one setting saturates
fractions   r read off one run against separate runs   replicates     noise between seeds against the intervals
epochs      where repeated data breaks the law         learning       the slope at the end of a run
kappa       FLOPs per parameter and atom               group_average  rotations averaged at test time
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

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
    mean_interval,
    percent,
    slope_interval,
)
from symscale.analysis.components import averaging, data_limit
from symscale.analysis.points import usable
from symscale.analysis.records import Options
from symscale.analysis.repeats import epochs, fractions, replicates
from symscale.analysis.settings import grid, kappa, learning, sweep
from symscale.analysis.sweep import GroupAnalysis
from symscale.analysis.tables import write_json
from symscale.errors import UserError

FILE = "answers.json"
MIN_SIZES = 5  # of eq. (24), for an interval


def exponents(q: Question) -> Answer:
    """A law for every ladder; do exponents differ, are frontiers shifted, what does a change cost at equal width?"""
    groups = sorted(set(q.points["group"]))
    numbers, sentences, shown, rows = {}, [], [], []
    for group in groups:
        found = q.analyses.get(group)
        for law, x, name in (("frontier", "C", "gamma"), ("frontier", "H", "gamma"), ("sum", "", "alpha"),
                             ("sum", "", "beta")):  # fmt: skip
            record = compare.find(found, law, x) if found else None
            if record is None:
                continue
            value = tuple(record.params[name][:3])
            key = ":".join(p for p in (name, law, x, group) if p)
            numbers[key] = value
            rows.append({"group": group, "law": law, "x": x, "parameter": name, "value": value[0], "lo": value[1],
                         "hi": value[2], "status": record.status})  # fmt: skip
            if (law, x) == ("frontier", "C"):
                shown.append(f"{group} {bounds(value)}{' (flagged)' if record.status == 'flagged' else ''}")
    if shown:
        sentences.append(f"gamma of the frontier in C: {', '.join(shown)}")
    inside = [c for c in q.comparisons if {c.first, c.second} <= set(groups)]
    sentences += [c.verdict for c in inside if c.kind == "shift" and c.what == "frontier in C"][:6]
    sentences += [c.verdict for c in _between_architectures(q, groups)][:6]
    changes = paired(q.points)
    for row in changes.to_dict("records"):
        change, trend = (
            (row["change"], row["lo"], row["hi"]),
            (row["trend"], row["trend_lo"], row["trend_hi"]),
        )
        name = f"{row['second']}:{row['first']}"
        numbers[f"change:{name}"], numbers[f"trend:{name}"] = change, trend
        tail = f", a ratio that goes with N as N^{bounds(trend, sign='+')}" if np.isfinite(trend[1]) else ""
        sentences.append(
            f"at equal width {row['second']} ends {percent(change)} in loss from {row['first']} "
            f"({counted(row['n'], 'width')}), at {row['compute']:.3g} times the training FLOPs{tail}"
        )
    words = [] if sentences else ["no law could be fitted: it needs ladders of at least two sizes"]
    return Answer(q.study, "exponents", pd.DataFrame(rows), numbers, tuple(sentences), tuple(words))


def _between_architectures(q: Question, groups: list[str]) -> list[compare.Comparison]:
    """Differences of gamma between architectures that carry the same suffix."""
    out = []
    for first, second in combinations([g for g in groups if g in q.analyses], 2):
        a, b = q.analyses[first], q.analyses[second]
        if a.arch != b.arch and first.removeprefix(a.arch) == second.removeprefix(b.arch):
            out += [c for c in compare.exponents(a, b) if c.what == "gamma (frontier, C)"]
    return out


def paired(points: pd.DataFrame) -> pd.DataFrame:
    """Final log L of one group minus another's of the same architecture and data, run by run at equal width.

    Columns first, second, n (widths), change, lo, hi (t over widths), trend, trend_lo, trend_hi (slope of the
    difference in log N) and compute (ratio of training FLOPs).
    """
    rows = []
    last = finals(points)
    for _, mine in last.groupby("arch"):
        groups = sorted(mine["group"].unique(), key=lambda g: (g.count("_"), g))
        for first, second in combinations(groups, 2):
            a, b = (
                mine[mine["group"] == g].groupby("width")[["log", "C", "N"]].mean() for g in (first, second)
            )
            both = a.index.intersection(b.index)
            data = [
                mine.loc[mine["group"] == g, "dataset"].iloc[0] if "dataset" in mine else ""
                for g in (first, second)
            ]
            if not len(both) or data[0] != data[1]:
                continue
            change = (b["log"] - a["log"])[both].to_numpy()
            mean, trend = mean_interval(change), slope_interval(np.log(a["N"][both]), change)
            rows.append({"first": first, "second": second, "n": len(both),
                         "change": mean[0], "lo": mean[1], "hi": mean[2], "trend": trend[0], "trend_lo": trend[1],
                         "trend_hi": trend[2], "compute": float((b["C"] / a["C"])[both].mean())})  # fmt: skip
    return pd.DataFrame(rows)


def group_average(q: Question) -> Answer:
    """Averaging over M rotations at test time: gain by M, where it saturates, and eq. (24) with and without."""
    if not len(q.averaging):
        word = "no averaged losses: `symscale group-average` measures them from the cells' model.pt"
        return Answer(q.study, "group_average", pd.DataFrame(), {}, (), (word,))
    groups = q.points.drop_duplicates("cell").set_index("cell")["group"]
    table = q.averaging[q.averaging["cell"].isin(groups.index)].assign(loss=lambda t: t["val_loss"])
    table = table.assign(group=table["cell"].map(groups), run=table["cell"]).reset_index(drop=True)
    plain = table[table["M"] == 0].set_index("cell")["loss"]
    table = table[table["cell"].isin(plain.index)].reset_index(drop=True)
    if not len(table):
        word = "no loss without averaging (M = 0) to compare with"
        return Answer(q.study, "group_average", table, {}, (), (word,))
    table["gain"] = np.log(table["cell"].map(plain)) - np.log(table["loss"])
    numbers, sentences, words = {}, [], []
    for group, rows in table.groupby("group"):
        most = int(rows["M"].max())
        last = rows[rows["M"] == most]
        gain = mean_interval(last["gain"])
        numbers[f"gain:{group}"] = gain
        by_m = rows.groupby("M")["gain"].mean()
        trend = slope_interval(np.log(last["N"].astype(float)), last["gain"])
        numbers[f"gain_trend:{group}"] = trend
        left = gain[0] - by_m
        reached = int(next(m for m in by_m.index if abs(left[m]) <= 0.1 * abs(gain[0]) or m == most))
        numbers[f"saturated:{group}"] = (float(reached), NAN, NAN)
        change = percent((-gain[0], -gain[2], -gain[1]))
        sentence = (
            f"{group}: the average over {most} rotations changes the loss by {change} ({len(last)} models); "
        )
        if not np.isfinite(gain[1]):
            sentence += "too few models for an interval"
        elif gain[1] <= 0 <= gain[2]:
            sentence += "no gain is told from the noise"
        else:
            sentence += f"a tenth or less of that is still to come from M = {reached} on"
        if 1 in by_m.index:
            sentence += f"; a single rotation changes it by {percent((-by_m[1], NAN, NAN))}"
        if np.isfinite(trend[1]):
            sentence += f"; the gain in log L grows by {bounds(trend, sign='+')} per unit of log N"
        sentences.append(sentence)
        found = q.analyses.get(str(group))
        if found is None or found.surface is None:
            words.append(f"{group}: no sum law, so no L_D for eq. (24)")
            continue
        limit = data_limit(found.surface.params, float(q.points.loc[q.points["group"] == group, "D"].max()))
        try:
            fits = averaging(
                rows[rows["M"].isin([0, most])], limit, n_bootstrap=q.options.bootstraps, seed=q.options.seed
            )
        except UserError as error:
            words.append(f"{group}: eq. (24) not fitted: {error}")
            continue
        few = rows["N"].nunique() < MIN_SIZES  # resamples of three sizes out of three or four hardly differ
        values = {f"alpha:M={m}": fits.alpha[m] for m in (0, most)}
        values |= {"slope_change": fits.slope_change, "shift": fits.shift}
        if few:
            values = {name: (v[0], NAN, NAN) for name, v in values.items()}
        numbers |= {f"{name}:{group}": v for name, v in values.items()}
        without, averaged, change, shift = values.values()
        if few:
            verdict = "of too few sizes to tell them apart"
        else:
            verdict = "the same within the noise" if change[1] <= 0 <= change[2] else "another exponent"
        sentences.append(
            f"{group}: L - L_D = A N^-alpha with L_D = {limit:.3g} has alpha {bounds(without)} without and "
            f"{bounds(averaged)} with {most} rotations, {verdict} (change {bounds(change, sign='+')}); it lies "
            f"{bounds(shift, sign='+')} in log10"
        )
        words += [f"{group}: {word}" for word in fits.words]
    return Answer(q.study, "group_average", table, numbers, tuple(sentences), tuple(words))


QUESTIONS: dict[str, Callable[[Question], Answer]] = {
    "exponents": exponents,
    "grid": grid,
    "sweep": sweep,
    "fractions": fractions,
    "replicates": replicates,
    "epochs": epochs,
    "learning": learning,
    "kappa": kappa,
    "group_average": group_average,
}


def answer(
    studies: dict[str, dict],
    points: pd.DataFrame,
    analyses: list[GroupAnalysis],
    comparisons: list[compare.Comparison],
    options: Options,
    measured: dict[str, pd.DataFrame] | None = None,
) -> list[Answer]:
    """The answer of every study that has at least one curve, in the order of the studies."""
    clean, _ = usable(points)
    out = []
    for name, entry in studies.items():
        mine = clean[clean["cell"].isin(entry["cells"])]
        if not len(mine):
            continue
        groups = {a.group: a for a in analyses}
        over = tuple(entry.get("over", ()))
        same = [field for field in over if field not in clean]  # the table has only what varies
        if same:
            word = f"{same[0]} is the same in all curves that are there"
            out.append(Answer(name, entry["ask"], pd.DataFrame(), {}, (), (word,)))
            continue
        question = Question(name, mine, clean, groups, comparisons, over, options=options, **(measured or {}))
        out.append(QUESTIONS[entry.get("ask", "exponents")](question))
    return out


def write(folder: Path, answers: list[Answer]) -> None:
    """answers.json: a list of {study, kind, numbers {name: [value, lo, hi]}, sentences, words, table [rows]}."""
    write_json(folder / FILE, [vars(a) | {"table": a.table.to_dict("records")} for a in answers])


def read(folder: str | Path) -> dict[str, dict]:
    """Study -> its object in answers.json, with the table as a DataFrame; empty where there is no such file."""
    path = Path(folder) / FILE
    if not path.exists():
        return {}
    return {a["study"]: a | {"table": pd.DataFrame(a["table"])} for a in json.loads(path.read_text())}
