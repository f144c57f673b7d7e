"""Figure 1: frontiers with their fitted lines."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from symscale.analysis.laws import evaluate
from symscale.figures import style
from symscale.figures.inputs import Analysis, title
from symscale.figures.style import Drawing

MARKS = 26  # markers on a frontier of 400 budgets
MEASURES = {"C": "FLOPs-optimal frontier", "H": "train-time-optimal frontier"}


def draw_frontier(
    ax: Axes, a: Analysis, group: str, x: str, colour, marker: str = "o", dash="-"
) -> dict | None:
    """Frontier points (hollow where censored), the line through all budgets with its band. Returns the fit."""
    table = a.frontier_rows(group, x)
    if not len(table):
        return None
    shown = table.iloc[np.unique(np.linspace(0, len(table) - 1, MARKS).round().astype(int))]
    for censored, rows in shown.groupby("censored"):
        gid = f"frontier:{group}:{x}:{'censored' if censored else 'inside'}"
        ax.plot(rows["budget"], rows["loss"], marker, ms=4, mec=colour, mfc="white" if censored else colour,
                mew=0.8, ls="none", alpha=0.85, gid=gid)  # fmt: skip
    fit = a.fit("frontier", group, x)
    if fit is None:
        return None
    budgets = np.geomspace(table["budget"].min(), table["budget"].max(), 60)
    line = evaluate(values(fit), budgets)
    ax.plot(budgets, line, color=colour, ls=dash, lw=1.6, gid=f"fit:{group}:{x}")
    band = a.band(fit, line, budgets)
    if band is not None:
        ax.fill_between(budgets, *band, color=colour, alpha=0.16, lw=0)
    return fit


def values(fit: dict) -> dict[str, float]:
    """{parameter: value} of a fit."""
    return {name: p["value"] for name, p in fit["params"].items()}


def frontiers(a: Analysis) -> Drawing:
    """Figure 1: every architecture's frontier in C and in H."""
    groups, measures = a.plain, [x for x in ("C", "H") if len(a.frontier) and (a.frontier["x"] == x).any()]
    fig, axes = style.figure(max(len(measures), 1), width=4.4, height=3.9)
    sentences = []
    for ax, x in zip(axes[0], measures, strict=False):
        handles, fitted = [], {}
        for group in groups:
            colour, mark = style.colour(a.arch(group)), style.marker(a.arch(group))
            fit = draw_frontier(ax, a, group, x, colour, mark)
            words = "no fit"
            if fit:
                fitted[group] = fit
                words = f"γ = {style.interval(fit['params']['gamma'])}{style.star(fit)}"
            handles.append(style.handle(colour, f"{title(group)}: {words}", marker=mark, ms=4, lw=1.6))
        style.log_axes(ax, x, "loss")
        style.finish_log(ax)
        ax.set_title(MEASURES[x])
        style.below(ax, handles)
        if not fitted:
            style.note(ax, "no fit: " + "; ".join(a.why_not("frontier", g, x) for g in groups))
        sentences.append(ranking(fitted, x))
    if not measures:
        style.note(axes[0, 0], "no frontier: the analysis found no budget that a run reached")
        axes[0, 0].set_axis_off()
    caption = " ".join(s for s in sentences if s) or "No frontier could be fitted."
    caption += (
        " Filled points: the optimum lies inside the ladder and the data; hollow: censored. Bands: 95 %."
    )
    if any(fit["status"] == "flagged" for g in groups for x in measures if (fit := a.fit("frontier", g, x))):
        caption += " * flagged, see diagnostics."
    alt = (
        f"Validation loss against compute and device-hours, log-log, a falling line each for {_list(groups)}."
    )
    return Drawing(fig, "Compute-optimal frontiers", caption, alt)


def ranking(fitted: dict[str, dict], x: str) -> str:
    """Which frontier is steepest and which flattest, with intervals."""
    if not fitted:
        return ""
    by_slope = sorted(fitted, key=lambda g: fitted[g]["params"]["gamma"]["value"])
    what = {"C": "compute", "H": "training time"}[x]

    def say(group: str) -> str:
        fit = fitted[group]
        return f"{title(group)}, γ = {style.interval(fit['params']['gamma'])}{style.reservation(fit)}"

    if len(by_slope) == 1:
        return f"In {what}: {say(by_slope[0])}."
    return f"In {what} the steepest frontier is that of {say(by_slope[-1])}, the flattest that of {say(by_slope[0])}."


def _list(groups) -> str:
    return ", ".join(title(g) for g in groups)
