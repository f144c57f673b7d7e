"""Figures 3 and 14: learning curves by model size, with the frontier and by loss term."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from symscale.analysis.laws import evaluate
from symscale.figures import style
from symscale.figures.frontiers import MARKS, values
from symscale.figures.inputs import Analysis, title
from symscale.figures.style import Drawing


def draw_curves(ax: Axes, a: Analysis, group: str, x: str, y: str = "loss") -> str:
    """One line a run, light small to dark large, burn-in dotted. Returns the words for its legend."""
    rows = a.rows(group, kept=False)
    rows = rows[np.isfinite(rows[y]) & (rows[y] > 0) & (rows[x] > 0)].sort_values("N")
    if not len(rows):
        style.note(ax, f"no positive {y.replace('_', ' ')} in these curves")
        return ""
    tones = style.by_log(rows["N"], style.colour(a.arch(group)))
    burn_in = a.options.get("burn_in", 0.0)
    for cell, curve in rows.groupby("cell", sort=False):
        curve = curve.sort_values("step")
        colour = tones[float(curve["N"].iloc[0])]
        early, late = curve[curve["fraction"] <= burn_in], curve[curve["fraction"] >= burn_in]
        if len(early):
            early = curve.iloc[: len(early) + 1]
            ax.plot(early[x], early[y], color=colour, lw=0.6, ls=":", alpha=0.7)
        ax.plot(late[x], late[y], color=colour, lw=1.0, gid=f"curve:{cell}:{x}:{y}")
    low, high = rows["N"].min(), rows["N"].max()
    return (
        f"N = {style.short(low)} (light) … {style.short(high)} (dark)"
        if low < high
        else f"N = {style.short(low)}"
    )


def learning_curves(a: Analysis) -> Drawing:
    """Figure 3: curves of each architecture with the frontier on top, in C above and in H below."""
    groups = a.plain
    fig, axes = style.figure(len(groups), 2, sharey="row", height=3.2)
    shares = {}
    for row, x in zip(axes, ("C", "H"), strict=True):
        for ax, group in zip(row, groups, strict=True):
            style.log_axes(ax, x, "loss" if ax is row[0] else None)
            words = draw_curves(ax, a, group, x)
            share = _frontier_over(ax, a, group, x)
            fit = a.fit("frontier", group, x)
            shares[group, x] = share
            line = (
                f"γ = {style.interval(fit['params']['gamma'])}{style.star(fit)}" if fit else "no frontier fit"
            )
            style.corner(ax, "\n".join(w for w in (line, words) if w))
            if x == "C":
                ax.set_title(title(group))
        style.room_below(row)
    caption = "Learning curves (light small, dark large), the frontier in black; hollow: censored budgets"
    known = [f"{title(g)} {shares[g, 'C']:.0%}" for g in groups if shares[g, "C"] is not None]
    caption += f", in C {', '.join(known)} of them" if known else ""
    alt = "Falling learning curves of every model size by architecture, in compute above and device-hours below."
    return Drawing(
        fig, "Learning curves and frontiers", caption + ". Dotted: burn-in, left out of every fit.", alt
    )


def _frontier_over(ax: Axes, a: Analysis, group: str, x: str) -> float | None:
    """Frontier points and line in black; the share of budgets that are censored."""
    table = a.frontier_rows(group, x)
    if not len(table):
        return None
    shown = table.iloc[np.unique(np.linspace(0, len(table) - 1, MARKS).round().astype(int))]
    for censored, rows in shown.groupby("censored"):
        ax.plot(rows["budget"], rows["loss"], "o", ms=3.2, mec="black", mfc="white" if censored else "black",
                mew=0.7, zorder=5)  # fmt: skip
    fit = a.fit("frontier", group, x)
    if fit:
        budgets = np.geomspace(table["budget"].min(), table["budget"].max(), 60)
        ax.plot(budgets, evaluate(values(fit), budgets), color="black", lw=1.2, ls="--", zorder=4.5)
    return float(table["censored"].mean())


def loss_terms(a: Analysis) -> Drawing:
    """Figure 14: energy and force loss along compute."""
    groups = a.plain
    fig, axes = style.figure(len(groups), 2, sharey="row")
    sentences = []
    for row, term in zip(axes, ("energy", "force"), strict=True):
        for ax, group in zip(row, groups, strict=True):
            style.log_axes(ax, "C", f"{term}_loss" if ax is row[0] else None)
            words = draw_curves(ax, a, group, "C", f"{term}_loss")
            fit = a.fit("frontier", group, "C", term)
            if fit:
                table = a.frontier_rows(group, "C")
                budgets = np.geomspace(table["budget"].min(), table["budget"].max(), 60)
                ax.plot(budgets, evaluate(values(fit), budgets), color="black", lw=1.2, ls="--")
                gamma = f"γ = {style.interval(fit['params']['gamma'])}{style.star(fit)}"
                sentences.append(f"{title(group)} {term} {gamma}")
                words = f"{gamma}\n{words}"
            style.corner(ax, words)
            if term == "energy":
                ax.set_title(title(group))
        style.room_below(row)
    share = "; ".join(f"{title(g)} {s:.0%}" for g in groups if (s := _force_share(a, g)) is not None)
    caption = "The two terms of the loss along training"
    caption += f"; force makes up this much of the largest model's final loss: {share}." if share else "."
    if sentences:
        caption += " Dashed: fitted frontier of the term; " + "; ".join(sentences) + "."
    alt = "Energy loss above and force loss below against compute, one line a model size, by architecture."
    return Drawing(fig, "Energy and force loss", caption, alt)


def _force_share(a: Analysis, group: str) -> float | None:
    rows = a.rows(group, kept=False)
    last = rows[rows["N"] == rows["N"].max()].sort_values("step").iloc[-1:]
    last = last[np.isfinite(last["force_loss"]) & (last["loss"] > 0)]
    return float(last["force_loss"].iloc[0] / last["loss"].iloc[0]) if len(last) else None
