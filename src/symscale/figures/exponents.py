"""Exponents of every architecture with their intervals, and the tests between them."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from symscale.figures import style
from symscale.figures.inputs import Analysis, in_words, title
from symscale.figures.studies import differences, forest, whisker
from symscale.figures.style import Drawing

# (law, x, variant, marker, words) of the estimates of each exponent
METHODS = {
    ("gamma", "C"): (
        ("frontier", "C", "", "o", "frontier"),
        ("frontier", "C", "uncensored", "s", "frontier, uncensored"),
        ("closed_form", "C", "", "D", "sum law"),
    ),
    ("gamma", "H"): (
        ("frontier", "H", "", "o", "frontier"),
        ("frontier", "H", "uncensored", "s", "frontier, uncensored"),
        ("closed_form", "H", "", "D", "sum law"),
    ),
    ("alpha", ""): (("sum", "", "", "D", "sum law"),),
    ("beta", ""): (("sum", "", "", "D", "sum law"),),
}
HEADS = {("gamma", "C"): "γ in compute", ("gamma", "H"): "γ in device-hours", ("alpha", ""): "α (parameters)",
         ("beta", ""): "β (data)"}  # fmt: skip


def exponents(a: Analysis) -> Drawing:
    """Dot and whisker by architecture: the per-run interval and, in grey, the per-point one 'as published'."""
    groups = a.plain
    fig, (axes,) = style.figure(4, width=2.9, height=max(2.6, 0.85 * len(groups) + 1.2), sharey=True)
    for ax, (which, methods) in zip(axes, METHODS.items(), strict=True):
        _panel(ax, a, groups, which[0], methods)
        ax.set_title(HEADS[which])
    axes[0].set_yticks(range(len(groups)), [title(g) for g in groups])
    axes[0].set_ylim(len(groups) - 0.45, -0.55)
    marks = [
        style.handle(style.GREY, words, marker=mark, ls="none", ms=5)
        for *_, mark, words in METHODS["gamma", "C"]
    ]
    marks += [
        style.handle(style.GREY, "95 %, by runs", lw=2),
        style.handle("#b0b0b0", "per point ('as published')", lw=2),
        style.handle(style.GREY, "flagged: see diagnostics", marker="o", mfc="white", ls="none", ms=5),
    ]
    fig.legend(handles=marks, loc="outside lower center", ncols=6, fontsize=7.5)
    widths = [w for g in groups if (w := _ratio(a, g)) is not None]
    caption = "Exponents with 95 % intervals that resample whole runs; in grey the per-point interval"
    if widths:
        span = dict.fromkeys((f"{min(widths):.0%}", f"{max(widths):.0%}"))
        caption += f", whose width for γ of the sum law is {' to '.join(span)} of it"
    flagged = [
        title(g) for g in groups if any(f["status"] == "flagged" for f in a.fits.values() if f["group"] == g)
    ]
    caption += ". " + (f"Flagged (hollow): {', '.join(flagged)}." if flagged else "No fit is flagged.")
    alt = "Dots with horizontal intervals for gamma, alpha and beta of every architecture."
    return Drawing(fig, "Exponents by architecture", caption, alt)


def _ratio(a: Analysis, group: str) -> float | None:
    """Width of the per-point interval over that of the per-run one."""
    fit = a.fit("closed_form", group, "C")
    p = fit["params"]["gamma"] if fit else None
    if not p or any(p[k] is None for k in ("lo", "hi", "naive_lo", "naive_hi")) or p["hi"] <= p["lo"]:
        return None
    return (p["naive_hi"] - p["naive_lo"]) / (p["hi"] - p["lo"])


def _panel(ax: Axes, a: Analysis, groups: list[str], name: str, methods) -> None:
    found = [
        (y + (k - (len(methods) - 1) / 2) * 0.26, g, mark, fit)
        for y, g in enumerate(groups)
        for k, (law, x, variant, mark, _) in enumerate(methods)
        if (fit := a.fit(law, g, x, variant)) is not None
    ]
    ax.set_xlabel(in_words(name, []))
    if not found:
        style.note(ax, f"{in_words(name, [])} could not be fitted", 24)
        return
    reach = _reach([fit["params"][name] for *_, fit in found])
    for y, group, mark, fit in found:
        p, colour = fit["params"][name], style.colour(a.arch(group))
        whisker(
            ax, y + 0.08, p["value"], p["naive_lo"], p["naive_hi"], "#b0b0b0", reach=reach, mark="|", lw=2.2
        )
        whisker(
            ax,
            y,
            p["value"],
            p["lo"],
            p["hi"],
            colour,
            reach=reach,
            mark=mark,
            hollow=fit["status"] == "flagged",
        )
    ax.set_xlim(*reach)
    ax.grid(axis="y", visible=False)


def _reach(params: list[dict]) -> tuple[float, float]:
    """Limits that show every estimate and every interval that is not out of all proportion."""
    points = [p["value"] for p in params]
    for p in params:
        for low, high in ((p["lo"], p["hi"]), (p["naive_lo"], p["naive_hi"])):
            if low is not None and high is not None and high - low < max(4 * abs(p["value"]), 0.2):
                points += [low, high]
    low, high = float(np.min(points)), float(np.max(points))
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    return low - pad, high + pad


def comparisons(a: Analysis) -> Drawing | None:
    """Forest plot of the differences between architectures, a panel an exponent; None without any."""
    rows = differences(a, a.plain)
    kinds = list(dict.fromkeys(c["what"] for c in rows))
    if not rows:
        return None
    most = max(sum(c["what"] == k for c in rows) for k in kinds)
    columns = min(len(kinds), 3)
    lines = -(-len(kinds) // columns)
    fig, axes = style.figure(columns, lines, width=3.9, height=0.27 * most + 1.0)
    for ax, kind in zip(axes.flat, kinds, strict=False):
        forest(ax, [c for c in rows if c["what"] == kind], a)
        ax.set_title(in_words(kind, []))
    for ax in axes.flat[len(kinds) :]:
        ax.set_axis_off()
    clear = sum(c["p"] is not None and c["p"] < 0.05 for c in rows)
    caption = f"{clear} of {len(rows)} differences of exponents between architectures are told from zero (p < 0.05, "
    caption += (
        "t on per-run standard errors, not corrected for their number); filled: the interval excludes zero."
    )
    return Drawing(
        fig, "Differences between architectures", caption, "Differences with intervals about zero."
    )
