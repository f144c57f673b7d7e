"""One figure a study, and the forest plot of differences of exponents."""

from __future__ import annotations

import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from symscale.figures import style
from symscale.figures.frontiers import draw_frontier
from symscale.figures.inputs import Analysis, in_words, ordered, title
from symscale.figures.style import Drawing

PAIRS = 8  # of one study that a forest plot still tells apart


def study(a: Analysis, name: str) -> Drawing:
    """Frontiers in C by group, a panel an architecture, and the differences of exponents between the groups."""
    entry = a.studies[name]
    cells = set(entry["cells"])
    groups = [g for g in a.groups if cells & set(a.rows(g, kept=False)["cell"])]
    plain = [g for g in a.plain if g not in groups and a.arch(g) in {a.arch(o) for o in groups}]
    groups = ordered(groups + plain)  # beside every variant stands what it is a variant of
    cells |= {c for g in plain for c in a.rows(g, kept=False)["cell"]}
    archs = list(dict.fromkeys(a.arch(g) for g in groups))
    rows = differences(a, groups)
    rows = [c for c in rows if a.arch(c["first"]) == a.arch(c["second"])] or rows
    several = len(groups) > 1
    fig, (axes,) = style.figure(len(archs) + several, width=4.0, height=3.9)
    for ax, arch in zip(axes, archs, strict=False):
        _panel(ax, a, [g for g in groups if a.arch(g) == arch], cells)
        ax.set_title(title(arch))
    if several:
        pair_forest(axes[-1], rows, a)
        axes[-1].set_title("differences of exponents")
    names = ", ".join(title(g, groups, a.points) for g in groups)
    alt = f"Loss against compute with fitted frontiers for {names}; differences of their exponents."
    caption = "Frontiers in compute by group (thin: learning curves), and differences of exponents"
    caption += " with 95 % intervals, filled where these exclude 0." if several else "."
    return Drawing(fig, entry.get("title") or name, caption, alt, study=name)


def _panel(ax: Axes, a: Analysis, groups: list[str], cells: set[str]) -> None:
    arch = a.arch(groups[0])
    names = {g: title(g, groups, a.points).removeprefix(title(arch) + ", ") for g in groups}
    groups = sorted(groups, key=lambda g: [float(v) for v in re.findall(r"\d+(?:\.\d+)?", names[g])])
    tones, handles = style.shades(style.colour(arch)), []
    for i, group in enumerate(groups):
        colour = tones(0.5 if len(groups) == 1 else 0.1 + 0.8 * i / (len(groups) - 1))
        dash, mark = style.DASHES[i % len(style.DASHES)], "osD^vPX<>*"[i % 10]
        rows = a.rows(group, kept=False)
        for cell, curve in rows[rows["cell"].isin(cells)].groupby("cell"):
            ax.plot(curve["C"], curve["loss"], color=colour, lw=0.5, alpha=0.35, gid=f"curve:{cell}")
        fit = draw_frontier(ax, a, group, "C", colour, mark, dash)
        words = f"γ = {style.interval(fit['params']['gamma'])}{style.star(fit)}" if fit else "no fit"
        handles.append(
            style.handle(colour, f"{names[group]}: {words}", marker=mark, ms=4, ls=dash, lw=1.4, wrap=44)
        )
    style.log_axes(ax, "C", "loss")
    style.finish_log(ax)
    style.below(ax, handles)


def differences(a: Analysis, groups: list[str]) -> list[dict]:
    """Comparisons of exponents between two of these groups that have an interval: the later group of the
    paper's order minus the earlier."""
    order, out = ordered(groups), []
    for c in a.comparisons:
        if c["kind"] != "exponent" or not {c["first"], c["second"]} <= set(order) or c["lo"] is None:
            continue
        if order.index(c["first"]) > order.index(c["second"]):
            turned = {"estimate": -c["estimate"], "lo": -c["hi"], "hi": -c["lo"]}
            c = c | {"first": c["second"], "second": c["first"]} | turned
        out.append(c)
    return sorted(out, key=lambda c: (c["what"], order.index(c["first"]), order.index(c["second"])))


