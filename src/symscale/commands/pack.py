"""`symscale pack`: make the packed store of one dataset entry."""

from __future__ import annotations

import argparse
import json
import sys

from symscale.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--entry", required=True, metavar="JSON", help="the dataset entry, or @file that holds it"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the pack; present only when whole")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="worker processes (default: all processors)"
    )


def run(args: argparse.Namespace) -> None:
    from symscale.data.build import build_pack
    from symscale.data.info import summary

    entry = parse_entry(args.entry)
    if args.processes is not None and args.processes < 1:
        raise UserError(f"--processes {args.processes}: at least 1")
    manifest, made = build_pack(entry, args.out, args.processes)
    print(
        f"{args.out}: {'packed' if made else 'already packed, and its source is unchanged'}", file=sys.stderr
    )
    print(summary(manifest), file=sys.stderr)


def parse_entry(text: str) -> dict:
    """A dataset entry from JSON text or ``@file``, checked against the schema."""
    import jsonschema

    from symscale.data.sources.schema import DATASET_SCHEMA

    try:
        if text.startswith("@"):
            with open(text[1:]) as f:
                text = f.read()
        entry = json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"--entry: not readable as JSON ({error})") from None
    errors = jsonschema.Draft202012Validator(DATASET_SCHEMA).iter_errors(entry)
    if error := jsonschema.exceptions.best_match(errors):
        known = (
            f"; it may have {', '.join(error.schema['properties'])}"
            if error.validator == "additionalProperties"
            else ""
        )
        raise UserError(
            f"--entry: {'.'.join(map(str, error.absolute_path)) or 'entry'}: {error.message}{known}"
        )
    return entry
