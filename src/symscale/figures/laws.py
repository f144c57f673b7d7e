"""Figures 2, 5 and 6: kappa, the sum law through its data, and the allocation it implies."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from symscale.analysis.laws import evaluate
from symscale.figures import style
from symscale.figures.frontiers import values
from symscale.figures.inputs import Analysis, log_band, title
from symscale.figures.style import Drawing

PFLOP = 1e15


def kappa(a: Analysis) -> Drawing:
    """Figure 2: C against 3 N D, where eq. (3) is a line of height kappa; and kappa of every run against N."""
    fig, (axes,) = style.figure(2, width=4.4, height=3.7)
    handles, words = [], []
    for group in a.plain:
        rows = a.rows(group, kept=False)
        rows = rows[(rows["C"] > 0) & (rows["D"] > 0)].sort_values(["N", "D"])
        if not len(rows):
            continue
        colour, mark = style.colour(a.arch(group)), style.marker(a.arch(group))
        product = 3 * rows["N"] * rows["D"]
        last = rows.groupby("run").tail(1)
        few = rows["in_sum_fit"]
        axes[0].plot(product[few], rows["C"][few] * PFLOP, mark, ms=2.6, color=colour, alpha=0.35, mew=0)
        axes[1].plot(last["N"], last["C"] * PFLOP / (3 * last["N"] * last["D"]), mark, ms=4.5, color=colour)
        fit = a.fit("kappa", group, "C")
        label = f"{title(group)}: κ not fitted"
        if fit:
            value = fit["params"]["kappa"]["value"]
            ends = np.array([product.min(), product.max()])
            axes[0].plot(ends, value * ends, color=colour, lw=1.2)
            axes[1].plot([last["N"].min(), last["N"].max()], [value, value], color=colour, lw=1.0, ls="--")
            drift = fit["params"]["drift"]["value"]
            change = f"changes as N^{style.number(drift, 2)}"
            label = f"{title(group)}: κ = {style.interval(fit['params']['kappa'], 2)}, {change}"
            words.append(f"{title(group)} {style.number(value, 1)} ({change})")
        handles.append(style.handle(colour, label, marker=mark, ms=4, lw=1.2))
    style.log_axes(axes[0], "3 N D (parameters × atoms)", "training compute C (FLOP)")
    style.log_axes(axes[1], "N", "κ = C / (3 N D)")
    style.finish_log(axes[0], plain_y=False)
    style.finish_log(axes[1])
    axes[0].set_title("compute is proportional to N D")
    axes[1].set_title("what is left over: κ by model size")
    if handles:
        style.below(axes[0], handles)
    else:
        style.note(axes[0], "no run with compute above zero")
    caption = "Forward FLOPs per parameter per atom, κ: " + ("; ".join(words) or "not fitted") + "."
    return Drawing(
        fig, "FLOPs per parameter and atom", caption, "Compute against N D, a line an architecture."
    )


def sum_law(a: Analysis) -> Drawing:
    """Figure 5: loss against D (by N) above and against N (by D) below, data and eq. (5)."""
    groups = a.plain
    fig, axes = style.figure(len(groups), 2, sharey="row")
    for column, group in zip(axes.T, groups, strict=True):
        column[0].set_title(title(group))
        _sum_panel(column[0], a, group, "D", "N")
        _sum_panel(column[1], a, group, "N", "D")
    for row, x in zip(axes, "DN", strict=True):
        for ax in row:
            style.log_axes(ax, x, "loss" if ax is row[0] else None)
        style.room_below(row)
    words = []
    for group in groups:
        fit = a.fit("sum", group)
        if fit:
            p = fit["params"]
            words.append(
                f"{title(group)} α {style.interval(p['alpha'], 2)}, β {style.interval(p['beta'], 2)}{style.star(fit)}"
            )
    caption = "The law L = L∞ + A N^−α + B D^−β (lines) through the data (points): " + (
        "; ".join(words) or "not fitted"
    )
    caption += ". Dashed: the limit in which the other variable is infinite."
    alt = "Loss against training atoms and against parameters by architecture, with the fitted curves."
    return Drawing(fig, "Scaling in data and in parameters", caption, alt)


def _sum_panel(ax: Axes, a: Analysis, group: str, x: str, by: str) -> None:
    """Points and lines of one panel; colour is the other variable."""
    rows = a.fitted_rows(group)
    if not len(rows):
        style.note(ax, f"no points for the sum law: {a.why_not('sum', group)}")
        return
    # runs of one ladder reach slightly different D at one r: colour by r, draw each at its own mean D
    key = "N" if by == "N" else "fraction"
    level = rows["N"] if by == "N" else rows["fraction"].round(2)
    means = rows.groupby(level)[by].mean()
    tones = style.by_log(means.index, style.colour(a.arch(group)))
    fit = a.fit("sum", group)
    span = np.geomspace(rows[x].min(), rows[x].max(), 50)
    for value, part in rows.groupby(level):
        colour = tones[float(value)]
        ax.plot(part[x], part["loss"], style.marker(a.arch(group)), ms=3, color=colour, mew=0, alpha=0.9,
                gid=f"points:{group}:{key}:{value:g}")  # fmt: skip
        if fit:
            ax.plot(span, evaluate(values(fit), *((means[value], span) if x == "D" else (span, means[value]))),
                    color=colour, lw=0.8)  # fmt: skip
    low, high = means.min(), means.max()
    legend = f"{by} = {style.short(low)} (light) … {style.short(high)} (dark)"
    if fit is None:
        style.note(ax, f"sum law not fitted: {a.why_not('sum', group)}")
    else:
        scale, exponent = ("B", "beta") if x == "D" else ("A", "alpha")
        p = values(fit)
        with np.errstate(all="ignore"):
            limit = p.get("E", 0.0) + p[scale] * span ** -p[exponent]
        if np.isfinite(limit).all():
            ax.plot(span, limit, color="black", lw=1.1, ls="--", zorder=4)
        letter = {"beta": "β", "alpha": "α"}[exponent]
        legend = f"{letter} = {style.interval(fit['params'][exponent])}{style.star(fit)}\n{legend}"
    style.corner(ax, legend)


def allocation(a: Analysis) -> Drawing:
    """Figure 6: N*(C) and D*(C) of the closed form (section 4.3), solid where the ladder and the data hold them."""
    fig, (axes,) = style.figure(2, width=4.4, height=3.7)
    handles, words = [], []
    for group in a.plain:
        closed, cost = a.fit("closed_form", group, "C"), a.fit("kappa", group, "C")
        arch = a.arch(group)
        if closed is None or cost is None:
            handles.append(style.handle(style.colour(arch), f"{title(group)}: not fitted", lw=1.4))
            continue
        _allocation_lines(axes, a, group, closed, cost)
        p = closed["params"]
        text = f"{title(group)}: a = {style.interval(p['a'], 2)}, b = {style.interval(p['b'], 2)}{style.star(closed)}"
        handles.append(style.handle(style.colour(arch), text, lw=1.6))
        words.append(f"{title(group)} a = {style.number(p['a']['value'], 2)}{style.star(closed)}")
    for ax, y in zip(axes, "ND", strict=True):
        style.log_axes(
            ax, "C", {"N": "compute-optimal parameters N*", "D": "compute-optimal training atoms D*"}[y]
        )
        style.finish_log(ax, plain_y=False)
    axes[0].set_title("model size, N* ~ C^a")
    axes[1].set_title("training data, D* ~ C^b")
    style.below(axes[0], handles)
    if not words:
        for ax in axes:
            style.note(ax, "no closed form: the sum law could not be fitted")
    caption = "Best split of a compute budget between model and data by the sum law: " + (
        "; ".join(words) or "none"
    )
    caption += ". Dotted: N* or D* lies outside the ladder or beyond the data. Bands: 95 %."
    return Drawing(
        fig,
        "Compute-optimal model size and data",
        caption,
        "Optimal parameters and training atoms against compute, a rising line an architecture.",
    )


def _allocation_lines(axes, a: Analysis, group: str, closed: dict, cost: dict) -> None:
    rows, colour = a.rows(group, kept=False), style.colour(a.arch(group))
    xi = 3 * cost["params"]["kappa"]["value"] / PFLOP  # C in PFLOP = xi N D
    budgets = np.geomspace(rows["C"][rows["C"] > 0].min(), 10 * rows["C"].max(), 200)
    p = values(closed)
    n = p["G"] * (budgets / xi) ** p["a"]
    lines = {"N": n, "D": budgets / xi / n}
    inside = (n >= rows["N"].min()) & (n <= rows["N"].max()) & (lines["D"] <= rows["D"].max())
    draws = a.draws_of(closed)
    if draws is not None:
        with np.errstate(all="ignore"):
            log_n = np.log(draws["G"].to_numpy(float))[:, None] + draws["a"].to_numpy(float)[
                :, None
            ] * np.log(budgets / xi)
    for ax, (name, line) in zip(axes, lines.items(), strict=True):
        ax.plot(budgets, line, color=colour, lw=1.1, ls=":")
        ax.plot(budgets, np.where(inside, line, np.nan), color=colour, lw=1.8)
        if draws is None:
            continue
        band = log_band(log_n if name == "N" else np.log(budgets / xi) - log_n, np.log(line), basic=False)
        if band is not None:
            ax.fill_between(budgets, *band, color=colour, alpha=0.14, lw=0)
