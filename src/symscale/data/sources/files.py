"""One's own data: files that ASE reads (extxyz, ASE db, traj ...), ``.npz``, or a folder of them.

An ``.npz`` holds, under keys that the dataset entry may rename:

``pos`` (M, n, 3) and ``z`` (n,)
    M geometries of one molecule; or ``pos`` (A, 3), ``z`` (A,) and ``natoms`` (M,) for molecules of any size, one
    after the other.
``energy`` (M,) or (M, 1), ``forces`` like ``pos``
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from symscale.data.chunks import Samples, disk_errors
from symscale.data.sources import Task
from symscale.errors import UserError

UNIT = "kB"  # of a task's size: the number of molecules is not known before they are read
BLOCK = 5_000  # samples held at once
BLOCK_ATOMS = 500_000
SUFFIXES = (
    ".npz",
    ".xyz",
    ".extxyz",
    ".traj",
    ".db",
    ".aselmdb",
    ".cfg",
    ".json",
    ".nc",
    ".gz",
    ".xz",
    ".bz2",
)

ENERGY = {  # in eV, CODATA 2018
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": 27.211386245988,
    "Rydberg": 13.605693122994,
    "kcal/mol": 0.0433641153087705,
    "kJ/mol": 0.0103642696562286,
}
LENGTH = {"Angstrom": 1.0, "Bohr": 0.529177210903, "nm": 10.0}  # in Angstrom


def tasks(entry: dict) -> list[Task]:
    """One task a file."""
    found = []
    for part, key in (("train", "path"), ("val", "val")):
        if key not in entry:
            continue
        path = Path(entry[key]).expanduser()
        files = [path]
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in SUFFIXES)
            if not files:
                raise UserError(f"{path}: no files of a known kind in this folder ({', '.join(SUFFIXES)})")
        for number, file in enumerate(files):
            with disk_errors(str(file)), open(file, "rb"):
                size = max(1, file.stat().st_size // 1000)
            first_row = ((part == "val") << 60) + (number << 40)
            found.append(Task(str(file), size, part if "val" in entry else "", (str(file), first_row)))
    return found


def read(entry: dict, task: Task) -> Iterator[Samples]:
    """The samples of one file in blocks, in eV and Angstrom."""
    path, first_row = task.payload
    frames = _npz_blocks if path.endswith(".npz") else _ase_blocks
    energy_unit, length_unit, force_unit = unit_factors(entry)
    sign = -1.0 if entry.get("gradients") else 1.0
    number = 0
    for samples in frames(path, entry):
        if not (samples.counts > 0).all():
            raise UserError(f"{path}: sample {number + int(np.argmin(samples.counts))} has no atoms")
        samples.row = first_row + number + np.arange(len(samples.counts))
        samples.energy = np.asarray(samples.energy, dtype=np.float64) * energy_unit
        samples.pos = np.asarray(samples.pos, dtype=np.float64) * length_unit
        samples.forces = np.asarray(samples.forces, dtype=np.float64) * (sign * force_unit)
        number += len(samples.counts)
        yield samples
    if number == 0:
        raise UserError(f"{path}: holds no molecules")


def unit_factors(entry: dict) -> tuple[float, float, float]:
    """What energies, lengths and forces of the file are multiplied by to be in eV, Angstrom and eV/Angstrom."""
    units = entry.get("units", {})
    energy = ENERGY[units.get("energy", "eV")]
    length = LENGTH[units.get("length", "Angstrom")]
    if "forces" not in units:
        return energy, length, energy / length
    numerator, _, denominator = units["forces"].rpartition("/")
    return energy, length, ENERGY[numerator] / LENGTH[denominator]


def _ase_blocks(path: str, entry: dict) -> Iterator[Samples]:
    block, atoms_in_block = [], 0
    for number, atoms in enumerate(_frames(path)):
        block.append(_sample(path, number, atoms, entry))
        atoms_in_block += len(atoms)
        if len(block) == BLOCK or atoms_in_block > BLOCK_ATOMS:
            yield _stack(block)
            block, atoms_in_block = [], 0
    if block:
        yield _stack(block)


def _frames(path: str):
    from ase.io import iread

    number = 0
    try:
        for atoms in iread(path, index=":", do_not_split_by_at_sign=True):
            yield atoms
            number += 1
    except UserError:
        raise
    except Exception as error:  # every format of ASE has its own way of failing
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        if os.path.getsize(path) == 0:
            raise UserError(f"{path}: is empty") from None
        raise UserError(f"{path}: ASE cannot read it beyond sample {number} ({said}); is it whole?") from None


def _sample(path: str, number: int, atoms, entry: dict) -> tuple:
    if atoms.pbc.any():
        raise UserError(
            f"{path}: sample {number} is periodic; only molecules are supported (set pbc to F F F)"
        )
    results = atoms.calc.results if atoms.calc is not None else {}
    values = []
    for what, stores in (("energy", (atoms.info, results)), ("forces", (atoms.arrays, results))):
        key = entry.get(what, what)
        value = next((store[key] for store in stores if key in store), None)
        if value is None:
            known = sorted({*stores[0], *results} - {"numbers", "positions"})
            raise UserError(
                f"{path}: sample {number} has no {what} under {key!r}; it has {', '.join(known) or 'no labels'}: "
                f"set `{what}:` in the dataset entry"
            )
        values.append(np.asarray(value, dtype=np.float64))
    energy, forces = values
    if energy.size != 1 or forces.shape != (len(atoms), 3):
        raise UserError(
            f"{path}: sample {number} of {len(atoms)} atoms has energies {energy.shape} and forces {forces.shape}"
        )
    info = atoms.info
    molecule = None
    if key := entry.get("molecule"):
        if key not in info:
            raise UserError(
                f"{path}: sample {number} has no {key!r}, which the dataset entry names as the molecule"
            )
        molecule = _name_number(info[key])
    charge, spin = int(info.get("charge", 0)), int(info.get("spin", 1))
    return atoms.numbers, atoms.positions, forces, float(energy.ravel()[0]), molecule, charge, spin


def _name_number(name) -> int:
    """A number for a molecule's name."""
    if isinstance(name, int | np.integer):
        return int(name)
    return int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest(), "little") >> 1


