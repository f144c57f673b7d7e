"""The points table: one row a validation of a run, the only input of every fit.

Columns: cell, group (architecture and whatever a name adds to it, without width and seed), arch, run, seed,
width, N (parameters), D (training atoms seen), C (training compute, PFLOP = 1e15 FLOP), H (device-hours), step,
total_steps, fraction (of the run), loss, energy_loss, force_loss (normalised), data_hash (of the pack it was trained
on), then every spec field that varies.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from symscale.errors import UserError

PFLOP = 1e15
FRACTIONS = tuple(r / 10 for r in range(1, 11))  # of D_max, where the paper reads its losses (section 4.2)
LOSSES = ("loss", "energy_loss", "force_loss")
_SPEC_TAIL = re.compile(r"^(?P<arch>[a-z][a-z0-9]*)_[a-z]\d+(?P<rest>.*)$")


def group_of(cell: str) -> str:
    """'mpnn_w128_sym_s1' -> 'mpnn_sym': the cells that one scaling law is fitted to."""
    match = _SPEC_TAIL.match(cell)
    if not match:
        return cell
    rest = [token for token in match["rest"].split("_") if token and not re.fullmatch(r"(s|every)\d+", token)]
    return "_".join([match["arch"], *rest])


def load_points(curves: list[Path]) -> pd.DataFrame:
    """Points of all curve files, sorted by group, run and step.

    Raises UserError where a file is no curve or no file is given. Rows that no law can be fitted to (loss not
    finite or not positive) stay in; `usable` drops and reports them.
    """
    from symscale.curves import read_curve  # Parquet only where it is read

    if not curves:
        raise UserError("no curves to analyse; train a cell first (`snakemake results/<cell>/curve.parquet`)")
    frames, specs = [], {}
    for path in sorted(Path(c) for c in curves):
        rows, meta = read_curve(path)
        spec = meta["spec"]
        cell = spec["name"]
        specs[cell] = {k: str(v) if isinstance(v, (list, dict)) else v for k, v in spec.items()}
        total = int(meta.get("total_steps", rows["step"].max() if len(rows) else 0))
        frames.append(
            pd.DataFrame(
                {
                    "cell": cell,
                    "group": group_of(cell),
                    "arch": spec["arch"],
                    "run": cell,
                    "seed": int(spec.get("seed", 0)),
                    "width": int(spec["width"]),
                    "N": float(meta["N"]),
                    "D": rows["atoms"].astype(float),
                    "C": rows["flops"] / PFLOP,
                    "H": rows["device_hours"],
                    "step": rows["step"],
                    "total_steps": total,
                    "fraction": rows["step"] / max(total, 1),
                    "loss": rows["val_loss"],
                    "energy_loss": rows["val_energy_loss"],
                    "force_loss": rows["val_force_loss"],
                    "data_hash": str(meta.get("data_hash") or ""),
                }
            )
        )
    points = pd.concat(frames, ignore_index=True)
    table = pd.DataFrame(specs).T
    for field in table.columns.drop(["name", "arch", "seed", "width"], errors="ignore"):
        if table[field].astype(str).nunique() > 1:
            points[field] = points["cell"].map(table[field]).infer_objects()
    return canonical(points)


def canonical(points: pd.DataFrame) -> pd.DataFrame:
    """Rows in the one order that results must not depend on: group, run, D, step, loss."""
    keys = [k for k in ("group", "run", "D", "N", "step", "loss") if k in points]
    return points.sort_values(keys, kind="stable").reset_index(drop=True)


def usable(points: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Points that can be fitted, and in words what was left out. Raises UserError for curves of mixed units."""
    words = []
    bad = ~(np.isfinite(points["loss"]) & (points["loss"] > 0) & (points["D"] > 0) & (points["N"] > 0))
    for run, rows in points[bad].groupby("run"):
        words.append(f"{run}: {len(rows)} rows left out (loss not finite or not positive, or D = 0)")
    points = points[~bad]
    twice = points.duplicated(["run", "N", "D", "loss"])
    if twice.any():
        words.append(f"{int(twice.sum())} duplicate rows left out")
        points = points[~twice]
    words += [f"{group}: {word}" for group, rows in points.groupby("group") for word in doubts(rows)]
    return canonical(points), words


