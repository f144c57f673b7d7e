"""A study's question and its answer, and what kinds of question share: noise between runs, intervals, words."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from symscale.analysis import intervals as iv
from symscale.analysis.compare import Comparison
from symscale.analysis.records import Options
from symscale.analysis.sweep import GroupAnalysis

NAN = float("nan")
ASSUMED = 0.02  # difference of log L taken for the noise between runs where no replicates were trained
MIN_DF = 3  # replicates that an architecture needs for a noise of its own: t of 1 or 2 degrees of freedom hides all


@dataclass(frozen=True)
class Question:
    """The cells of a study with all that a kind of question may read."""

    study: str
    points: pd.DataFrame  # rows of the study's cells
    sweep: pd.DataFrame  # rows of every cell
    analyses: dict[str, GroupAnalysis]  # fitted groups of the sweep
    comparisons: list[Comparison]
    over: tuple[str, ...] = ()
    averaging: pd.DataFrame = field(
        default_factory=pd.DataFrame
    )  # cell, N, M, val_loss: symscale group-average
    kappa: pd.DataFrame = field(default_factory=pd.DataFrame)  # cell, arch, N, atoms, kappa: symscale kappa
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Answer:
    """numbers: name -> (value, lo, hi), NaN where there is no interval; words: reservations."""

    study: str
    kind: str
    table: pd.DataFrame
    numbers: dict[str, tuple[float, float, float]]
    sentences: tuple[str, ...]
    words: tuple[str, ...] = ()


def finals(points: pd.DataFrame) -> pd.DataFrame:
    """The last row of every run, with log L."""
    last = points.sort_values(["run", "step"]).groupby("run", sort=True).tail(1).reset_index(drop=True)
    return last.assign(log=np.log(last["loss"].to_numpy(float)))


def mean_interval(values, level: float = 0.95) -> tuple[float, float, float]:
    """Mean with its t interval; no interval for a single value."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return (float(values[0]) if len(values) else NAN), NAN, NAN
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    return (float(values.mean()), *iv.student(float(values.mean()), error, len(values) - 1, level))


def slope_interval(x, y) -> tuple[float, float, float]:
    """Least-squares slope of y in x with its t interval; an interval needs four points."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(np.unique(x)) < 2:
        return NAN, NAN, NAN
    x = x - x.mean()
    slope = float((x * y).sum() / (x**2).sum())
    if len(x) < 4:
        return slope, NAN, NAN
    rest = y - y.mean() - slope * x
    error = float(np.sqrt((rest**2).sum() / (len(x) - 2) / (x**2).sum()))
    return (slope, *iv.student(slope, error, len(x) - 2))


def number(points: pd.DataFrame, field: str) -> pd.Series:
    """A field that the points table has only where cells differ in it; else 1, as it is for shares and epochs."""
    return points[field].astype(float) if field in points else pd.Series(1.0, points.index)


def run_noise(points: pd.DataFrame, arch: str | None = None) -> tuple[float, int]:
    """Standard deviation of the final log L between runs on all of the data that differ by their seed alone, and its
    degrees of freedom: of one architecture, or of all where that has fewer than MIN_DF. (nan, 0) without any."""
    whole = points[number(points, "data_fraction") == 1]  # runs on little data scatter more
    last = finals(whole).drop_duplicates(["group", "width", "seed"])
    squares, df = 0.0, 0
    for _, runs in (last if arch is None else last[last["arch"] == arch]).groupby(["group", "width"]):
        if len(runs) > 1:
            squares += float(((runs["log"] - runs["log"].mean()) ** 2).sum())
            df += len(runs) - 1
    if arch is not None and df < MIN_DF:
        return run_noise(points)
    if not df:
        return NAN, 0
    return float(np.sqrt(squares / df)), df


def reservations(points: pd.DataFrame) -> list[str]:
    """What an answer that uses `least_difference` says where no replicates stand behind it."""
    if run_noise(points)[1]:
        return []
    return [f"no replicate seeds in this sweep: {100 * ASSUMED:g} % stands for the noise between runs"]


def least_difference(points: pd.DataFrame, arch: str) -> float:
    """Difference of log L between two single runs that the noise from run to run hides (95 %); ASSUMED where no
    replicates say how large that is."""
    sd, df = run_noise(points, arch)
    return iv.student(0.0, sd * np.sqrt(2), df)[1] if df else ASSUMED


def bounds(values: tuple[float, float, float], digits: int = 3, sign: str = "") -> str:
    """'0.142 [0.139, 0.145]', or the value alone."""
    value, low, high = values
    shown = f"{value:{sign}.{digits}f}"
    return f"{shown} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]" if np.isfinite(low + high) else shown


def percent(values: tuple[float, float, float]) -> str:
    """A difference of log L as per cent of the loss."""
    value, low, high = (float(np.expm1(v)) for v in values)
    shown = f"{value:+.1%}"
    return f"{shown} [{low:+.1%}, {high:+.1%}]" if np.isfinite(low + high) else shown


def counted(n: int, noun: str) -> str:
    """'1 width', '5 widths'."""
    return f"{int(n)} {noun}{'' if n == 1 else 's'}"


def setting(value) -> str:
    return (
        f"{value:g}"
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        else str(value)
    )


def resolved(points: pd.DataFrame, name: str) -> pd.Series:
    """A field of the spec as the model has it: vector_channels 0 stands for floor(sqrt(w))."""
    values = points[name]
    if name != "vector_channels":
        return values
    values = values.astype(int)
    return values.where(values > 0, np.floor(np.sqrt(points["width"].astype(float))).astype(int))
