"""One figure for each kind of question that a study may ask: they draw the answer's table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from symscale.analysis.asking import setting
from symscale.figures import style
from symscale.figures.frontiers import draw_frontier
from symscale.figures.inputs import Analysis, ordered, title
from symscale.figures.studies import study
from symscale.figures.style import Drawing

NAMES = {
    "lr": "learning rate",
    "batch_size": "batch size",
    "vector_channels": "vector channels E",
    "depth": "depth",
}


def label(field: str) -> str:
    return NAMES.get(field, field.replace("_", " "))


def grid(a: Analysis, name: str) -> Drawing:
    """Final loss over two settings, a panel an architecture."""
    table, (first, second) = a.answers[name]["table"], a.studies[name]["over"]
    archs = ordered(table["arch"].unique())
    fig, (axes,) = style.figure(len(archs), width=3.4, height=3.0)
    for ax, arch in zip(axes, archs, strict=True):
        rows = table[table["arch"] == arch]
        losses = rows.pivot(index=second, columns=first, values="loss").sort_index().sort_index(axis=1)
        shown = np.log(losses.to_numpy(float))
        ax.pcolormesh(shown, cmap=style.shades(style.colour(arch)).reversed(), alpha=0.55)
        for row in rows.itertuples():
            x, y = losses.columns.get_loc(getattr(row, first)), losses.index.get_loc(getattr(row, second))
            mark = " *" if row.best else " ≈" if row.tied else ""
            ax.text(x + 0.5, y + 0.5, f"{row.loss:.3g}{mark}", ha="center", va="center", fontsize=7.5,
                    weight="bold" if row.best else "normal")  # fmt: skip
        ax.set_xticks(np.arange(len(losses.columns)) + 0.5, [setting(v) for v in losses.columns])
        ax.set_yticks(np.arange(len(losses.index)) + 0.5, [setting(v) for v in losses.index])
        ax.grid(visible=False)
        ax.set_xlabel(label(first))
        ax.set_ylabel(label(second) if ax is axes[0] else "")
        ax.set_title(title(arch))
    caption = (
        "Final loss by setting: dark is low, a star marks the lowest, ≈ what the noise does not tell from it."
    )
    alt = f"Grids of final loss over {label(first)} and {label(second)} for {_list(archs)}."
    return _drawing(a, name, fig, caption, alt)


def sweep(a: Analysis, name: str) -> Drawing:
    """Final loss along one setting, relative to the lowest, a line an architecture."""
    table, (field,) = a.answers[name]["table"], a.studies[name]["over"]
    numbers = a.answers[name]["numbers"]
    fig, ((ax, relative),) = style.figure(2, width=3.9, height=3.3)
    for arch in ordered(table["arch"].unique()):
        rows = table[table["arch"] == arch].sort_values(field)
        look = {
            "color": style.colour(arch),
            "marker": style.marker(arch),
            "ms": 4,
            "lw": 1.4,
            "label": title(arch),
        }
        ax.plot(rows[field], rows["loss"], gid=f"sweep:{arch}", **look)
        relative.plot(rows[field], 100 * np.expm1(rows["log"] - rows["log"].min()), **look)
        if f"saturated:{arch}" in numbers:
            relative.axvline(numbers[f"saturated:{arch}"][0], color=style.colour(arch), lw=0.8, ls=":")
    for panel in (ax, relative):
        panel.set_xscale(
            "log" if table[field].min() > 0 and table[field].max() > 4 * table[field].min() else "linear"
        )
        values = sorted(table[field].unique())
        panel.set_xticks(values, [f"{v:g}" for v in values])
        panel.minorticks_off()
        panel.set_xlabel(label(field))
    ax.set_yscale("log")
    ax.set_ylabel("final validation loss")
    style.finish_log_y(ax)
    relative.set_ylabel("above the lowest, %")
    style.below(ax)
    caption = "Final loss, and how far above the lowest of its architecture; dotted: from there on noise hides gains."
    return _drawing(a, name, fig, caption, f"Final loss against {label(field)}.")


def fractions(a: Analysis, name: str) -> Drawing:
    """Separate runs against what is read off full ones."""
    table = a.answers[name]["table"]
    fig, ((losses, ratio),) = style.figure(2, width=3.9, height=3.3)
    for arch in ordered(table["arch"].unique()):
        rows = table[table["arch"] == arch].sort_values("r")
        colour, mark = style.colour(arch), style.marker(arch)
        losses.plot(rows["r"], rows["read_off"], color=colour, lw=1.4, label=f"{title(arch)}: read off")
        losses.plot(rows["r"], rows["separate"], mark, mec=colour, mfc="white", ms=5, ls="none")
        ratio.plot(rows["r"], 100 * np.expm1(rows["difference"]), color=colour, marker=mark, ms=4, lw=1.2)
    style.log_axes(losses, "share r of the data", "loss")
    style.finish_log(losses)
    style.below(losses)
    ratio.axhline(0, color=style.GREY, lw=0.9)
    ratio.set_xlabel("share r of the data")
    ratio.set_ylabel("separate runs against read off, %")
    caption = (
        "Lines: loss at r of runs on all of the data; hollow: runs trained on r alone (means over seeds)."
    )
    return _drawing(
        a, name, fig, caption, "Loss against data share, and the difference in per cent about zero."
    )


def replicates(a: Analysis, name: str) -> Drawing:
    """Standard deviation between seeds by size, the pooled one with its interval, the law's residuals."""
    table, numbers = a.answers[name]["table"], a.answers[name]["numbers"]
    fig, ((ax,),) = style.figure(1, width=5.4, height=3.3)
    for group in ordered(table["group"].unique()):
        rows = table[table["group"] == group].sort_values("N")
        colour = style.colour(rows["arch"].iloc[0])
        value, low, high = (100 * v for v in numbers[f"sd:{group}"])
        words = f"{title(group)}: {value:.2g} % [{low:.2g}, {high:.2g}]"
        ax.plot(
            rows["N"], 100 * rows["sd"], style.marker(rows["arch"].iloc[0]), color=colour, ms=5, label=words
        )
        span = [rows["N"].min(), rows["N"].max()]
        ax.plot(span, [value, value], color=colour, lw=1.2)
        ax.fill_between(span, low, high, color=colour, alpha=0.12, lw=0)
        if numbers.get(f"residual:{group}"):
            ax.plot(span, [100 * numbers[f"residual:{group}"][0]] * 2, color=colour, lw=1, ls=":")
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ax.set_xlabel(style.LABELS["N"])
    ax.set_ylabel("between seeds: sd of the loss, %")
    style.below(ax)
    caption = "Scatter of the final loss between seeds; line and band: all sizes, 95 %; dotted: residuals of the law."
    return _drawing(a, name, fig, caption, "Standard deviation between seeds against parameters.")


