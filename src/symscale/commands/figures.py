"""symscale figures: draw the figures from the analysis."""

from __future__ import annotations


def add_arguments(parser) -> None:
    parser.add_argument(
        "--analysis", default="results/analysis", help="folder of `symscale analyse` (%(default)s)"
    )
    parser.add_argument("--out", required=True, help="folder to write SVG files and figures.json to")
    parser.add_argument("--studies", help="studies.json, for a figure a study")


def run(args) -> None:
    from symscale.figures import draw

    for entry in draw(args.analysis, args.out, args.studies):
        print(f"{args.out}/{entry['file']}: {entry['title']}")
