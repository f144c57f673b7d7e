"""A small simulated sweep with its real analysis, shared by the tests of figures and report."""

import dataclasses
import json

from symscale.__main__ import main
from symscale.analysis import paper, simulate_cells

CELLS = ("mpnn_w128", "mpnn_w320", "mpnn_w2557", "esen_c4", "esen_c10", "esen_c32")
VARIED = ("mpnn_w128_sym", "mpnn_w320_sym", "mpnn_w2557_sym")


def make_sweep(folder, cells):
    """Write cells, studies.json and analysis/ into `folder`; returns it."""
    known = {spec.name: spec for spec in simulate_cells.paper_cells(list(paper.LADDERS), validations=12)}
    for name in cells:
        base = name.removesuffix("_sym")
        spec = dataclasses.replace(known[base], name=name, symmetry_samples=5 if base != name else 0)
        simulate_cells.write_document(folder / name / "cell.json", spec, "data/none")
        simulate_cells.write_cell(spec, simulate_cells.simulate_cell(spec), folder / name / "curve.parquet")
    studies = {"main": {"title": "Exponents", "cells": [c for c in cells if c not in VARIED]}}
    if set(cells) & set(VARIED):
        studies["symmetry"] = {"title": "Symmetry <loss>", "question": "Same slope?", "cells": list(VARIED)}
    (folder / "studies.json").write_text(json.dumps(studies))
    command = ["analyse", "--results", str(folder), "--studies", str(folder / "studies.json")]
    assert main([*command, "--bootstraps", "20"]) == 0
    return folder


_SHARED = {}


def shared_sweep(factory):
    """Two architectures and a variant, three widths each, with figures; made once, treat as read-only."""
    if not _SHARED:
        folder = make_sweep(factory.mktemp("sweep"), CELLS + VARIED)
        command = ["figures", "--analysis", str(folder / "analysis"), "--out", str(folder / "figures")]
        assert main([*command, "--studies", str(folder / "studies.json")]) == 0
        _SHARED["folder"] = folder
    return _SHARED["folder"]
