"""symscale analyse: points, frontiers, fits and comparisons from learning curves."""

from __future__ import annotations

import sys
from pathlib import Path

from symscale.errors import UserError


def add_arguments(parser) -> None:
    parser.add_argument("curves", nargs="*", help="curve files; default: RESULTS/*/curve.parquet")
    parser.add_argument("--results", default="results", help="folder with one folder a cell (%(default)s)")
    parser.add_argument("--out", help="folder to write (RESULTS/analysis)")
    parser.add_argument("--config", help="YAML config whose 'analysis' section to use")
    parser.add_argument("--options", default="{}", help="that section as JSON, as Snakemake passes it")
    parser.add_argument("--studies", help="studies.json: which cells belong to which study")
    parser.add_argument("--averaging", nargs="*", default=[], help="files of `symscale group-average`")
    parser.add_argument("--kappa", nargs="*", default=[], help="files of `symscale kappa --out`")
    parser.add_argument("--bootstraps", type=int, help="resamples of every interval (1000)")
    parser.add_argument("--burn-in", type=float, help="share of the first steps left out (0.02)")
    parser.add_argument("--delta", type=float, help="Huber threshold on log L of the sum law (0.001)")
    parser.add_argument("--linf", choices=["0", "free"], help="irreducible loss, fixed at 0 or fitted (0)")
    parser.add_argument("--seed", type=int, help="of every random stream (0)")


def run(args) -> None:
    import dataclasses

    from symscale.analysis import compare, records, sweep, tables
    from symscale.analysis import studies as questions
    from symscale.analysis.points import load_points
    from symscale.analysis.sensitivity import sensitivity

    section = read_json("--options", args.options)
    if args.config:
        from symscale import config as configs

        section = configs.load(args.config).get("analysis", {}) | section
    studies = None
    if args.studies:
        try:
            studies = read_json(args.studies, Path(args.studies).read_text())
        except OSError as error:
            raise UserError(f"{args.studies}: not readable ({error.strerror})") from None
    section |= {
        name: value
        for name in ("bootstraps", "burn_in", "delta", "linf", "seed")
        if (value := getattr(args, name)) is not None
    }
    known = {f.name for f in dataclasses.fields(records.Options)}
    if unknown := set(section) - known:
        raise UserError(
            f"analysis: unknown option {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
        )
    options = records.Options(**section)
    if options.bootstraps < 10:
        raise UserError(f"bootstraps {options.bootstraps}: an interval needs at least 10")
    results = Path(args.results)
    curves = [Path(c) for c in args.curves] or sorted(results.glob("*/curve.parquet"))
    if not curves:
        raise UserError(f"{results}/*/curve.parquet: no curves; train cells first or name curve files")
    points = load_points(curves)
    analyses, words = sweep.analyse(points, options)
    comparisons = compare.across(analyses, options, studies)
    measured = {"averaging": tables_of(args.averaging), "kappa": tables_of(args.kappa)}
    answers = questions.answer(studies or {}, points, analyses, comparisons, options, measured)
    out = Path(args.out) if args.out else results / "analysis"
    fitted = points[points["group"].isin([a.group for a in analyses if a.records])]
    tables.write(
        out, points, analyses, words, options, compare.as_dicts(comparisons), sensitivity(fitted, options)
    )
    questions.write(out, answers)
    print(summary(analyses))
    for answer in answers:
        for sentence in (*answer.sentences, *answer.words):
            print(f"{answer.study}: {sentence}")
    for word in words:
        print(f"note: {word}", file=sys.stderr)
    print(out)


def read_json(source: str, text: str) -> dict:
    """A JSON object, or a UserError that names where it came from."""
    import json

    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{source}: must be a JSON object")
    return value


def tables_of(paths: list[str]):
    """Parquet files as one table, empty without any. Raises UserError for a file that is none."""
    import pandas as pd

    tables = []
    for path in paths:
        try:
            tables.append(pd.read_parquet(path))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: not readable as Parquet ({error}); delete it and measure again"
            ) from None
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def summary(analyses) -> str:
    """One line a group and law for the terminal."""
    lines = []
    for a in analyses:
        for r in a.records:
            if r.law in ("sum", "frontier", "closed_form", "kappa") and not r.variant:
                shown = [
                    f"{n} {v[0]:.4g} [{v[1]:.4g}, {v[2]:.4g}]"
                    for n, v in r.params.items()
                    if n not in ("E", "G")
                ]
                lines.append(
                    f"{r.name:28s} {'; '.join(shown) or r.words[0]}{' *' if r.status == 'flagged' else ''}"
                )
    return "\n".join([*lines, "* flagged: see fits.json"])
