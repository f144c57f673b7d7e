"""The global shuffle: samples of all chunks in the order of their random keys, in bounded memory.

Chunks are sorted by key, so a range of keys is a slice of each chunk. One range after the other is read from all
chunks, sorted and appended to the final arrays: every byte is read once and written once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter

import numpy as np
from tqdm import tqdm

from symscale.data import chunks, pack
from symscale.data.reference import ELEMENTS
from symscale.data.split import DROPPED, TRAIN, VAL
from symscale.errors import UserError

BUCKET_BYTES = 128 * 2**20  # sorted at a time; about three times this in memory
SAMPLE_BYTES, ATOM_BYTES = 24, 25  # of a pack


def write_pack(stems: list[str], parts: list[np.ndarray], folder: str) -> dict:
    """Write the arrays of both splits into ``folder``; their sizes and hashes, and counts, for the manifest.

    ``parts`` says of every row of every chunk whether it is for TRAIN, VAL or DROPPED.
    """
    shutil.rmtree(folder, ignore_errors=True)
    natoms = [chunks.read_rows(stem)["natoms"] for stem in stems]
    molecules, atoms = Counter(), Counter()
    for split, which in zip(pack.SPLITS, (TRAIN, VAL), strict=True):
        molecules[split] = sum(int((part == which).sum()) for part in parts)
        atoms[split] = sum(int(n[part == which].sum()) for n, part in zip(natoms, parts, strict=True))
    size = molecules.total() * SAMPLE_BYTES + atoms.total() * ATOM_BYTES
    free = shutil.disk_usage(os.path.dirname(folder)).free
    if size > free:
        raise UserError(
            f"{folder}: no space left to write it: the pack takes {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "free space or move the data folder, then run again: what was finished is kept"
        )
    buckets = max(1, -(-atoms.total() * ATOM_BYTES // BUCKET_BYTES))
    # First row of each key range in each chunk; the last range is closed, so that the largest key is in it
    bounds = np.array([b * 2**64 // buckets for b in range(buckets)], dtype=np.uint64)
    cuts = [
        [*np.searchsorted(chunks.read_rows(stem)["key"], bounds), len(n)]
        for stem, n in zip(stems, natoms, strict=True)
    ]
    writers = _open_writers(folder, molecules, atoms)
    end = dict.fromkeys(pack.SPLITS, 0)
    elements = {split: np.zeros(ELEMENTS, dtype=np.int64) for split in pack.SPLITS}
    charges, spins = Counter(), Counter()
    for bucket in tqdm(range(buckets), desc="shuffle", unit="bucket", disable=buckets < 3, mininterval=1):
        rows, part, flat = _bucket(stems, parts, [(cut[bucket], cut[bucket + 1]) for cut in cuts])
        order = np.argsort(rows["key"], kind="stable")
        for split, which in zip(pack.SPLITS, (TRAIN, VAL), strict=True):
            picked = rows[order[part[order] == which]]
            index = chunks.ragged(picked["start"], picked["natoms"].astype(np.int64))
            for name, array in flat.items():
                writers[split, name].write(array[index])
            ends = end[split] + np.cumsum(picked["natoms"], dtype=np.int64)
            end[split] = int(ends[-1]) if len(ends) else end[split]
            writers[split, "offsets"].write(ends)
            writers[split, "energy"].write(picked["energy"])
            writers[split, "molecule"].write(picked["molecule"])
            elements[split] += np.bincount(flat["z"][index], minlength=ELEMENTS)
        charges.update(rows["charge"][part != DROPPED].tolist())
        spins.update(rows["spin"][part != DROPPED].tolist())
    return {
        "files": {f"{split}/{name}.npy": writer.close() for (split, name), writer in writers.items()},
        "counts": {
            split: {
                "molecules": molecules[split],
                "atoms": atoms[split],
                "elements": {str(z): int(elements[split][z]) for z in np.flatnonzero(elements[split])},
            }
            for split in pack.SPLITS
        },
        "charge": {str(k): v for k, v in sorted(charges.items())},
        "spin": {str(k): v for k, v in sorted(spins.items())},
    }


def _bucket(stems, parts, slices) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Rows, parts and flat arrays of the given rows of each chunk; ``start`` then counts in these flat arrays."""
    rows, part, atoms = [np.zeros(0, chunks.ROW)], [np.zeros(0, np.uint8)], 0
    flat = {name: [np.zeros((0, *shape), dtype)] for name, (dtype, shape) in chunks.FLAT.items()}
    for stem, chunk_part, (low, high) in zip(stems, parts, slices, strict=True):
        if low == high:
            continue
        picked = np.array(chunks.map_array(f"{stem}.rows.npy")[low:high])
        start, stop = int(picked["start"][0]), int(picked["start"][-1] + picked["natoms"][-1])
        picked["start"] += atoms - start
        atoms += stop - start
        rows.append(picked)
        part.append(chunk_part[low:high])
        for name in chunks.FLAT:
            flat[name].append(np.array(chunks.read_flat(stem, name)[start:stop]))
    joined = {name: np.concatenate(arrays) for name, arrays in flat.items()}
    return np.concatenate(rows), np.concatenate(part), joined


def _open_writers(folder: str, molecules: Counter, atoms: Counter) -> dict:
    writers = {}
    for split in pack.SPLITS:
        with chunks.disk_errors(folder):
            os.makedirs(os.path.join(folder, split))
        for name in pack.ARRAYS:
            rows = atoms[split] if name in chunks.FLAT else molecules[split] + (name == "offsets")
            writers[split, name] = _Writer(os.path.join(folder, split, f"{name}.npy"), name, rows)
        writers[split, "offsets"].write(np.zeros(1))
    return writers


class _Writer:
    """One ``.npy`` written in pieces, hashed on the way."""

    def __init__(self, path: str, name: str, rows: int):
        dtype, trailing = pack.ARRAYS[name]
        self.path, self.dtype, self.shape = path, np.dtype(dtype), (rows, *trailing)
        header = {"descr": dtype, "fortran_order": False, "shape": self.shape}
        with chunks.disk_errors(path):
            self.file = open(path, "w+b")
            np.lib.format.write_array_header_1_0(self.file, header)
            self.file.seek(0)
        self.hash = hashlib.sha256(self.file.read())

    def write(self, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array, dtype=self.dtype).tobytes()
        with chunks.disk_errors(self.path):
            self.file.write(data)
        self.hash.update(data)

    def close(self) -> dict:
        with chunks.disk_errors(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
        return {
            "bytes": os.path.getsize(self.path),
            "shape": list(self.shape),
            "sha256": self.hash.hexdigest(),
        }
