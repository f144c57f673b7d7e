"""How figures look: palette, axes, numbers, notes in words, SVG files that are equal for equal input."""

from __future__ import annotations

import math
import os
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullFormatter, NullLocator

# distinct for colour-blind readers and dark enough on white; markers say the same once more
COLOURS = {
    "mpnn": "#0a6cae",
    "egnn": "#c77700",
    "gemnet": "#02835f",
    "esen": "#a3267a",
    "transformer": "#5b5b5b",
}
MARKERS = {"mpnn": "o", "egnn": "s", "gemnet": "^", "esen": "D", "transformer": "v"}
SPARE = ["#7a5c00", "#3f51b5", "#b23b3b", "#00707c", "#6d4c41"]  # architectures of one's own, by name
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1))]
GREY = "#555555"
LABELS = {
    "C": "training compute C (PFLOP)",
    "H": "training time H (device-hours)",
    "N": "parameters N",
    "D": "training atoms seen D",
    "loss": "validation loss L (normalised)",
    "energy_loss": "energy loss (normalised)",
    "force_loss": "force loss (normalised)",
}


@dataclass(frozen=True)
class Drawing:
    """A figure with the sentence under it and the text that stands for it where it cannot be seen."""

    figure: Figure
    title: str
    caption: str
    alt: str
    study: str = ""


