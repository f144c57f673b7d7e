"""symscale train: one cell, from cell.json to curve.parquet."""

from __future__ import annotations

import sys
from pathlib import Path

from symscale.errors import UserError


def add_arguments(parser) -> None:
    parser.add_argument("--cell", required=True, help="cell.json of the cell")
    parser.add_argument("--data", help="pack folder, if not the one that cell.json names")
    parser.add_argument("--checkpoint", required=True, help="folder of this cell's checkpoints")
    parser.add_argument("--output", required=True, help="curve.parquet to write")
    parser.add_argument("--device", help="cuda, cpu ...; default: cuda if there is one")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all")
    parser.add_argument("--checkpoint-minutes", type=float, default=10.0, help="default %(default)s")
    parser.add_argument("--log", help="file that gets the progress lines too")


def run(args) -> int:
    import torch

    from symscale.cells import read_cell
    from symscale.data.pack import open_pack
    from symscale.train import train

    spec, folder = read_cell(args.cell)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with Log(args.log) as say:
        try:
            return train(
                spec,
                open_pack(args.data or folder),
                args.checkpoint,
                args.output,
                device=device,
                checkpoint_minutes=args.checkpoint_minutes,
                say=say,
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{spec.name}: out of memory on {device}: {str(error).splitlines()[0]} "
                "(a smaller batch_size or width fits)"
            ) from None


class Log:
    """Lines to stderr and, where one is named, to the end of a file."""

    def __init__(self, path: str | None):
        self.file = None
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "a")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _traceback) -> None:
        if isinstance(error, UserError):
            self(f"error: {error}")
        if self.file:
            self.file.close()

    def __call__(self, line: str) -> None:
        for stream in (sys.stderr, self.file):
            if stream:
                print(line, file=stream, flush=True)
