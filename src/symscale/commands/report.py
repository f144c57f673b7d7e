"""symscale report: write report.html."""

from __future__ import annotations


def add_arguments(parser) -> None:
    parser.add_argument(
        "--results", default="results", help="folder with cells, analysis and figures (%(default)s)"
    )
    parser.add_argument("--out", help="file to write (RESULTS/report.html)")


def run(args) -> None:
    from symscale.report import build

    out = args.out or f"{args.results.rstrip('/')}/report.html"
    build(args.results, out)
    print(out)
