"""The command line: one subcommand a module of symscale.commands, imported when it is called."""

from __future__ import annotations

import argparse
import errno
import importlib
import sys

from symscale.errors import UserError

COMMANDS = {
    "cell": "write the resolved spec of a cell (cell.json)",
    "cells": "list the cells of a config, with their studies",
    "params": "parameter count of a cell",
    "pack": "build the packed, shuffled store of a dataset",
    "data-info": "describe a pack: counts, elements, sizes, distributions",
    "train": "train one cell and write its learning curve",
    "group-average": "validation loss of a trained cell averaged over random rotations",
    "kappa": "FLOPs per parameter per atom, over model and data size",
    "coordcheck": "check that activations and updates keep their size as the width grows",
    "analyse": "frontiers and fits from learning curves",
    "figures": "draw the figures from the analysis",
    "report": "write report.html",
    "fit": "fit a scaling law to a table of one's own",
    "allocate": "best N and D for a compute budget",
    "simulate": "learning curves drawn from a known law",
    "status": "state of every cell of a config",
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; a UserError becomes one line on stderr and exit status 1."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="symscale", description=__doc__.split("\n")[0])
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        sub = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if argv and argv[0] == name:
            module = importlib.import_module(f"symscale.commands.{name.replace('-', '_')}")
            module.add_arguments(sub)
    args = parser.parse_args(argv)
    try:
        return module.run(args) or 0
    except UserError as error:
        print(f"symscale {args.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `symscale ... | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        print(f"symscale {args.command}: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
