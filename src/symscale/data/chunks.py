"""Staging: what a source yields, cleaned, centred and stored in chunk files that a killed import resumes from.

The rows of a chunk are sorted by a random key that depends only on the seed and the sample's number in its source.
Sorting all chunks by key, one key range at a time, is then the global shuffle in bounded memory, and its result does
not depend on how many processes staged the data.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field

import numpy as np

from symscale.errors import UserError

ROW = np.dtype(
    [
        ("key", "<u8"),  # place in the global shuffle
        ("start", "<i8"),  # first atom in the chunk's flat arrays
        ("natoms", "<i4"),
        ("file", "<i4"),  # number of the task the sample came from
        ("energy", "<f8"),  # eV
        ("molecule", "<i8"),
        ("formula", "<u8"),  # hash
        ("structure", "<u8"),  # hash of elements and positions
        ("max_force", "<f4"),  # eV/Angstrom
        ("net_force", "<f4"),
        ("charge", "<i2"),
        ("spin", "<i2"),
    ]
)
FLAT = {"z": ("|u1", ()), "pos": ("<f4", (3,)), "forces": ("<f4", (3,))}
CLOSE = 0.1  # Angstrom: no two nuclei of a molecule are nearer; labels there mean nothing
MAX_ELEMENT = 118


@dataclass
class Samples:
    """A block of samples from a source, flat, in eV and Angstrom."""

    z: np.ndarray  # (A,) integers
    pos: np.ndarray  # (A, 3)
    forces: np.ndarray  # (A, 3)
    energy: np.ndarray  # (M,)
    counts: np.ndarray  # (M,) atoms of each, at least 1
    row: np.ndarray  # (M,) the sample's number, unique in its source
    molecule: np.ndarray | None = None  # (M,) int64 parent molecule; None: by the order of the elements
    charge: np.ndarray | None = None  # (M,)
    spin: np.ndarray | None = None  # (M,) multiplicity
    dropped: dict = field(default_factory=dict)  # what the source itself left out: reason -> count


def mix(x: np.ndarray) -> np.ndarray:
    """A 64-bit hash (finaliser of splitmix64)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        x = np.asarray(x).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def clean(samples: Samples, seed: int, file: int) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, int]]:
    """Rows sorted by key, flat arrays in that order, and how many samples were dropped for what."""
    from ase.data import atomic_masses

    counts = np.asarray(samples.counts, dtype=np.int64)
    starts = np.cumsum(counts) - counts
    z = np.asarray(samples.z).astype(np.int64)
    pos = np.asarray(samples.pos, dtype=np.float64)
    forces = np.asarray(samples.forces, dtype=np.float64)
    energy = np.asarray(samples.energy, dtype=np.float64)
    bad_z = np.logical_or.reduceat((z < 1) | (z > MAX_ELEMENT), starts)
    bad_value = ~np.logical_and.reduceat(np.isfinite(pos).all(1) & np.isfinite(forces).all(1), starts)
    bad_value |= ~np.isfinite(energy)
    ok = ~(bad_z | bad_value)
    close = ok.copy()
    close[ok] = nearest_pair(pos, counts, starts, np.flatnonzero(ok)) < CLOSE
    dropped = {
        "unknown element": int(bad_z.sum()),
        "not a number": int((bad_value & ~bad_z).sum()),
        "atoms closer than 0.1 Angstrom": int(close.sum()),
    }
    row = np.asarray(samples.row, dtype=np.int64)
    key = mix(mix(np.uint64(seed)) ^ mix(row))
    order = np.flatnonzero(ok & ~close)
    order = order[np.argsort(key[order], kind="stable")]
    atoms = ragged(starts[order], counts[order])
    counts = counts[order]
    starts = np.cumsum(counts) - counts
    z, pos, forces = z[atoms], pos[atoms], forces[atoms]
    rows = np.zeros(len(order), dtype=ROW)
    if len(order):
        mass = atomic_masses[z]
        centre = np.add.reduceat(pos * mass[:, None], starts) / np.add.reduceat(mass, starts)[:, None]
        pos = pos - np.repeat(centre, counts, axis=0)
        place = np.arange(len(z)) - np.repeat(starts, counts)  # atom's number in its molecule
        ordered = mix(mix(z) + mix(place))
        grid = np.rint(pos * 1000).astype(np.int64).astype(np.uint64)  # 1e-3 Angstrom
        rows["formula"] = np.add.reduceat(mix(z), starts)
        rows["structure"] = np.add.reduceat(
            mix(ordered + mix(grid[:, 0]) + mix(grid[:, 1] * 3 + 1) + mix(grid[:, 2] * 7 + 2)), starts
        )
        rows["molecule"] = np.add.reduceat(ordered, starts) >> np.uint64(1)
        rows["max_force"] = np.sqrt(np.maximum.reduceat(np.square(forces).sum(1), starts))
        rows["net_force"] = np.linalg.norm(np.add.reduceat(forces, starts), axis=1)
    rows["key"], rows["start"], rows["natoms"], rows["file"] = key[order], starts, counts, file
    rows["energy"] = energy[order]
    rows["spin"] = 1
    for name in ("molecule", "charge", "spin"):
        values = getattr(samples, name)
        if values is not None:
            rows[name] = np.asarray(values)[order]
    return rows, {"z": z.astype("|u1"), "pos": pos.astype("<f4"), "forces": forces.astype("<f4")}, dropped


