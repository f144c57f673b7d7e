"""report.html of a results folder: one file, no network, equal for equal input."""

from __future__ import annotations

import html
import json
import math
import os
import re
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from symscale import __version__
from symscale.analysis.tables import plain
from symscale.cells import checkpoint_folder
from symscale.errors import UserError
from symscale.figures import INDEX
from symscale.figures.frontiers import ranking
from symscale.figures.inputs import Analysis, load, title
from symscale.figures.style import number, short
from symscale.report import gather, tables


def build(results: str | Path, out: str | Path) -> None:
    """Write the report of `results` to `out`, atomically. Raises UserError where there is no analysis."""
    text, out = render(Path(results)), Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, out)


def render(results: Path) -> str:
    """The page as text."""
    studies = gather.read_studies(results)
    analysis = load(results / "analysis", results / "studies.json" if studies else None)
    records = gather.cells(results, studies)
    environment = Environment(
        loader=PackageLoader("symscale", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "short": short,
        "general": general,
        "bounds": bounds,
        "p": p_value,
    }
    template = environment.get_template("report.html.j2")
    return template.render(**context(results, analysis, records, studies)) + "\n"


def context(results: Path, a: Analysis, records: list[dict], studies: dict[str, dict]) -> dict:
    """All that the template shows."""
    lines, warnings = gather.provenance(records)
    packs, more = gather.packs(records)
    plain_cells = set(a.points.loc[a.points["group"].isin(a.plain), "cell"])
    columns, settings = gather.settings(records, plain_cells)
    exponents = {
        "C": tables.frontier_rows(a, "C"),
        "H": tables.frontier_rows(a, "H"),
        "sum": tables.sum_rows(a),
    }
    figures = read_figures(results / "figures")
    flagged = [f for f in a.fits.values() if f["status"] == "flagged"]
    missing = [r for r in records if r["status"] != "done"]
    sensitivity = tables.sensitivity(a)
    data = {"cells": [{k: v for k, v in r.items() if k != "meta"} for r in records], "exponents": exponents}
    return {
        "results": str(results),
        "version": __version__,
        "style": Markup(
            resources.files("symscale.report").joinpath("report.css").read_text(encoding="utf-8")
        ),
        "simulated": gather.is_simulated(records),
        "findings": findings(a),
        "warnings": warnings + more + a.words,
        "flagged": flagged,
        "n_fits": sum(f["status"] != "not fitted" for f in a.fits.values()),
        "figures": [f for f in figures if not f["study"]],
        "study_figures": {f["study"]: f for f in figures if f["study"]},
        "studies": studies,
        "said": {name: a.said(name) for name in studies},
        "exponents": exponents,
        "diagnostics": tables.diagnostics(a),
        "comparisons": tables.comparisons(a),
        "sensitivity_columns": sensitivity[0],
        "sensitivity": sensitivity[1],
        "options": sorted(a.options.items()),
        "provenance": lines,
        "packs": packs,
        "settings_columns": columns,
        "settings": settings,
        "cells": records,
        "missing": missing,
        "totals": {k: sum(r.get(k) or 0 for r in records) for k in ("C", "H")},
        "example": example(results, records),
        "title_of": title,
        "data": plain(data),
    }


def findings(a: Analysis) -> list[str]:
    """The sentences a reader in a hurry should take away, each with its reservations."""
    out = []
    for x in ("C", "H"):
        fitted = {g: fit for g in a.plain if (fit := a.fit("frontier", g, x))}
        if fitted:
            out.append(ranking(fitted, x))
    shares = [(g, s) for g in a.plain if (s := tables.censored(a.frontier, g)) is not None]
    if shares:
        words = ", ".join(f"{title(g)} {s:.0%}" for g, s in shares)
        out.append(
            f"Share of compute budgets whose optimum lies outside the ladder or the data (censored): {words}. "
            "Where it is large, trust the sum law or the uncensored window rather than the full frontier."
        )
    tested = [c for c in a.comparisons if c["kind"] == "exponent" and c["what"] == "gamma (closed_form, C)"]
    tested = [c for c in tested if {c["first"], c["second"]} <= set(a.plain) and c["p"] is not None]
    if tested:
        clear = sum(c["p"] < 0.05 for c in tested)
        out.append(f"{clear} of {len(tested)} pairs of architectures differ in γ by the sum law (p < 0.05).")
    return out or ["No law could be fitted: see the diagnostics."]


def example(results: Path, records: list[dict]) -> dict | None:
    """A cell to show how one is rerun: the first that is not done, else the first."""
    chosen = next((r for r in records if r["status"] != "done"), records[0] if records else None)
    if chosen is None:
        return None
    name = chosen["name"]
    return {
        "name": name,
        "folder": str(results / name),
        "data": chosen["data"] or "data/PACK",
        # only a folder inside the project has checkpoints at a known place, and a guess must not be deleted
        "checkpoint": None if results.is_absolute() else checkpoint_folder({"results": str(results)}, name),
        "bare": str(results) == "results",
    }


def read_figures(folder: Path) -> list[dict]:
    """The index of `symscale figures` with each SVG inlined; empty where there are none. Raises UserError where
    the index names a file that is not there."""
    index = folder / INDEX
    if not index.exists():
        return []
    entries = json.loads(index.read_text(encoding="utf-8"))
    for entry in entries:
        path = folder / entry["file"]
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            raise UserError(f"{path}: no such figure; run `symscale figures` again") from None
        entry["id"] = f"figure-{path.stem}"
        entry["svg"] = inline_svg(text, entry["id"], entry["alt"])
    return entries


def inline_svg(text: str, prefix: str, label: str) -> Markup:
    """The <svg> element of a file, its ids made unique on the page, with a label for those who cannot see it."""
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}.\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}.\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}.\1)", text)
    width = re.search(r'<svg[^>]*?\bwidth="([\d.]+)pt"', text)
    pixels = round(float(width.group(1)) * 4 / 3) if width else 0
    size = f' style="max-width: {pixels}px; min-width: {min(pixels, 640)}px"' if width else ""
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"{size}', 1))


def bounds(low: float | None, high: float | None, digits: int = 3) -> str:
    """'[0.139, 0.145]', or a dash."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return "–"
    return f"[{number(low, digits)}, {number(high, digits)}]"


def general(value: float | None) -> str:
    """Four significant digits, a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    return (f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}").replace("-", "−")


def p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"