def _stack(block: list[tuple]) -> Samples:
    z, pos, forces, energy, molecule, charge, spin = zip(*block, strict=True)
    return Samples(
        z=np.concatenate(z),
        pos=np.concatenate(pos),
        forces=np.concatenate(forces),
        energy=np.array(energy),
        counts=np.array([len(numbers) for numbers in z], dtype=np.int64),
        row=np.zeros(len(z), dtype=np.int64),
        molecule=None if molecule[0] is None else np.array(molecule, dtype=np.int64),
        charge=np.array(charge),
        spin=np.array(spin),
    )


class _Column:
    """One array of an ``.npz``, read a few rows at a time: the file may be larger than memory."""

    def __init__(self, archive: zipfile.ZipFile, path: str, key: str):
        self.path, self.key = path, key
        self.file = archive.open(f"{key}.npy")
        version = np.lib.format.read_magic(self.file)
        header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        self.shape, fortran, self.dtype = header(self.file)
        if self.dtype.kind not in "fiu":
            raise UserError(
                f"{path}: {key!r} holds {self.dtype}, not numbers; for molecules of different size see docs/data.md"
            )
        self.rest = None
        if fortran and len(self.shape) > 1:  # rows do not follow each other: no way but to read it all
            values = np.frombuffer(self.file.read(), self.dtype)
            self.rest = values.reshape(self.shape, order="F")

    def read(self, rows: int) -> np.ndarray:
        """The next ``rows`` rows."""
        if self.rest is not None:
            taken, self.rest = self.rest[:rows], self.rest[rows:]
            return taken
        shape = (rows, *self.shape[1:])
        want = int(np.prod(shape)) * self.dtype.itemsize
        data = self.file.read(want)
        if len(data) != want:
            raise UserError(f"{self.path}: {self.key!r} is cut off; is the file whole?")
        return np.frombuffer(data, self.dtype).reshape(shape)


