"""symscale group-average: validation loss of a trained cell under test-time group averaging (appendix H)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from symscale.errors import UserError


def add_arguments(parser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, type=Path, help="folder of a finished cell, with its model.pt"
    )
    parser.add_argument("--data", required=True, metavar="PACK", help="its pack; the validation part is used")
    parser.add_argument(
        "--samples",
        nargs="+",
        type=int,
        default=[0, 1, 2, 4, 8, 16, 32, 64],
        metavar="M",
        help="numbers of rotations (default: 0 1 2 4 ... 64); 0 is the model as it is",
    )
    parser.add_argument(
        "--molecules", type=int, default=0, help="validation molecules; default: as in training"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the rotations (default %(default)s)")
    parser.add_argument("--device", help="cuda, cpu ...; default: cuda if there is one")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all")
    parser.add_argument("--out", required=True, type=Path, help="Parquet file to write")


def run(args) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from tqdm import tqdm

    from symscale.data.pack import open_pack

    if args.threads:
        torch.set_num_threads(args.threads)
    if min(args.samples) < 0:
        raise UserError("--samples: numbers of rotations are not negative")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    spec, model = load(args.checkpoint)
    pack = open_pack(args.data)
    samples = tqdm(sorted(set(args.samples)), desc=f"{spec.name}, M", file=sys.stderr)
    rows = [averaged(spec, model.to(device), pack, m, args.seed, args.molecules, device) for m in samples]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_name(args.out.name + ".tmp")
    pq.write_table(pa.Table.from_pylist(rows), partial)
    os.replace(partial, args.out)


def load(folder: Path):
    """Spec and model, in evaluation mode, of a finished cell's checkpoint folder."""
    import torch

    from symscale.cells import spec_from_dict
    from symscale.models import build_model

    path = folder / "model.pt"
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; a cell has one when its training is finished. Where the curve is there and the "
            "checkpoints were removed, delete the curve and train the cell again"
        ) from None
    spec = spec_from_dict(saved["spec"])
    model = build_model(spec)
    model.load_state_dict(saved["model"])
    return spec, model.eval()


def averaged(spec, model, pack, samples: int, seed: int, molecules: int, device) -> dict:
    """One row: the cell, N, M and the validation losses (normalised) of the average over M rotations."""
    import numpy as np

    from symscale.data import loader
    from symscale.evaluate import evaluate
    from symscale.flops import count_parameters
    from symscale.symmetry import GroupAverage

    count = min(molecules or spec.validation_molecules or len(pack.val), len(pack.val))
    graph = {"cutoff": spec.cutoff, "max_neighbors": spec.max_neighbors, "symmetric": model.symmetric_edges}

    def batches():
        for first in range(0, count, spec.batch_size):
            indices = np.arange(first, min(first + spec.batch_size, count))
            yield loader.make_batch(pack.val, pack, indices, **graph).to(device)

    losses = evaluate(
        GroupAverage(model, samples, seed) if samples else model,
        batches(),
        pack.sigma,
        lambda_energy=spec.lambda_energy,
        lambda_forces=spec.lambda_forces,
    )
    return {"cell": spec.name, "arch": spec.arch, "N": count_parameters(model), "M": samples, **losses}