def epochs(a: Analysis, name: str) -> Drawing:
    """Curves with frontiers, and the loss above that of fresh data along the epochs."""
    table, numbers = a.answers[name]["table"], a.answers[name]["numbers"]
    groups = ordered(table["group"].unique())
    fig, ((ax, part),) = style.figure(2, width=4.2, height=3.8)
    handles = []
    for i, group in enumerate(groups):
        rows = table[table["group"] == group]
        tones = style.shades(style.colour(rows["arch"].iloc[0]))
        colour = tones(0.35 if "aug" in group.split("_") else 0.75)
        dash, mark = style.DASHES[i % len(style.DASHES)], "osD^v"[i % 5]
        for _, run in rows.groupby("run"):
            run = run.sort_values("D")
            ax.plot(run["C"], run["loss"], color=colour, lw=0.5, alpha=0.35)
            part.plot(run["epoch"], 100 * np.expm1(run["excess"]), color=colour, lw=0.5, alpha=0.4)
        fit = draw_frontier(ax, a, group, "C", colour, mark, dash)
        mean = rows.assign(epoch=rows["epoch"].round(6)).groupby("epoch")["excess"].mean()
        part.plot(mean.index, 100 * np.expm1(mean), color=colour, ls=dash, lw=1.8, gid=f"excess:{group}")
        at = numbers[f"break:{group}"][0]
        if at is not None and np.isfinite(at):
            part.axvline(at, color=colour, lw=0.9, ls=":")
        words = f"γ = {style.interval(fit['params']['gamma'])}{style.star(fit)}" if fit else "no fit"
        handles.append(
            style.handle(
                colour, f"{title(group, groups, a.points)}: {words}", marker=mark, ms=4, ls=dash, wrap=44
            )
        )
    style.log_axes(ax, "C", "loss")
    style.finish_log(ax)
    style.below(ax, handles)
    part.axhline(0, color=style.GREY, lw=0.9)
    part.set_xscale("log")
    part.set_xlabel("epochs")
    part.set_ylabel("loss above that of fresh data, %")
    caption = (
        "Left: curves and frontiers. Right: loss against one-epoch runs of the same width at the same D "
    )
    caption += "(thick: mean over widths; dotted: from there on above the noise)."
    return _drawing(a, name, fig, caption, "Loss against compute, and excess over fresh data against epochs.")


def learning(a: Analysis, name: str) -> Drawing:
    """Curves along the data, and the late slope by size."""
    table = a.answers[name]["table"]
    cells = set(a.studies[name]["cells"])
    fig, ((ax, slopes),) = style.figure(2, width=4.0, height=3.4)
    for group in ordered(table["group"].unique()):
        rows = table[table["group"] == group].sort_values("N")
        colour, mark = style.colour(a.arch(group)), style.marker(a.arch(group))
        points = a.rows(group, kept=False)
        tones = style.by_log(points["N"], colour)
        for cell, curve in points[points["cell"].isin(cells)].groupby("cell"):
            ax.plot(
                curve["D"], curve["loss"], color=tones[float(curve["N"].iloc[0])], lw=1, gid=f"curve:{cell}"
            )
        slopes.plot(rows["N"], rows["slope"], color=colour, marker=mark, ms=5, lw=0.8, label=title(group))
    style.log_axes(ax, "D", "loss")
    style.finish_log(ax)
    slopes.set_xscale("log")
    slopes.axhline(0, color=style.GREY, lw=0.9)
    slopes.set_xlabel(style.LABELS["N"])
    slopes.set_ylabel("late slope d log L / d log D")
    style.below(slopes)
    caption = "Left: learning curves (light small, dark large). Right: slope over the last 70 % of each run."
    return _drawing(a, name, fig, caption, "Learning curves, and late slopes against parameters.")