def ragged(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Indices of the atoms of molecules at ``starts`` with ``counts`` atoms, one after the other."""
    ends = np.cumsum(counts)
    return np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)


def nearest_pair(pos: np.ndarray, counts: np.ndarray, starts: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Smallest interatomic distance of the molecules ``which``, Angstrom; infinite for one atom."""
    nearest = np.full(len(which), np.inf)
    for size in np.unique(counts[which]) if len(which) else []:
        if size == 1:
            continue
        same = np.flatnonzero(counts[which] == size)
        step = max(1, 2_000_000 // (size * size))
        diagonal = np.arange(size)
        for first in range(0, len(same), step):
            block = same[first : first + step]
            x = pos[starts[which[block], None] + diagonal].astype(np.float32)  # (B, n, 3)
            x = x - x[:, :1]
            d2 = np.zeros((len(block), size, size), dtype=np.float32)
            for axis in range(3):
                d2 += np.square(x[:, :, None, axis] - x[:, None, :, axis])
            d2[:, diagonal, diagonal] = np.inf
            nearest[block] = np.sqrt(d2.min((1, 2)))
    return nearest


@contextlib.contextmanager
def disk_errors(path: str):
    """Turn a full disk, a quota or a missing right into one message that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"{path}: no space left to write it ({error.strerror}); free space or move the data folder, then "
                "run again: what was finished is kept"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"{error.filename or path}: {error.strerror}; correct the permissions") from None
        raise


def write_array(path: str, array: np.ndarray) -> None:
    """A ``.npy`` that appears under its name only when whole."""
    tmp = f"{path}.tmp"
    with disk_errors(path), open(tmp, "wb") as f:
        # not np.save: a full disk makes its tofile raise without saying why
        np.lib.format.write_array_header_1_0(f, np.lib.format.header_data_from_array_1_0(array))
        f.write(memoryview(np.ascontiguousarray(array)).cast("B") if array.size else b"")
    os.replace(tmp, path)


def write_chunk(stem: str, rows: np.ndarray, flat: dict[str, np.ndarray]) -> None:
    """Rows last: their presence means that the flat arrays are there."""
    for name, array in flat.items():
        write_array(f"{stem}.{name}.npy", array)
    write_array(f"{stem}.rows.npy", rows)


def read_rows(stem: str) -> np.ndarray:
    return np.load(f"{stem}.rows.npy")


def write_part(stem: str, part: np.ndarray) -> None:
    """Which part each row of a chunk belongs to (M,), see ``split``; on disk, as a set may have billions of rows."""
    write_array(f"{stem}.part.npy", part.astype("|u1"))


def read_part(stem: str) -> np.ndarray:
    return np.load(f"{stem}.part.npy")


def read_flat(stem: str, name: str) -> np.ndarray:
    """A flat array of a chunk, memory-mapped."""
    return map_array(f"{stem}.{name}.npy")


def map_array(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def composition(rows: np.ndarray, z: np.ndarray) -> np.ndarray:
    """(M, 119) number of atoms of each element; the rows' atoms lie in ``z`` one after the other."""
    sample = np.repeat(np.arange(len(rows)), rows["natoms"])
    return np.bincount(sample * 119 + z, minlength=len(rows) * 119).reshape(len(rows), 119).astype(np.float64)
