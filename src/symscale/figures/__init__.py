"""Figures of a sweep from its analysis folder, as SVG: they draw what the analysis holds and never fit.

`draw` writes one file a figure and `figures.json`: [{file, title, caption, alt, study}], in the report's order.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import matplotlib as mpl

from symscale.figures import answers, curves, exponents, frontiers, laws, style
from symscale.figures.inputs import Analysis, load

FIGURES = {
    "fig01-frontiers": frontiers.frontiers,
    "exponents": exponents.exponents,
    "comparisons": exponents.comparisons,
    "fig03-learning-curves": curves.learning_curves,
    "fig05-sum-law": laws.sum_law,
    "fig06-allocation": laws.allocation,
    "fig02-kappa": laws.kappa,
    "fig14-loss-terms": curves.loss_terms,
}
INDEX = "figures.json"


def draw(analysis: str | Path, out: str | Path, studies_json: str | Path | None = None) -> list[dict]:
    """Draw every figure of an analysis folder into `out`; returns the index. Raises UserError for a bad folder."""
    data, out = load(analysis, studies_json), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    index = []
    with mpl.rc_context(style.theme()):
        for name, function in FIGURES.items():
            _keep(index, out, name, function(data))
        for study in drawn_studies(data):
            _keep(index, out, f"study-{re.sub(r'[^A-Za-z0-9]+', '-', study)}", answers.draw(data, study))
    for stale in {p.name for p in out.glob("*.svg")} - {entry["file"] for entry in index}:
        (out / stale).unlink()
    partial = out / f"{INDEX}.tmp"
    partial.write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, out / INDEX)
    return index


def drawn_studies(data: Analysis) -> list[str]:
    """Studies that the analysis holds, but not the exponents of the plain architectures, which other figures show."""
    group = data.points.groupby("cell")["group"].first()
    held = {name: {group[c] for c in entry["cells"] if c in group} for name, entry in data.studies.items()}
    asks = {name: entry.get("ask", "exponents") for name, entry in data.studies.items()}
    return [
        name
        for name, groups in held.items()
        if groups and (asks[name] != "exponents" or groups != set(data.plain))
    ]


def _keep(index: list[dict], out: Path, name: str, drawing: style.Drawing | None) -> None:
    if drawing is None:
        return
    style.save(drawing, out / f"{name}.svg")
    index.append(
        {
            "file": f"{name}.svg",
            "title": drawing.title,
            "caption": drawing.caption,
            "alt": drawing.alt,
            "study": drawing.study,
        }
    )
