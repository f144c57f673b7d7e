"""symscale kappa: FLOPs per parameter per atom, over model size N and data size D (section 4.1, Figure 2)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from symscale import config as configs
from symscale.cells import CellSpec, parse_name, read_cell
from symscale.errors import UserError


def add_arguments(parser) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="cells; without any, every ladder of the config"
    )
    parser.add_argument(
        "--cells", nargs="+", metavar="CELL.json", help="resolved cells, each counted on its own pack"
    )
    parser.add_argument("--out", type=Path, help="Parquet file to write the counts to")
    parser.add_argument("--configfile", default="config.yaml", help="config with the ladders (%(default)s)")
    parser.add_argument(
        "--data", metavar="PACK", help="count on this pack's molecules, not on generated ones"
    )
    parser.add_argument(
        "--molecules",
        nargs="+",
        type=int,
        default=[4, 8, 16],
        metavar="N",
        help="numbers of molecules (default: 4 8 16)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args) -> None:
    from symscale.data.pack import open_pack

    if min(args.molecules) < 1:
        raise UserError("--molecules: at least 1")
    if args.cells:
        if args.names or args.data:
            raise UserError("--cells: each cell.json names its own pack; give no NAME and no --data with it")
        work = [(spec, open_pack(folder)) for spec, folder in map(read_cell, args.cells)]
    else:
        config = configs.load(args.configfile)
        names = args.names or [
            f"{arch}_{entry['axis']}{width}"
            for arch, entry in config["architectures"].items()
            for width in entry["widths"]
        ]
        pack = open_pack(args.data) if args.data else None
        work = [(parse_name(config, name), pack) for name in names]
        if pack is None:
            print(
                "no pack given: counting on molecules generated as the built-in source does", file=sys.stderr
            )
    rows = [count(spec, molecules, pack) for spec, pack in work for molecules in args.molecules]
    summary = {arch: drift(rows, arch) for arch in dict.fromkeys(spec.arch for spec, _ in work)}
    if args.out:
        write(args.out, rows)
    if args.json:
        print(json.dumps({"cells": rows, "architectures": summary}, indent=1))
    else:
        print(table(rows, summary))


def write(path: Path, rows: list[dict]) -> None:
    """Parquet, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    pq.write_table(pa.Table.from_pylist(rows), partial)
    os.replace(partial, path)


def count(spec: CellSpec, molecules: int, pack=None) -> dict:
    """One cell on one number of molecules: N, atoms, kappa of a forward pass and of training (C / 3 N D).

    One real step is run on the CPU and its matrix products are counted as they happen.
    """
    import torch

    from symscale.data.example import example_batch
    from symscale.flops import count_parameters, step_cost
    from symscale.loss import training_loss
    from symscale.models import build_model

    model = build_model(spec)
    data = example_batch(spec, model.symmetric_edges, molecules, pack)
    edges, atoms = data.edge_index.shape[1], data.z.shape[0]

    def loss(batch):
        samples = spec.symmetry_samples
        return training_loss(model, batch, torch.Generator().manual_seed(0), symmetry_samples=samples)

    cost = step_cost(model, [data], loss)
    parameters = count_parameters(model)
    return {
        "cell": spec.name,
        "arch": spec.arch,
        "N": parameters,
        "molecules": data.num_graphs,
        "atoms": atoms,
        "edges_per_atom": edges / atoms,
        "kappa_forward": cost.forward / parameters,
        "kappa": cost.kappa(parameters),
    }


def drift(rows: list[dict], arch: str) -> dict[str, float | None]:
    """kappa of an architecture (geometric mean) and the slopes of log kappa in log N and in log D."""
    mine = [row for row in rows if row["arch"] == arch]
    log = {key: np.log([row[key] for row in mine]) for key in ("kappa", "N", "atoms")}
    columns = {key: log[key] - log[key].mean() for key in ("N", "atoms")}
    slopes: dict[str, float | None] = dict.fromkeys(columns)
    varied = [key for key, column in columns.items() if np.ptp(column) > 0]
    if varied:
        solution = np.linalg.lstsq(np.stack([columns[key] for key in varied], 1), log["kappa"], rcond=None)[0]
        slopes |= dict(zip(varied, solution.tolist(), strict=True))
    return {"kappa": float(np.exp(log["kappa"].mean())), "slope_N": slopes["N"], "slope_D": slopes["atoms"]}


def table(rows: list[dict], summary: dict[str, dict]) -> str:
    """Both tables as text."""
    lines = [
        f"{'cell':<14}{'N':>12}{'molecules':>10}{'atoms':>8}{'edges/atom':>11}{'kappa forward':>14}{'kappa':>8}"
    ]
    for row in rows:
        lines.append(
            f"{row['cell']:<14}{row['N']:>12,}{row['molecules']:>10}{row['atoms']:>8}"
            f"{row['edges_per_atom']:>11.1f}{row['kappa_forward']:>14.2f}{row['kappa']:>8.2f}"
        )
    lines += ["", f"{'architecture':<14}{'kappa':>8}{'d log kappa / d log N':>24}{'/ d log D':>12}"]
    for arch, values in summary.items():
        slopes = ["-" if values[k] is None else f"{values[k]:+.3f}" for k in ("slope_N", "slope_D")]
        lines.append(f"{arch:<14}{values['kappa']:>8.2f}{slopes[0]:>24}{slopes[1]:>12}")
    return "\n".join([*lines, "kappa = C / (3 N D) with the backward pass as counted; D in atoms"])
