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

BUCKET_BYTES = 128 * 2**20  # sorted at a time; less than twice this is held in memory
WRITE_ROWS = 10_000
SAMPLE_BYTES, ATOM_BYTES = 24, 25  # of a pack


def write_pack(stems: list[str], folder: str) -> dict:
    """Write the arrays of both splits into ``folder``; their sizes and hashes, and counts, for the manifest.

    The parts of a chunk, ``chunks.read_part``, say of every row whether it is for TRAIN, VAL or DROPPED.
    """
    shutil.rmtree(folder, ignore_errors=True)
    molecules, atoms, charges, spins, staged = Counter(), Counter(), Counter(), Counter(), 0
    for stem in stems:
        rows, part = chunks.read_rows(stem), chunks.read_part(stem)
        staged += int(rows["natoms"].sum())
        for split, which in zip(pack.SPLITS, (TRAIN, VAL), strict=True):
            molecules[split] += int((part == which).sum())
            atoms[split] += int(rows["natoms"][part == which].sum())
        charges.update(rows["charge"][part != DROPPED].tolist())
        spins.update(rows["spin"][part != DROPPED].tolist())
    size = molecules.total() * SAMPLE_BYTES + atoms.total() * ATOM_BYTES
    free = shutil.disk_usage(os.path.dirname(folder)).free
    if size > free:
        raise UserError(
            f"{folder}: no space left to write it: the pack takes {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "free space or move the data folder, then run again: what was finished is kept"
        )
    cuts = _cuts(stems, max(1, -(-staged * ATOM_BYTES // BUCKET_BYTES)))  # dropped ones are read too
    writers = _open_writers(folder, molecules, atoms)
    end = dict.fromkeys(pack.SPLITS, 0)
    elements = {split: np.zeros(ELEMENTS, dtype=np.int64) for split in pack.SPLITS}
    buckets = cuts.shape[1] - 1
    for bucket in tqdm(range(buckets), desc="shuffle", unit="bucket", disable=buckets < 3, mininterval=1):
        rows, part, pieces = _bucket_rows(stems, cuts[:, bucket : bucket + 2])
        order = np.argsort(rows["key"], kind="stable")
        picked = {}
        for split, which in zip(pack.SPLITS, (TRAIN, VAL), strict=True):
            picked[split] = rows[order[part[order] == which]]
            ends = end[split] + np.cumsum(picked[split]["natoms"], dtype=np.int64)
            end[split] = int(ends[-1]) if len(ends) else end[split]
            writers[split, "offsets"].write(ends)
            writers[split, "energy"].write(picked[split]["energy"])
            writers[split, "molecule"].write(picked[split]["molecule"])
        del rows, part, order
        for name in chunks.FLAT:  # one after the other: only one is in memory
            array = _bucket_flat(pieces, name)
            for split in pack.SPLITS:
                for first in range(0, len(picked[split]), WRITE_ROWS):
                    some = picked[split][first : first + WRITE_ROWS]
                    values = array[chunks.ragged(some["start"], some["natoms"].astype(np.int64))]
                    writers[split, name].write(values)
                    if name == "z":
                        elements[split] += np.bincount(values, minlength=ELEMENTS)
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


def _cuts(stems: list[str], buckets: int) -> np.ndarray:
    """(chunks, buckets + 1) first row of each key range in each chunk, and the number of rows."""
    bounds = np.array([b * 2**64 // buckets for b in range(buckets)], dtype=np.uint64)
    cuts = np.empty((len(stems), buckets + 1), dtype=np.int32)
    for chunk, stem in enumerate(stems):
        rows = chunks.read_rows(stem)
        cuts[chunk, :-1] = np.searchsorted(rows["key"], bounds)
        cuts[chunk, -1] = len(rows)  # the last range is closed, so that the largest key is in it
    return cuts


def _bucket_rows(stems: list[str], cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray, list]:
    """Rows and parts in ``cuts`` (chunks, 2), and the (stem, first, last) of their atoms, in whose order ``start``
    then counts."""
    rows, part, pieces, atoms = [np.zeros(0, chunks.ROW)], [np.zeros(0, np.uint8)], [], 0
    for stem, (low, high) in zip(stems, cuts.tolist(), strict=True):
        if low == high:
            continue
        picked = np.array(chunks.map_array(f"{stem}.rows.npy")[low:high])
        first, last = int(picked["start"][0]), int(picked["start"][-1] + picked["natoms"][-1])
        picked["start"] += atoms - first
        atoms += last - first
        rows.append(picked)
        part.append(np.array(chunks.map_array(f"{stem}.part.npy")[low:high]))
        pieces.append((stem, first, last))
    return np.concatenate(rows), np.concatenate(part), pieces


def _bucket_flat(pieces: list, name: str) -> np.ndarray:
    dtype, shape = chunks.FLAT[name]
    joined = np.empty((sum(last - first for _, first, last in pieces), *shape), dtype)
    end = 0
    for stem, first, last in pieces:
        joined[end : end + last - first] = chunks.read_flat(stem, name)[first:last]
        end += last - first
    return joined


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
        if not array.size:
            return
        data = memoryview(np.ascontiguousarray(array, dtype=self.dtype)).cast("B")
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