def theme() -> dict:
    """rcParams of every figure; one font, so that layout does not depend on the machine."""
    return {
        **sns.axes_style("ticks", {"axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.6}),
        **sns.plotting_context("paper", font_scale=1.05),
        "font.family": ["DejaVu Sans", "sans-serif"],
        "font.sans-serif": ["DejaVu Sans"],
        "svg.fonttype": "none",  # text stays text: searchable, read aloud, small
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titleweight": "bold",
        "legend.frameon": False,
        "axes.axisbelow": True,
    }


def figure(columns: int, rows: int = 1, width: float = 3.1, height: float = 2.9, **options):
    """Figure and axes (rows, columns), without pyplot's global state."""
    fig = Figure(figsize=(max(width * columns, 4.6), height * rows + 0.2), layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False, **options)


def colour(arch: str) -> str:
    if arch in COLOURS:
        return COLOURS[arch]
    return SPARE[sum(map(ord, arch)) % len(SPARE)]


def marker(arch: str) -> str:
    return MARKERS.get(arch, "P")


def shades(base: str) -> LinearSegmentedColormap:
    """Light (small) to dark (large) of one hue; the lightest still shows on white."""
    rgb = np.array(mpl.colors.to_rgb(base))
    return LinearSegmentedColormap.from_list(base, [0.42 * rgb + 0.58, rgb, 0.4 * rgb])


def by_log(values, base: str) -> dict[float, tuple]:
    """Colour of every distinct positive value, by its logarithm."""
    values = np.unique(np.asarray(values, float))
    logs = np.log(values)
    span = np.ptp(logs)
    cmap = shades(base)
    return {
        v: cmap(0.5 if span == 0 else (log - logs[0]) / span) for v, log in zip(values, logs, strict=True)
    }


def log_axes(ax: Axes, x: str | None, y: str | None) -> None:
    """Log-log with labels; a loss axis that spans little gets 2s and 5s and plain numbers."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(LABELS.get(x, x) if x else "")
    ax.set_ylabel(LABELS.get(y, y) if y else "")


def finish_log(ax: Axes, plain_y: bool = True) -> None:
    """Ticks that suit what was drawn; call when the limits stand."""
    low, high = ax.get_ylim()
    if plain_y and low > 0 and high / low < 1e4:
        span = high / low
        subs = (
            (1, 1.5, 2, 3, 4, 5, 6, 8)
            if span < 3
            else (1, 2, 3, 5)
            if span < 12
            else (1, 2, 5)
            if span < 40
            else (1,)
        )
        ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    low, high = ax.get_xlim()
    if low > 0 and high / low < 100:
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 20 else (1, 3), numticks=20))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
    if low > 0 and high / low > 1e3:  # eight more ticks a decade are half of the time that a figure takes
        ax.xaxis.set_minor_locator(NullLocator())
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(NullFormatter())
        if isinstance(axis.get_major_formatter(), LogFormatterSciNotation):
            axis.set_major_formatter(FuncFormatter(lambda v, _: power(v)))


def finish_log_y(ax: Axes) -> None:
    """Plain numbers on a log axis that spans little."""
    low, high = ax.get_ylim()
    subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if high / low < 3 else (1, 2, 3, 5) if high / low < 12 else (1, 2, 5)
    ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def room_below(row) -> None:
    """Room under the data of panels that share a log y axis, for the words in their corner; then ticks.

    Lines that only guide the eye (zorder 4) do not count as data.
    """
    data = [y for ax in row for line in ax.lines if line.get_zorder() != 4 for y in line.get_ydata()]
    data = np.array([y for y in data if np.isfinite(y) and y > 0])
    if len(data):
        low, high = data.min(), data.max()
        low, high = low * (low / high) ** 0.03, high * (high / low) ** 0.04
        row[0].set_ylim(low * min((low / high) ** 0.17, 0.85), high)
    for ax in row:
        finish_log(ax)


def power(value: float) -> str:
    """1e-3 -> '10⁻³', as text that needs no mathematics to be laid out; '' between powers of ten."""
    exponent = math.log10(value)
    if abs(exponent - round(exponent)) > 1e-6:
        return ""
    return "10" + str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def short(value: float) -> str:
    """222404 -> '222k', 78974296 -> '79.0M'."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits; a power of ten where a value leaves all proportion; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) < 0.5 * 10**-digits:
        value = 0.0
    return (f"{value:.{digits}f}" if abs(value) < 1e4 else f"{value:.2e}").replace("-", "−")


def interval(param: dict | None, digits: int = 3, naive: bool = False) -> str:
    """'0.142 [0.139, 0.145]'; says so where there is no interval."""
    if param is None:
        return "–"
    low, high = (param["naive_lo"], param["naive_hi"]) if naive else (param["lo"], param["hi"])
    value = number(param["value"], digits)
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return f"{value} [no interval]"
    return f"{value} [{number(low, digits)}, {number(high, digits)}]"


def star(fit: dict) -> str:
    """Marks a flagged fit wherever its number is shown."""
    return " *" if fit["status"] == "flagged" else ""


def reservation(fit: dict) -> str:
    """The same in words, for sentences: ' (flagged: 3 runs only: the interval is indicative)'."""
    if fit["status"] != "flagged":
        return ""
    return f" (flagged: {fit['diagnostics'][0].split(';')[0]})"


def note(ax: Axes, text: str, width: int = 34) -> None:
    """Words in the middle of a panel that has nothing to draw (or beside what there is)."""
    box = {"boxstyle": "round,pad=0.4", "fc": "#fff6e0", "ec": "#c9a94d", "lw": 0.8}
    ax.text(0.5, 0.5, textwrap.fill(text, width), transform=ax.transAxes, ha="center", va="center", fontsize=7.5,
            bbox=box, zorder=10)  # fmt: skip


def corner(ax: Axes, text: str, where: str = "lower left") -> None:
    """A few lines in a corner, on white."""
    y, x = where.split()
    ax.text({"left": 0.03, "right": 0.97}[x], {"lower": 0.03, "upper": 0.97}[y], text, transform=ax.transAxes,
            ha=x, va={"lower": "bottom", "upper": "top"}[y], fontsize=7.5, zorder=9,
            bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1.5})  # fmt: skip


def handle(colour_, label: str, wrap: int = 64, **options) -> Line2D:
    """An entry of a hand-made legend."""
    return Line2D([], [], color=colour_, label=textwrap.fill(label, wrap, break_long_words=False), **options)


def below(ax: Axes, handles: list | None = None, columns: int = 1) -> None:
    """Legend under a panel, where it hides no data."""
    options = {"handles": handles} if handles else {}
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=columns, fontsize=7.5, borderaxespad=0,
              handlelength=2.2, **options)  # fmt: skip


def save(drawing: Drawing, path: Path) -> None:
    """Write the SVG atomically: no date, no random ids."""
    partial = path.with_name(path.name + ".tmp")
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": path.stem}):
        drawing.figure.savefig(partial, format="svg", metadata=empty)
    # hundredths of a point are enough, and halve the file; only coordinates match, never text
    text = re.sub(
        r'( (?:d|x|y)=")([^"]*)"',
        lambda m: m[1] + re.sub(r"(\.\d\d)\d+", r"\1", m[2]) + '"',
        partial.read_text(),
    )
    partial.write_text(text)
    os.replace(partial, path)
