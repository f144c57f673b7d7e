"""`symscale data-info`: what a pack holds."""

from __future__ import annotations

import argparse

from symscale.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pack", metavar="FOLDER", help="a finished pack")
    parser.add_argument("--svg", metavar="FILE", help="also draw the distributions")
    parser.add_argument(
        "--verify", action="store_true", help="read every byte and compare with the content hash"
    )


def run(args: argparse.Namespace) -> None:
    from symscale.data.info import describe, draw
    from symscale.data.pack import open_pack, verify

    pack = open_pack(args.pack)
    print(describe(pack))
    if args.svg:
        draw(pack, args.svg)
        print(f"drawn: {args.svg}")
    if args.verify:
        if wrong := verify(pack):
            raise UserError(
                f"{args.pack}: changed since packed: {', '.join(wrong)}; delete the folder and pack again"
            )
        print("verified: every file is as it was packed")
