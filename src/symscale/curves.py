"""Learning curves on disk: one Parquet file a cell, one row a validation, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from symscale.errors import UserError

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("epoch", pa.float64()),  # passes over the training fraction so far
        ("fraction", pa.float64()),  # of the run, step / total_steps
        ("molecules", pa.int64()),  # seen in training
        ("atoms", pa.int64()),  # D, seen in training
        ("flops", pa.float64()),  # C, spent on training steps
        ("device_hours", pa.float64()),  # H, cumulative over restarts, validation included
        ("lr", pa.float64()),
        ("train_loss", pa.float64()),  # mean since the row before, normalised; symmetry term included
        ("val_loss", pa.float64()),  # L of eq. (1), normalised; task loss only
        ("val_energy_loss", pa.float64()),  # its two terms
        ("val_force_loss", pa.float64()),
        ("val_energy_mae", pa.float64()),  # eV/atom
        ("val_force_mae", pa.float64()),  # eV/Angstrom, mean over components
    ]
)
META_KEY = b"symscale"


def write_curve(path: str | Path, rows: list[dict], meta: dict) -> None:
    """Write rows (dicts with the columns of SCHEMA) and metadata; an interrupted write leaves nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    table = table.replace_schema_metadata({META_KEY: json.dumps(meta, sort_keys=True).encode()})
    partial = path.with_name(path.name + ".tmp")
    try:
        pq.write_table(table, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_curve(path: str | Path) -> tuple[pd.DataFrame, dict]:
    """Rows and metadata of a curve. Raises UserError that names the file where it is not one."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such curve; `snakemake {path}` trains the cell") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not readable as Parquet ({error}); delete it and rerun the cell") from None
    missing = [name for name in SCHEMA.names if name not in table.schema.names]
    meta = (table.schema.metadata or {}).get(META_KEY)
    if missing or meta is None:
        what = f"no '{missing[0]}' column" if missing else "no symscale metadata"
        raise UserError(f"{path}: {what}; delete it and rerun the cell")
    return table.to_pandas(), json.loads(meta)
