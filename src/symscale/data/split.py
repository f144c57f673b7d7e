"""Which samples are for validation, and how much of them training has seen in another form."""

from __future__ import annotations

import numpy as np

from symscale.data.chunks import mix, read_part, read_rows, write_part
from symscale.errors import UserError

DROPPED, TRAIN, VAL = 0, 1, 2
DEFAULT_VALIDATION = 0.05
_PARTITION = 8_000_000  # hashes held at once
_DIGIT = 16  # bits


def assign(stems: list[str], given: list[str], entry: dict) -> None:
    """Write the part of every sample of every chunk, TRAIN or VAL.

    ``given`` is the part that the source gave each chunk ("" if none). Otherwise whole groups (molecules, formulas
    or single samples) are held out in the order of a seeded hash until there are enough: the hold-out of a seed does
    not depend on the order of files or on the number of processes.
    """
    if "val" in entry:
        if "val" not in given:  # never hold out training samples in their place
            raise UserError(
                f"{entry['val']}: none of its samples is usable; see what was dropped, or drop 'val'"
            )
        for stem, which in zip(stems, given, strict=True):
            write_part(stem, np.full(len(read_rows(stem)), VAL if which == "val" else TRAIN))
        return
    total = sum(len(read_rows(stem)) for stem in stems)
    validation = entry.get("validation", DEFAULT_VALIDATION)
    target = int(validation) if validation >= 1 else max(1, round(validation * total))
    if target >= total:
        raise UserError(f"validation: {validation} of {total} samples leaves none for training")
    kind = entry.get("split", "molecule" if entry["source"] != "omol25" else "random")
    seed = entry.get("seed", 0)
    last = _nth_hash(stems, kind, seed, target)
    left = 0
    for stem in stems:
        part = np.where(_groups(read_rows(stem), kind, seed) <= last, VAL, TRAIN)
        left += int((part == TRAIN).sum())
        write_part(stem, part)
    if not left:
        raise UserError(
            f"split: {kind}: all samples are of one {kind}, so none would be left for training; use `split: random`"
        )


def _nth_hash(stems: list[str], kind: str, seed: int, n: int) -> np.uint64:
    """The n-th smallest of all samples' group hashes (n from 1), digit by digit: no set is too large for that."""
    found = np.uint64(0)
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        counts = np.zeros(2**_DIGIT, dtype=np.int64)
        for stem in stems:
            digits = _groups(read_rows(stem), kind, seed) >> np.uint64(shift)
            above = digits >> np.uint64(_DIGIT)
            digits = digits[above == found] & np.uint64(2**_DIGIT - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=len(counts))
        ends = np.cumsum(counts)
        digit = int(np.searchsorted(ends, n))
        n -= int(ends[digit] - counts[digit])
        found = np.uint64((int(found) << _DIGIT) + digit)
    return found


def _groups(rows: np.ndarray, kind: str, seed: int) -> np.ndarray:
    column = {"random": "key", "molecule": "molecule", "formula": "formula"}[kind]
    return mix(rows[column].astype(np.uint64) ^ mix(np.uint64(seed) + np.uint64(0x5EED)))


def leakage(stems: list[str]) -> dict[str, int]:
    """How many validation samples share their formula, molecule or very structure with training."""
    held_out = sum(int((read_part(stem) == VAL).sum()) for stem in stems)
    pieces = max(1, -(-held_out // _PARTITION))
    found = {}
    for column in ("formula", "molecule", "structure"):
        found[column] = 0
        for piece in range(pieces):
            kept = [_piece(stem, column, VAL, piece, pieces) for stem in stems]
            val, count = np.unique(np.concatenate(kept), return_counts=True)
            seen = np.zeros(len(val), dtype=bool)
            for stem in stems if len(val) else []:
                train = _piece(stem, column, TRAIN, piece, pieces)
                place = np.searchsorted(val, train).clip(max=len(val) - 1)
                seen[place[val[place] == train]] = True
            found[column] += int(count[seen].sum())
    return found


def duplicates(stems: list[str]) -> int:
    """Samples whose structure occurs before (same atoms in the same order and places to 1e-3 Angstrom)."""
    total = sum(len(read_part(stem)) for stem in stems)
    pieces = max(1, -(-total // _PARTITION))
    repeated = 0
    for piece in range(pieces):
        kept = [_piece(stem, "structure", (TRAIN, VAL), piece, pieces) for stem in stems]
        structures = np.concatenate(kept)
        structures.sort()
        repeated += int((structures[1:] == structures[:-1]).sum())
    return repeated


def _piece(stem: str, column: str, which, piece: int, pieces: int) -> np.ndarray:
    """A column of a chunk's samples of the part(s) ``which``, of those values that fall to ``piece``."""
    values = read_rows(stem)[column][np.isin(read_part(stem), which)].astype(np.uint64)
    return values[mix(values) % np.uint64(pieces) == np.uint64(piece)]
