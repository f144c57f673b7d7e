"""symscale coordcheck: do activations and their changes in training keep their size as the width grows?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from symscale import config as configs
from symscale.cells import MODES, defaults
from symscale.errors import UserError


def add_arguments(parser) -> None:
    parser.add_argument("arch", nargs="*", metavar="ARCH", help="architectures; default: all of the config")
    parser.add_argument(
        "--configfile", default="config.yaml", help="config with their settings (%(default)s)"
    )
    parser.add_argument(
        "--mup",
        nargs="+",
        choices=MODES["mup"],
        default=["parameter"],
        help="rules to check: 'parameter' (default), 'width' (the paper's), 'none'",
    )
    parser.add_argument(
        "--widths", nargs="+", type=int, metavar="W", help="default: 1/2, 1, 2, 4 times base_width"
    )
    parser.add_argument(
        "--lr",
        type=float,
        help="eta*; default: the config's. A small one (2e-4) shows the law without the steps that overshoot",
    )
    parser.add_argument("--data", metavar="PACK", help="use this pack's molecules, not generated ones")
    parser.add_argument("--molecules", type=int, default=8, help="in the batch (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="averaged over (default %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.svg", help="figure to draw")


def run(args) -> None:
    import sys

    import pandas as pd
    from tqdm import tqdm

    from symscale.coordcheck import coordinate_check, slopes
    from symscale.data.example import example_batch
    from symscale.data.pack import open_pack
    from symscale.models import model_class

    config = configs.load(args.configfile)
    pack = open_pack(args.data) if args.data else None
    if pack is None:
        print("no pack given: molecules as the built-in source makes them, labels at random", file=sys.stderr)
    cases = [
        (defaults(config, arch), mup) for arch in args.arch or config["architectures"] for mup in args.mup
    ]
    tables = []
    for spec, mup in tqdm(cases, desc="coordinate check", unit="rule"):
        widths = sorted(set(args.widths or [max(2, round(spec.base_width * f)) for f in (0.5, 1, 2, 4)]))
        if len(widths) < 2:
            raise UserError("--widths: a slope needs at least two")
        batch = example_batch(spec, model_class(spec).symmetric_edges, args.molecules, pack)
        spec = dataclasses.replace(spec, lr=args.lr or spec.lr)
        tables.append(coordinate_check(spec, widths, mup, batch, args.seeds))
    table = pd.concat(tables)
    print(text(slopes(table)))
    if args.out:
        draw(table, args.out)


def text(slopes) -> str:
    """One line a quantity: slope at the start, then of the change after every step."""
    steps = sorted(slopes["step"].unique())
    head = f"{'architecture':<13}{'rule':<11}{'quantity':<22}{'start':>7}"
    lines = [head + "".join(f"{f'step {k}':>8}" for k in steps[1:])]
    for (arch, mup, quantity), group in slopes.groupby(["arch", "mup", "quantity"], sort=False):
        start, *changes = group.sort_values("step")["slope"]
        numbers = f"{start:>+7.2f}" + "".join(f"{s:>+8.2f}" for s in changes)
        lines.append(f"{arch:<13}{mup:<11}{quantity:<22}{numbers}")
    return "\n".join(
        [*lines, "slopes of log RMS (start) and log RMS change (steps) against log width; 0 is flat"]
    )


def draw(table, path: Path) -> None:
    """RMS against width, one row an architecture and one column a rule: at the start dashed, changes solid."""
    import matplotlib as mpl

    from symscale.figures import style

    archs, rules = list(dict.fromkeys(table["arch"])), list(dict.fromkeys(table["mup"]))
    with mpl.rc_context(style.theme()):
        fig, axes = style.figure(len(rules), len(archs))
        for (arch, mup), group in table.groupby(["arch", "mup"], sort=False):
            ax = axes[archs.index(arch)][rules.index(mup)]
            for i, (quantity, lines) in enumerate(group.groupby("quantity", sort=False)):
                colour = list(style.COLOURS.values())[i % len(style.COLOURS)]
                for step, line in lines.groupby("step"):
                    label = quantity if step == table["step"].max() else None
                    fade = 0.35 + 0.65 * step / table["step"].max() if step else 1.0
                    ax.plot(
                        line["width"],
                        line["rms"],
                        "-" if step else ":",
                        color=colour,
                        alpha=fade,
                        label=label,
                    )
            ax.set_title(f"{arch}, mup: {mup}")
            style.log_axes(ax, None, "RMS")
            ax.set_xticks(sorted(group["width"].unique()), [str(w) for w in sorted(group["width"].unique())])
            ax.minorticks_off()
            style.below(ax)
        fig.supxlabel("width")
        caption = "RMS of activations at the start (dotted) and of their change after each step (solid)."
        path.parent.mkdir(parents=True, exist_ok=True)
        style.save(style.Drawing(fig, "Coordinate check", caption, caption), path)