def doubts(rows: pd.DataFrame) -> list[str]:
    """What makes one group's runs hard to pool, in words: other units, other data. Raises UserError for columns of
    different units.

    C / (N D) is one constant of an architecture (eq. 3): orders of magnitude apart are other units. H / (N D) may
    differ some hundredfold where small models leave a device idle, not a thousandfold (hours against seconds).
    """
    words = []
    for x, doubtful, impossible in (("C", 10.0, 1e3), ("H", 1e3, np.inf)):
        if x not in rows:
            continue
        ratio = (rows[x] / (rows["N"] * rows["D"])).groupby(rows["run"]).median()
        ratio = ratio[ratio > 0]
        spread = ratio.max() / ratio.min() if len(ratio) else 1.0
        what = f"{x}/(N D) differs {spread:.3g}-fold between {ratio.idxmin() if len(ratio) else ''}"
        what += f" and {ratio.idxmax() if len(ratio) else ''}"
        if spread > impossible:
            raise UserError(f"{what}: their columns are in different units; convert one of them")
        if spread > doubtful:
            words.append(f"{what}: check the units of {x}, N and D")
    if "data_hash" in rows and rows["data_hash"].nunique() > 1:
        first = rows.groupby("data_hash")["run"].agg(lambda runs: min(runs.astype(str)))
        packs = ", ".join(f"{run}: {str(pack)[:8]}" for pack, run in sorted(first.items()))
        words.append(
            f"runs of {len(first)} packs of data ({packs}, ...): their losses are normalised and validated "
            "differently; train those of the old pack again"
        )
    return words


def after_burn_in(points: pd.DataFrame, burn_in: float = 0.02) -> pd.DataFrame:
    """Without the first `burn_in` of every run's steps (the paper: 1-10 %)."""
    return points[points["fraction"] >= burn_in - 1e-12]


def at_fractions(points: pd.DataFrame, fractions: tuple[float, ...] = FRACTIONS) -> pd.DataFrame:
    """The rows nearest to r D_max of every run, as section 4.2 reads them; all rows of a run without such rows."""
    kept = []
    for _, rows in points.groupby("run", sort=True):
        distance = np.abs(rows["fraction"].to_numpy()[:, None] - np.asarray(fractions))
        nearest = distance.argmin(axis=0)
        near = distance[nearest, np.arange(len(fractions))] <= 0.02 * np.asarray(fractions) + 1e-9
        chosen = np.unique(nearest[near])
        kept.append(rows.iloc[chosen] if len(chosen) >= 4 else rows)
    return pd.concat(kept) if kept else points


def ema(points: pd.DataFrame, factor: float, lag_matched: bool = True) -> pd.DataFrame:
    """Exponential moving average of the log losses along each run (GemNet-OC in the paper, factor 0.9): of the loss
    and of its energy and force terms.

    Smoothing delays the curve, which adds +0.02 to +0.37 to beta; `lag_matched` filters log D, log C and log H
    alike, and a power law then stays on its line. A run's column that is not positive throughout has no logarithm
    and stays as it is (a term that training leaves out is 0).
    """
    if not 0 <= factor < 1:
        raise UserError(f"ema factor {factor}: must be at least 0 and below 1")
    columns = [c for c in (*LOSSES, *(("D", "C", "H") if lag_matched else ())) if c in points]
    out = points.copy()
    for _, index in points.groupby("run", sort=False).groups.items():
        order = points.loc[index].sort_values("step").index
        for column in columns:
            values = points.loc[order, column].to_numpy(float)
            if not (np.isfinite(values) & (values > 0)).all():
                continue
            values = np.log(values)
            for i in range(1, len(values)):
                values[i] = factor * values[i - 1] + (1 - factor) * values[i]
            out.loc[order, column] = np.exp(values)
    return out
