"""The analysis of a sweep: every law of every group, with intervals and words. DataFrame in, records out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from symscale.analysis.components import decompose
from symscale.analysis.diagnostics import NOTHING, Words, flag, note
from symscale.analysis.frontier import censor, extract
from symscale.analysis.laws import Fit
from symscale.analysis.points import after_burn_in, at_fractions, canonical, doubts, ema, usable
from symscale.analysis.records import (
    Options,
    Record,
    analyse_closed,
    analyse_cost,
    analyse_frontier,
    analyse_sum,
)
from symscale.errors import UserError


@dataclasses.dataclass(frozen=True)
class GroupAnalysis:
    """Everything about one group: its points, the sum fit (None if impossible), records, frontier table."""

    group: str
    arch: str
    points: pd.DataFrame
    sum_points: pd.DataFrame
    surface: Fit | None
    records: list[Record]
    frontier: pd.DataFrame


def prepare(points: pd.DataFrame, options: Options) -> tuple[pd.DataFrame, list[str]]:
    """Usable points after burn-in, smoothed where asked; and in words what was left out."""
    points, words = usable(points)
    points = after_burn_in(points, options.burn_in)
    parts = [ema(rows, options.ema[a]) if options.ema.get(a) else rows for a, rows in points.groupby("arch")]
    return (canonical(pd.concat(parts)) if parts else points), words


def censoring_words(marks: np.ndarray) -> Words:
    """Which share of the budgets is cut off, and what that does to gamma."""
    kinds, counts = np.unique(marks[marks != "inside"].astype(str), return_counts=True)
    if counts.sum() <= 0.05 * len(marks):
        return NOTHING
    shares = ", ".join(f"{c / len(marks):.0%} {k}" for k, c in zip(kinds, counts, strict=True))
    return note(
        f"censored: at {shares}; gamma is biased there, compare the uncensored window and the closed form"
    )


def against_window(whole: Record, window: Record) -> Record:
    """The frontier through all budgets, flagged where it and the uncensored window leave each other's gamma outside
    of their intervals: then it describes where runs ended, not how losses fall."""
    if "not fitted" in (whole.status, window.status):
        return whole
    gamma, low, high = whole.params["gamma"][:3]
    other, other_low, other_high = window.params["gamma"][:3]
    if not (other < low or other > high) or not (gamma < other_low or gamma > other_high):
        return whole
    words = Words(whole.flags, whole.words[len(whole.flags) :])
    words += flag(
        f"gamma is {gamma - other:+.3f} off that of the uncensored window ({other:.3f}), beyond both intervals"
    )
    return dataclasses.replace(whole, status=words.status, words=words.text, flags=words.flags)


def analyse_group(points: pd.DataFrame, group: str, options: Options) -> GroupAnalysis:
    """All laws of one group of prepared points."""
    arch = str(points["arch"].iloc[0])
    sum_points = canonical(at_fractions(points))
    known = flag(*doubts(points))
    surface, record = analyse_sum(sum_points, group, arch, options, words=known)
    records, tables = [record], []
    for x in ("C", "H"):
        cost, cost_record = analyse_cost(points, group, arch, x)
        records.append(cost_record)
        allocation = None
        if surface is not None and surface.degenerate:
            why = (
                "a term of the sum law is at its bound, so there is no trade-off to optimise",
                *surface.words,
            )
            records.append(Record("closed_form", group, arch, x, "", "not fitted", why))
        elif surface is not None and cost is not None and cost.p <= 0:
            why = f"{x} does not rise with N at equal D (as N^{cost.p:.2f}): the largest model costs least"
            records.append(Record("closed_form", group, arch, x, "", "not fitted", (why,)))
        elif surface is not None and cost is not None:
            allocation, closed = analyse_closed(surface, record, cost, x)
            records.append(closed)
        if cost is None:
            continue
        table = extract(points, x)
        marks = censor(table, points, allocation)
        inside = marks == "inside"
        words = known + censoring_words(marks)
        every = np.ones(len(table), dtype=bool)
        whole = analyse_frontier(table, points, surface, group, arch, x, "", every, options, words)
        window = analyse_frontier(
            table, points, surface, group, arch, x, "uncensored", inside, options, known
        )
        records += [against_window(whole, window), window]
        table.insert(0, "group", group)
        table.insert(1, "arch", arch)
        table.insert(2, "x", x)
        tables.append(table.assign(censored=~inside, where=marks))
    records += decompose(points, group, arch, options, known)
    frontier = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return GroupAnalysis(group, arch, points, sum_points, surface, records, frontier)


def analyse(points: pd.DataFrame, options: Options) -> tuple[list[GroupAnalysis], list[str]]:
    """Every group of a points table, in the order of names; and in words what was left out of the table."""
    from tqdm import tqdm

    ready, words = prepare(points, options)
    if not len(ready):
        raise UserError("no usable points: every loss is missing, not finite or inside the burn-in")
    groups = tqdm(list(ready.groupby("group")), desc="fits", unit="group", disable=None)
    out = [
        bare(rows, str(g))
        if single(rows, str(g))
        else analyse_group(rows.reset_index(drop=True), str(g), options)
        for g, rows in groups
    ]
    alone = [a.group for a in out if not a.records]
    if alone:
        words.append(
            f"{len(alone)} variants are of one model size each and have no law, only the answers of studies"
        )
    return out, words


def single(rows: pd.DataFrame, group: str) -> bool:
    """A variant (one setting of a grid, a share of the data) of one model size: no ladder, so no law."""
    return group != rows["arch"].iloc[0] and rows["N"].nunique() < 2


def bare(rows: pd.DataFrame, group: str) -> GroupAnalysis:
    """A group that no law is fitted to."""
    rows = rows.reset_index(drop=True)
    return GroupAnalysis(
        group, str(rows["arch"].iloc[0]), rows, canonical(at_fractions(rows)), None, [], pd.DataFrame()
    )
