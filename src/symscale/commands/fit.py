"""symscale fit: fit a scaling law to anyone's table."""

from __future__ import annotations

import json
from pathlib import Path

from symscale.errors import UserError

ROLES = ("N", "D", "loss", "C", "H", "run")


def add_arguments(parser) -> None:
    parser.add_argument("points", help="CSV or Parquet table, a row per measured loss")
    parser.add_argument("--law", choices=["sum", "frontier", "power"], default="sum", help=(
        "sum: L = E + A N^-alpha + B D^-beta; frontier: L = E + F X^-gamma through the lowest losses reached within "
        "each budget X; power: the same through all points (%(default)s)"))  # fmt: skip
    parser.add_argument("--linf", choices=["free", "0"], default="free", help="E fitted, or 0 (%(default)s)")
    parser.add_argument("--x", help="column of X (frontier: C; power: C, else N)")
    parser.add_argument("--column", action="append", default=[], metavar="ROLE=NAME",
                        help=f"name of a column that is not called {', '.join(ROLES)}; may be repeated")  # fmt: skip
    parser.add_argument("--group", metavar="COLUMN", help="one fit for each value of this column")
    parser.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N", help="resamples; 0: none (%(default)s)"
    )
    parser.add_argument("--delta", type=float, default=1e-3, help="Huber threshold on log L (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (%(default)s)")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def run(args) -> None:
    from symscale.analysis.table_fit import fit_table

    columns = dict(pair.split("=", 1) if "=" in pair else (pair, "") for pair in args.column)
    for role, name in columns.items():
        if role not in ROLES or not name:
            raise UserError(f"--column {role}={name}: give ROLE=NAME with a role of {', '.join(ROLES)}")
    if args.bootstrap < 0 or not args.delta > 0:
        raise UserError("--bootstrap must be at least 0 and --delta above 0")
    table = read_table(args.points)
    groups = {None: table}
    if args.group:
        if args.group not in table:
            raise UserError(
                f"{args.points}: no column '{args.group}'; it has {', '.join(map(str, table.columns))}"
            )
        empty = table[args.group].isna()
        if empty.any():
            row = int(empty.to_numpy().argmax()) + 1
            raise UserError(
                f"{args.points}: column '{args.group}': {int(empty.sum())} rows have no group (first: data row {row})"
            )
        groups = {str(g): rows for g, rows in table.groupby(args.group, sort=True)}
    results = {}
    for group, rows in groups.items():
        try:
            results[group] = fit_table(rows, args.law, free=args.linf == "free", x=args.x, columns=columns,
                                       n_bootstrap=args.bootstrap, delta=args.delta, seed=args.seed)  # fmt: skip
        except UserError as error:
            where = f"{args.points}: " + (f"{args.group} = {group}: " if group else "")
            raise UserError(f"{where}{error}") from None
    if args.json:
        print(json.dumps(results[None] if None in results else results, indent=1, allow_nan=False))
        return
    for group, result in results.items():
        print(text(result, f"{args.group} = {group}" if group else args.points))


def read_table(path: str):
    """A CSV or Parquet file. Raises UserError where it is neither."""
    import pandas as pd

    reader = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".pq": pd.read_parquet}.get(
        Path(path).suffix.lower()
    )
    if reader is None:
        raise UserError(f"{path}: a table is a .csv or .parquet file")
    try:
        return reader(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # pandas and pyarrow raise many kinds for a file that is no table
        raise UserError(f"{path}: not readable as a table: {' '.join(str(error).split())}") from None


def text(result: dict, title: str) -> str:
    """Readable form of one result."""
    lines = [title, f"{result['law']} law, {result['n_points']} points, objective {result['objective']:.6g}"]
    lines.append(f"{'':8}{'value':>12}{'95 % interval':>28}")
    for name, p in result["params"].items():
        between = "" if p["lo"] is None else f"[{p['lo']:.5g}, {p['hi']:.5g}]"
        lines.append(f"{name:8}{p['value']:>12.5g}{between:>28}")
    diagnostics = result["diagnostics"]
    lines.append(f"interval: {diagnostics['interval']} ({result['n_bootstrap']} resamples)")
    lines += [f"- {word}" for word in diagnostics["words"]]
    return "\n".join(lines) + "\n"