def kappa(a: Analysis, name: str) -> Drawing:
    """Figure 2: FLOPs of a training step against N D with C = 3 kappa N D."""
    table, numbers = a.answers[name]["table"], a.answers[name]["numbers"]
    fig, ((ax, each),) = style.figure(2, width=4.0, height=3.4)
    for group in ordered(table["group"].unique()):
        rows = table[table["group"] == group]
        colour, mark = style.colour(a.arch(group)), style.marker(a.arch(group))
        product = rows["N"] * rows["atoms"]
        words = f"{title(group)}: κ = {style.interval(_param(numbers[f'kappa:{group}']), 2)}"
        ax.plot(product, rows["flops"], mark, ms=3.5, color=colour, ls="none", label=words, alpha=0.8)
        ends = np.array([product.min(), product.max()], float)
        ax.plot(ends, 3 * numbers[f"kappa:{group}"][0] * ends, color=colour, lw=1)
        sizes = rows.groupby("N")["kappa"].mean()
        each.plot(sizes.index, sizes, color=colour, marker=mark, ms=4, lw=1)
    for panel, x, y in ((ax, "N D", "FLOPs of training"), (each, "N", "κ = C / (3 N D)")):
        style.log_axes(panel, x, y)
        style.finish_log(panel)
    style.below(ax)
    caption = (
        "FLOPs of training steps against N D with the line of one κ, and κ by size: one constant where flat."
    )
    return _drawing(a, name, fig, caption, "FLOPs against N times D, and kappa against N, by architecture.")


def group_average(a: Analysis, name: str) -> Drawing:
    """Figure 13: gain by M, and loss by N with and without averaging."""
    table = a.answers[name]["table"]
    groups = ordered(table["group"].unique())
    fig, axes = style.figure(2, len(groups), width=4.0, height=3.4)
    for (gain, sizes), group in zip(axes, groups, strict=True):
        rows = table[table["group"] == group]
        colour = style.colour(a.arch(group))
        tones = style.by_log(rows["N"], colour)
        for n, run in rows[rows["M"] > 0].groupby("N"):
            run = run.sort_values("M")
            gain.plot(run["M"], 100 * np.expm1(-run["gain"]), color=tones[float(n)], marker="o", ms=3.5, lw=1.2,
                      label=f"N = {style.short(n)}")  # fmt: skip
        gain.axhline(0, color=style.GREY, lw=0.9)
        gain.set_xscale("log", base=2)
        gain.set_xlabel("rotations M")
        gain.set_ylabel("change of the loss, %")
        gain.set_title(title(group))
        most = rows["M"].max()
        for m, look in ((0, {"mfc": "white"}), (most, {"mfc": colour})):
            one = rows[rows["M"] == m].sort_values("N")
            words = f"M = {m}" if m else "plain"
            sizes.plot(one["N"], one["loss"], "o-", color=colour, mec=colour, ms=5, lw=1, label=words, **look)
        style.log_axes(sizes, "N", "loss")
        style.finish_log(sizes)
        style.below(gain, columns=2)
        style.below(sizes)
    caption = "Change of the loss by averaging over M random rotations, and loss by size with and without it."
    return _drawing(
        a, name, fig, caption, "Change of loss against the number of rotations; loss against parameters."
    )


DRAWINGS: dict[str, Callable[[Analysis, str], Drawing]] = {
    "exponents": study,
    "grid": grid,
    "sweep": sweep,
    "fractions": fractions,
    "replicates": replicates,
    "epochs": epochs,
    "learning": learning,
    "kappa": kappa,
    "group_average": group_average,
}


def draw(a: Analysis, name: str) -> Drawing | None:
    """The figure of a study; None where its question has no answer to draw."""
    kind = a.studies[name].get("ask", "exponents")
    if kind != "exponents" and (name not in a.answers or not len(a.answers[name]["table"])):
        return None
    return DRAWINGS[kind](a, name)


def _drawing(a: Analysis, name: str, fig, caption: str, alt: str) -> Drawing:
    return Drawing(fig, a.studies[name].get("title") or name, caption, alt, study=name)


def _param(values: list) -> dict:
    return dict(zip(("value", "lo", "hi"), values, strict=True))


def _list(groups: list[str]) -> str:
    return ", ".join(title(g) for g in groups)
