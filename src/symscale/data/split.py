"""Which samples are for validation, and how much of them training has seen in another form."""

from __future__ import annotations

import numpy as np

from symscale.data.chunks import mix, read_rows
from symscale.errors import UserError

DROPPED, TRAIN, VAL = 0, 1, 2
DEFAULT_VALIDATION = 0.05
_PARTITION = 4_000_000  # hashes held at once


def assign(stems: list[str], given: list[str], entry: dict) -> list[np.ndarray]:
    """The part of every sample of every chunk: TRAIN or VAL, (M,) uint8 each.

    ``given`` is the part that the source gave each chunk ("" if none). Otherwise whole groups (molecules, formulas
    or single samples) are held out in the order of a seeded hash until there are enough: the hold-out of a seed does
    not depend on the order of files or on the number of processes.
    """
    if "val" in entry:
        if "val" not in given:  # never hold out training samples in their place
            raise UserError(
                f"{entry['val']}: none of its samples is usable; see what was dropped, or drop 'val'"
            )
        return [
            np.full(len(read_rows(s)), VAL if g == "val" else TRAIN, np.uint8)
            for s, g in zip(stems, given, strict=True)
        ]
    total = sum(len(read_rows(stem)) for stem in stems)
    validation = entry.get("validation", DEFAULT_VALIDATION)
    target = int(validation) if validation >= 1 else max(1, round(validation * total))
    if target >= total:
        raise UserError(f"validation: {validation} of {total} samples leaves none for training")
    kind = entry.get("split", "molecule" if entry["source"] != "omol25" else "random")
    seed = entry.get("seed", 0)
    share = min(1.0, 2 * target / total)
    while True:  # only the groups that may be needed are held in memory
        limit = np.uint64(min(share * 2.0**64, 2.0**64 - 2049))
        hashes = [h[h <= limit] for h in (_groups(read_rows(stem), kind, seed) for stem in stems)]
        groups, sizes = np.unique(np.concatenate(hashes), return_counts=True)
        if sizes.sum() >= target or share == 1.0:
            break
        share = min(1.0, 2 * share)
    last = int(np.searchsorted(np.cumsum(sizes), min(target, sizes.sum())))
    threshold = groups[min(last, len(groups) - 1)]
    parts = [
        np.where(_groups(read_rows(stem), kind, seed) <= threshold, VAL, TRAIN).astype(np.uint8)
        for stem in stems
    ]
    if not any((part == TRAIN).any() for part in parts):
        raise UserError(
            f"split: {kind}: all samples are of one {kind}, so none would be left for training; use `split: random`"
        )
    return parts


def _groups(rows: np.ndarray, kind: str, seed: int) -> np.ndarray:
    column = {"random": "key", "molecule": "molecule", "formula": "formula"}[kind]
    return mix(rows[column].astype(np.uint64) ^ mix(np.uint64(seed) + np.uint64(0x5EED)))


def leakage(stems: list[str], parts: list[np.ndarray]) -> dict[str, int]:
    """How many validation samples share their formula, molecule or very structure with training."""
    found = {}
    for column in ("formula", "molecule", "structure"):
        val = np.concatenate([read_rows(s)[column][p == VAL] for s, p in zip(stems, parts, strict=True)])
        unique, inverse = np.unique(val, return_inverse=True)
        seen = np.zeros(len(unique), dtype=bool)
        for stem, part in zip(stems, parts, strict=True):
            train = read_rows(stem)[column][part == TRAIN]
            seen[np.searchsorted(unique, np.intersect1d(unique, train))] = True
        found[column] = int(seen[inverse].sum())
    return found


def duplicates(stems: list[str], parts: list[np.ndarray]) -> int:
    """Samples whose structure occurs before (same atoms in the same order and places to 1e-3 Angstrom)."""
    total = sum(len(part) for part in parts)
    pieces = max(1, -(-total // _PARTITION))
    repeated = 0
    for piece in range(pieces):
        structures = []
        for stem, part in zip(stems, parts, strict=True):
            rows = read_rows(stem)["structure"][part != DROPPED]
            structures.append(rows[rows % np.uint64(pieces) == piece])
        joined = np.concatenate(structures)
        repeated += len(joined) - len(np.unique(joined))
    return repeated
