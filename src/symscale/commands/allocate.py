"""symscale allocate: compute-optimal N and D for a budget, and where two architectures cross."""

from __future__ import annotations

from symscale.errors import UserError


def add_arguments(parser) -> None:
    parser.add_argument("--budget", type=float, action="append", required=True, metavar="X",
                        help="PFLOP (or device-hours with --x H); may be repeated")  # fmt: skip
    parser.add_argument(
        "--analysis", default="results/analysis", help="folder of `symscale analyse` (%(default)s)"
    )
    parser.add_argument(
        "--x", choices=["C", "H"], default="C", help="unit of the budget (%(default)s: compute)"
    )
    parser.add_argument("--group", action="append", help="groups to show (all with a closed form)")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def run(args) -> None:
    import json

    from symscale.analysis import tables
    from symscale.analysis.allocate import allocate, crossings, groups_of

    if any(not b > 0 for b in args.budget):
        raise UserError("--budget must be above 0")
    results = tables.read(args.analysis)
    groups = groups_of(results, args.x)
    if not groups:
        raise UserError(
            f"{args.analysis}: no sum law with a trade-off was fitted there, so nothing can be allocated"
        )
    for name in args.group or []:
        if name not in groups:
            raise UserError(f"--group {name}: not fitted; there are {', '.join(groups)}")
    chosen = {g: groups[g] for g in args.group or groups}
    rows = [row for budget in args.budget for row in allocate(results, chosen, args.x, budget)]
    meet = crossings(results, chosen, args.x)
    if args.json:
        print(json.dumps(tables.plain({"allocations": rows, "crossings": meet}), indent=1))
        return
    unit = "PFLOP" if args.x == "C" else "device-hours"
    print(f"{'group':16}{unit:>12}  {'N*':>34}  {'D* (atoms)':>34}  {'loss':>30}")
    for row in rows:
        cells = (f"{row[k]:.4g} [{row[k + '_lo']:.4g}, {row[k + '_hi']:.4g}]" for k in ("N", "D", "loss"))
        print(
            f"{row['group']:16}{row['budget']:12.4g}  "
            + "  ".join(f"{c:>{w}}" for c, w in zip(cells, (34, 34, 30), strict=True))
        )
        for word in row["words"]:
            print(f"{'':16}- {word}")
    for m in meet:
        print(m["verdict"].format(unit=unit))
