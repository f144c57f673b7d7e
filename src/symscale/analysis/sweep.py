"""The analysis of a sweep: every law of every group, with intervals and words. DataFrame in, records out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from symscale.analysis.components import decompose
from symscale.analysis.frontier import censor, extract
from symscale.analysis.laws import Fit
from symscale.analysis.points import after_burn_in, at_fractions, canonical, ema, usable
from symscale.analysis.records import (
    Options,
    Record,
    analyse_closed,
    analyse_cost,
    analyse_frontier,
    analyse_sum,
)
from symscale.errors import UserError


@dataclass(frozen=True)
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


def censoring_words(marks: np.ndarray) -> list[str]:
    """Which share of the budgets is cut off, and what that does to gamma."""
    kinds, counts = np.unique(marks[marks != "inside"].astype(str), return_counts=True)
    if counts.sum() <= 0.05 * len(marks):
        return []
    shares = ", ".join(f"{c / len(marks):.0%} {k}" for k, c in zip(kinds, counts, strict=True))
    return [
        f"censored: at {shares}; gamma is biased there, compare the uncensored window and the closed form"
    ]


def analyse_group(points: pd.DataFrame, group: str, options: Options) -> GroupAnalysis:
    """All laws of one group of prepared points."""
    arch = str(points["arch"].iloc[0])
    sum_points = canonical(at_fractions(points))
    surface, record = analyse_sum(sum_points, group, arch, options)
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
        elif surface is not None and cost is not None:
            allocation, closed = analyse_closed(surface, record, cost, x)
            records.append(closed)
        if cost is None:
            continue
        table = extract(points, x)
        marks = censor(table, points, allocation)
        inside = marks == "inside"
        words = censoring_words(marks)
        every = np.ones(len(table), dtype=bool)
        records.append(analyse_frontier(table, points, surface, group, arch, x, "", every, options, words))
        records.append(
            analyse_frontier(table, points, surface, group, arch, x, "uncensored", inside, options)
        )
        table.insert(0, "group", group)
        table.insert(1, "arch", arch)
        table.insert(2, "x", x)
        tables.append(table.assign(censored=~inside, where=marks))
    records += decompose(points, group, arch, options)
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