def forest(ax: Axes, rows: list[dict], a: Analysis) -> None:
    """One exponent: estimates with intervals about a line at zero; filled where the interval leaves zero out."""
    for y, c in enumerate(rows):
        _difference(ax, y, c, style.GREY, _reach(rows))
    _zero_line(ax, _reach(rows), [_pair(c, a) for c in rows])


def pair_forest(ax: Axes, rows: list[dict], a: Analysis) -> None:
    """All exponents of a few pairs, a colour and marker a pair."""
    pairs = list(dict.fromkeys((c["first"], c["second"]) for c in rows))[:PAIRS]
    if not pairs:
        style.note(ax, "no comparison: it needs two groups of at least three runs")
        ax.set_axis_off()
        return
    rows = [c for c in rows if (c["first"], c["second"]) in pairs]
    kinds = list(dict.fromkeys(c["what"] for c in rows))
    handles = {}
    for c in rows:
        k = pairs.index((c["first"], c["second"]))
        tones = style.shades(style.colour(a.arch(c["second"])))
        colour, mark = tones(0.15 + 0.7 * k / max(len(pairs) - 1, 1)), "osD^vPX*"[k % 8]
        y = kinds.index(c["what"]) + (k - (len(pairs) - 1) / 2) * 0.7 / len(pairs)
        _difference(ax, y, c, colour, _reach(rows), mark)
        handles[k] = style.handle(colour, _pair(c, a), marker=mark, ms=4, lw=1.4, wrap=44)
    _zero_line(ax, _reach(rows), [in_words(k, []) for k in kinds])
    style.below(ax, [handles[k] for k in sorted(handles)])


def _reach(rows: list[dict]) -> float:
    """Half the axis: shows every estimate, and every interval that is not out of proportion."""
    far = [max(abs(c["lo"]), abs(c["hi"])) for c in rows]
    return 1.1 * max(min(max(far), 6 * float(np.median(far))), max(abs(c["estimate"]) for c in rows))


def _difference(ax: Axes, y: float, c: dict, colour, reach: float, mark: str = "o") -> None:
    hollow = c["lo"] <= 0 <= c["hi"]
    whisker(ax, y, c["estimate"], c["lo"], c["hi"], colour, reach=(-reach, reach), hollow=hollow, mark=mark)


def _zero_line(ax: Axes, reach: float, names: list[str]) -> None:
    ax.axvline(0, color=style.GREY, lw=0.9)
    ax.set_xlim(-reach, reach)
    ax.xaxis.set_major_locator(MaxNLocator(5, symmetric=True))
    ax.set_yticks(range(len(names)), names, fontsize=7.5)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("difference (filled: 95 % interval excludes 0)")


def _pair(c: dict, a: Analysis) -> str:
    """'eSEN − MPNN', or 'eSEN: lmax 3 − lmax 2' within an architecture."""
    if a.arch(c["first"]) != a.arch(c["second"]):
        return f"{title(c['second'])} − {title(c['first'])}"
    both, arch = (c["first"], c["second"]), title(a.arch(c["first"]))
    first, second = (title(g, both, a.points).removeprefix(f"{arch}, ") for g in both)
    return f"{arch}: {second} − {first}"


def whisker(ax: Axes, y: float, value, low, high, colour, *, reach, hollow=False, mark="o", lw=1.6) -> None:
    """A dot with its interval; an arrow where the interval goes on beyond `reach`."""
    if low is not None and high is not None and np.isfinite(low) and np.isfinite(high):
        ends = [max(low, reach[0]), min(high, reach[1])]
        ax.plot(ends, [y, y], color=colour, lw=lw, solid_capstyle="butt")
        for beyond, at, tip in ((low < reach[0], reach[0], "<"), (high > reach[1], reach[1], ">")):
            if beyond:
                ax.plot([at], [y], tip, color=colour, ms=5, clip_on=False)
    ax.plot([value], [y], mark, ms=5, mec=colour, mfc="white" if hollow else colour, mew=1.1)
