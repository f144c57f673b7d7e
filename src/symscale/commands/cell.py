"""symscale cell: write a resolved cell.json (or studies.json), as the workflow does."""

from __future__ import annotations

import os
from pathlib import Path

from symscale.errors import UserError


def add_arguments(parser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("name", nargs="?", help="a cell name, resolved with --configfile")
    source.add_argument("--document", help="the text itself, as Snakemake passes it")
    parser.add_argument("--configfile", default="config.yaml", help="config with the defaults (%(default)s)")
    parser.add_argument("--out", help="file to write; standard output without it")


def run(args) -> None:
    text = args.document
    if text is None:
        from symscale import cells
        from symscale import config as configs

        config = configs.load(args.configfile)
        text = cells.cell_document(config, cells.parse_name(config, args.name))
    if args.out is None:
        print(text)
        return
    path = Path(args.out)
    partial = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text + "\n")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
