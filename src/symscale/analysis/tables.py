"""What the analysis writes and how it is read back; the schema stands in the package's docstring."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd

from symscale.analysis.records import Options, Record
from symscale.analysis.sweep import GroupAnalysis
from symscale.errors import UserError

FIELDS = ("value", "lo", "hi", "naive_lo", "naive_hi")


def fit_rows(records: list[Record]) -> pd.DataFrame:
    """fits.parquet."""
    rows = []
    for r in records:
        for parameter, values in (r.params or {"": (math.nan,) * 5}).items():
            rows.append(
                {
                    "fit": r.name,
                    "law": r.law,
                    "group": r.group,
                    "arch": r.arch,
                    "x": r.x,
                    "variant": r.variant,
                }
                | {"parameter": parameter}
                | dict(zip(FIELDS, map(float, values), strict=True))
                | {"interval": r.interval, "status": r.status, "n_points": r.n_points}
                | {"n_bootstrap": r.n_bootstrap, "seed": r.seed}
            )
    return pd.DataFrame(rows)


def fit_object(r: Record) -> dict:
    """One object of fits.json."""
    return {
        "name": r.name,
        "law": r.law,
        "group": r.group,
        "arch": r.arch,
        "x": r.x,
        "variant": r.variant,
        "status": r.status,
        "diagnostics": list(r.words),
        "flags": list(r.flags),
        "params": {name: dict(zip(FIELDS, values, strict=True)) for name, values in r.params.items()},
        "interval": r.interval,
        "jackknife": {name: list(v) for name, v in r.jackknife.items()},
        "numbers": r.numbers,
        "cells": list(r.cells),
        "n_points": r.n_points,
        "n_bootstrap": r.n_bootstrap,
        "rejected": r.rejected,
        "seed": r.seed,
    }


def plain(value):
    """JSON values: NaN and infinity become null, numpy scalars numbers."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def write_json(path: Path, value) -> None:
    """Atomically."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(plain(value), indent=1) + "\n")
    os.replace(partial, path)


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Atomically."""
    partial = path.with_name(path.name + ".tmp")
    table.to_parquet(partial, index=False)
    os.replace(partial, path)


def draw_rows(records: list[Record]) -> pd.DataFrame:
    """draws.parquet."""
    frames = []
    for r in records:
        kept = {name: v for name, v in r.draws.items() if not name.startswith("naive_")}
        if kept and r.n_bootstrap:
            size = len(next(iter(kept.values())))
            frames.append(pd.DataFrame({"fit": r.name, "draw": np.arange(size, dtype=np.int32), **kept}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"fit": [], "draw": []})


def write(
    out: Path,
    points: pd.DataFrame,
    analyses: list[GroupAnalysis],
    words: list[str],
    options: Options,
    comparisons: list[dict],
    sensitivity: pd.DataFrame,
) -> None:
    """Write every file of the package's docstring; fits.json last."""
    out.mkdir(parents=True, exist_ok=True)
    records = [r for a in analyses for r in a.records]
    keys = ["run", "step"]  # not by value: smoothing changes values
    kept = pd.MultiIndex.from_frame(pd.concat([a.points for a in analyses])[keys])
    used = pd.MultiIndex.from_frame(pd.concat([a.sum_points for a in analyses])[keys])
    index = pd.MultiIndex.from_frame(points[keys])
    write_parquet(out / "points.parquet", points.assign(kept=index.isin(kept), in_sum_fit=index.isin(used)))
    frontier = [a.frontier for a in analyses if len(a.frontier)]
    write_parquet(
        out / "frontier.parquet", pd.concat(frontier, ignore_index=True) if frontier else pd.DataFrame()
    )
    write_parquet(out / "fits.parquet", fit_rows(records))
    write_parquet(out / "draws.parquet", draw_rows(records))
    write_parquet(out / "sensitivity.parquet", sensitivity)
    write_json(out / "comparisons.json", comparisons)
    document = {
        "fits": [fit_object(r) for r in records],
        "words": words,
        "options": dataclasses.asdict(options),
    }
    write_json(out / "fits.json", document)


def read(folder: str | Path) -> dict:
    """{'points', 'frontier', 'fits', 'draws', 'sensitivity': DataFrames, 'comparisons': list, 'document': dict}.

    Raises UserError where a file is missing.
    """
    folder = Path(folder)
    out = {}
    try:
        for name in ("points", "frontier", "fits", "draws", "sensitivity"):
            out[name] = pd.read_parquet(folder / f"{name}.parquet")
        out["comparisons"] = json.loads((folder / "comparisons.json").read_text())
        out["document"] = json.loads((folder / "fits.json").read_text())
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or folder}: no such file; `symscale analyse` writes it") from None
    return out