def _npz_blocks(path: str, entry: dict) -> Iterator[Samples]:
    if os.path.getsize(path) == 0:
        raise UserError(f"{path}: is empty")
    try:
        with zipfile.ZipFile(path) as archive:
            yield from _npz_samples(archive, path, entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{path}: not a whole .npz ({error})") from None


def _npz_samples(archive: zipfile.ZipFile, path: str, entry: dict) -> Iterator[Samples]:
    keys = {name.removesuffix(".npy") for name in archive.namelist()}
    names = {
        what: entry.get(what, default)
        for what, default in {
            "positions": "pos",
            "numbers": "z",
            "energy": "energy",
            "forces": "forces",
        }.items()
    }
    for what, key in names.items():
        if key not in keys:
            raise UserError(
                f"{path}: no {what} under {key!r}; it has {', '.join(sorted(keys))}: set `{what}:` in the "
                "dataset entry"
            )
    columns = {what: _Column(archive, path, key) for what, key in names.items()}
    extra = {key: _Column(archive, path, key) for key in ("charge", "spin") if key in keys}
    if "molecule" in entry:
        if entry["molecule"] not in keys:
            raise UserError(
                f"{path}: no {entry['molecule']!r}, which the dataset entry names as the molecule"
            )
        extra["molecule"] = _Column(archive, path, entry["molecule"])
    pos, numbers = columns["positions"], columns["numbers"]
    molecules = columns["energy"].shape[0] if columns["energy"].shape else 0
    ragged = len(pos.shape) == 2
    if ragged and "natoms" not in keys:
        raise UserError(f"{path}: positions are (A, 3), so it needs 'natoms' (M,): atoms of each molecule")
    counts = _Column(archive, path, "natoms") if ragged else None
    wanted = {
        "positions": (pos.shape[0], 3)
        if ragged
        else (molecules, numbers.shape[-1] if numbers.shape else 0, 3),
        "forces": pos.shape,
        "numbers": (pos.shape[0],) if ragged else numbers.shape[-1:],
    }
    lengths = {key: column.shape[:1] for key, column in extra.items()} | (
        {"natoms": counts.shape} if ragged else {}
    )
    found = {what: columns[what].shape for what in wanted} | lengths
    if (
        found != wanted | dict.fromkeys(lengths, (molecules,))
        or np.prod(columns["energy"].shape) != molecules
    ):
        raise UserError(
            f"{path}: lengths do not agree: energy {columns['energy'].shape}, "
            + ", ".join(f"{what} {shape}" for what, shape in found.items())
        )
    shared = None if ragged else numbers.read(numbers.shape[0])
    per_block = BLOCK if ragged else max(1, min(BLOCK, BLOCK_ATOMS // max(1, numbers.shape[0])))
    seen = 0
    for first in range(0, molecules, per_block):
        m = min(per_block, molecules - first)
        natoms = counts.read(m).astype(np.int64) if ragged else np.full(m, numbers.shape[0])
        rows = int(natoms.sum()) if ragged else m
        seen += rows
        if ragged and (seen > pos.shape[0] or (first + m == molecules and seen != pos.shape[0])):
            raise UserError(
                f"{path}: 'natoms' does not add up to the {pos.shape[0]} atoms of {names['positions']!r}"
            )
        yield Samples(
            z=numbers.read(rows) if ragged else np.tile(shared, m),
            pos=pos.read(rows).reshape(-1, 3),
            forces=columns["forces"].read(rows).reshape(-1, 3),
            energy=columns["energy"].read(m).ravel(),
            counts=natoms,
            row=np.zeros(m, dtype=np.int64),
            **{key: column.read(m).ravel().astype(np.int64) for key, column in extra.items()},
        )
