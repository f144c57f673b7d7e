"""The packed store: flat memory-mapped arrays that training reads whatever their size.

A pack is a folder with ``manifest.json``, written last (its presence means that the pack is whole), and for each of
``train`` and ``val``:

    pos.npy       (A, 3) float32, Angstrom, each molecule centred on its centre of mass
    forces.npy    (A, 3) float32, eV/Angstrom
    z.npy         (A,)   uint8, atomic numbers
    energy.npy    (M,)   float64, eV, as labelled: references are taken off when a batch is made
    offsets.npy   (M+1,) int64, molecule m owns atoms offsets[m]:offsets[m+1]
    molecule.npy  (M,)   int64, the parent molecule of each geometry

Both splits are shuffled once, when packed: the first r of the data is a prefix, and one epoch a sequential read.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from dataclasses import dataclass, field, replace

import numpy as np

from symscale.errors import UserError

FORMAT = 1
SPLITS = ("train", "val")
ARRAYS = {  # name: dtype, trailing shape
    "pos": ("<f4", (3,)),
    "forces": ("<f4", (3,)),
    "z": ("|u1", ()),
    "energy": ("<f8", ()),
    "offsets": ("<i8", ()),
    "molecule": ("<i8", ()),
}
# Pages of a mapping count as this process's memory until given back, although the kernel could reclaim them: a
# SLURM that polls resident memory would kill the job. Splits above LARGE_BYTES give them back after this much.
RELEASE_BYTES = 64 * 2**20
# For each page of a scattered read the kernel reads 128 KB, unless told not to; of smaller arrays that is welcome
LARGE_BYTES = 256 * 2**20


class MappedArray:
    """A read-only ``.npy`` in virtual memory: ``array`` for reading in order, ``scattered`` for single rows."""

    def __init__(self, path: str, shape: tuple[int, ...], dtype: str):
        count = math.prod(shape)
        self.maps: list[mmap.mmap] = []
        with open(path, "rb") as f:
            version = np.lib.format.read_magic(f)
            reader = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            found_shape, fortran, found_dtype = reader(f)
            start = f.tell()
            if found_shape != shape or found_dtype != np.dtype(dtype) or fortran:
                raise UserError(f"{path}: holds {found_dtype}{found_shape}, the manifest says {dtype}{shape}")

            def view(advice: int) -> np.ndarray:
                if count == 0:
                    return np.zeros(shape, dtype=dtype)
                self.maps.append(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
                self.maps[-1].madvise(advice)
                return np.frombuffer(self.maps[-1], dtype=dtype, count=count, offset=start).reshape(shape)

            self.array = view(mmap.MADV_NORMAL)
            self.scattered = view(mmap.MADV_RANDOM) if self.array.nbytes > LARGE_BYTES else self.array

    def release(self) -> None:
        """Give the pages back; the data stays in the page cache and comes back when touched."""
        for mapped in self.maps:
            mapped.madvise(mmap.MADV_DONTNEED)


@dataclass
class _Touched:
    """Bytes of the mappings touched since they were last released; shared by a split and its prefixes."""

    bytes: int = 0


@dataclass(frozen=True)
class Split:
    """M molecules with A atoms in all, in pack order. Indexing never copies more than what is asked for."""

    maps: dict[str, MappedArray] = field(repr=False)
    molecules: int
    touched: _Touched = field(default_factory=_Touched, repr=False)

    def __len__(self) -> int:
        return self.molecules

    @property
    def offsets(self) -> np.ndarray:
        return self.maps["offsets"].array

    @property
    def atoms(self) -> int:
        return int(self.offsets[self.molecules])

    @property
    def molecule(self) -> np.ndarray:
        return self.maps["molecule"].array[: self.molecules]

    @property
    def energy(self) -> np.ndarray:
        """(M,) eV, as labelled."""
        return self.maps["energy"].array[: self.molecules]

    @property
    def pos(self) -> np.ndarray:
        return self.maps["pos"].array[: self.atoms]

    @property
    def forces(self) -> np.ndarray:
        return self.maps["forces"].array[: self.atoms]

    @property
    def z(self) -> np.ndarray:
        return self.maps["z"].array[: self.atoms]

    def prefix(self, fraction: float) -> Split:
        """The first ``fraction`` of the molecules, at least one."""
        if not 0 < fraction <= 1:
            raise UserError(f"data fraction {fraction}: it must be above 0 and at most 1")
        return replace(self, molecules=max(1, round(fraction * self.molecules)))

    def sizes(self, indices: np.ndarray) -> np.ndarray:
        """(G,) atoms of the molecules at ``indices``."""
        offsets = self.maps["offsets"].array
        found = offsets[indices + 1] - offsets[indices]
        self._release(len(indices) * 16)
        return found

    def gather(self, indices: np.ndarray) -> Molecules:
        """The molecules at ``indices`` (G,), in that order, copied flat."""
        indices = np.asarray(indices, dtype=np.int64)
        in_order = len(indices) > 0 and bool((np.diff(indices) == 1).all())
        arrays = {name: m.array if in_order else m.scattered for name, m in self.maps.items()}
        starts = arrays["offsets"][indices]
        counts = arrays["offsets"][indices + 1] - starts  # (G,)
        ends = np.cumsum(counts)
        if in_order:
            atoms = slice(int(starts[0]), int(starts[0] + ends[-1]))
            touched = int(ends[-1]) * 25
        else:
            atoms = np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)
            touched = len(indices) * len(arrays) * 65536  # with a page, the kernel maps the 64 KB around it
        found = Molecules(
            z=np.array(arrays["z"][atoms]),
            pos=np.array(arrays["pos"][atoms]),
            forces=np.array(arrays["forces"][atoms]),
            energy=np.array(arrays["energy"][indices]),
            counts=counts,
        )
        self._release(touched)
        return found

    def _release(self, touched: int) -> None:
        self.touched.bytes += touched
        if self.touched.bytes > RELEASE_BYTES:
            self.touched.bytes = 0
            if sum(mapped.array.nbytes for mapped in self.maps.values()) > LARGE_BYTES:
                for mapped in self.maps.values():
                    mapped.release()


@dataclass(frozen=True)
class Molecules:
    """G molecules with N atoms, flat, in eV and Angstrom."""

    z: np.ndarray  # (N,) uint8
    pos: np.ndarray  # (N, 3) float32
    forces: np.ndarray  # (N, 3) float32
    energy: np.ndarray  # (G,) float64
    counts: np.ndarray  # (G,) int64


@dataclass(frozen=True)
class Pack:
    """An open pack; e' = (e - sum of references - mu) / sigma and f' = f / sigma, all from the training part."""

    folder: str
    train: Split
    val: Split
    reference: np.ndarray  # (119,) eV per element, indexed by atomic number
    mu: float  # eV
    sigma: float  # eV
    manifest: dict = field(repr=False)
    content_hash: str = ""

    def normalise_energy(self, energy: np.ndarray, z: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """(G,) float64 normalised energies; in float64 as total energies are 1e5 times their differences."""
        if len(counts) == 0:
            return np.zeros(0)
        total = np.add.reduceat(self.reference[z], np.cumsum(counts) - counts)
        return (energy - total - self.mu) / self.sigma


def open_pack(folder: str) -> Pack:
    """Open the pack in ``folder``; nothing but the manifest and the array headers is read.

    Raises
    ------
    UserError
        If there is no whole pack, or a file is missing or of another size than the manifest says.
    """
    manifest = read_manifest(folder)
    splits = {}
    for split in SPLITS:
        maps = {}
        for name, (dtype, _) in ARRAYS.items():
            path = os.path.join(folder, split, f"{name}.npy")
            record = manifest["files"][f"{split}/{name}.npy"]
            size = os.path.getsize(path) if os.path.exists(path) else None
            if size != record["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes instead of {record['bytes']}"
                raise UserError(f"{path}: {found}; delete {folder} and pack again")
            maps[name] = MappedArray(path, tuple(record["shape"]), dtype)
        splits[split] = Split(maps, manifest["counts"][split]["molecules"])
    reference = np.zeros(119)
    for number, value in manifest["references"].items():
        reference[int(number)] = value
    return Pack(
        folder=folder,
        reference=reference,
        mu=manifest["mu"],
        sigma=manifest["sigma"],
        manifest=manifest,
        content_hash=manifest["content_hash"],
        **splits,
    )


def read_manifest(folder: str) -> dict:
    """The manifest of a whole pack."""
    path = os.path.join(folder, "manifest.json")
    try:
        with open(path) as f:
            manifest = json.load(f)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file, so there is no finished pack; make it with `symscale pack`"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete {folder} and pack again") from None
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path}: format {manifest.get('format')}, not {FORMAT}; delete {folder} and pack again"
        )
    return manifest


def content_hash(files: dict, references: dict, mu: float, sigma: float) -> str:
    """Hash of all that training can see: the arrays' hashes and the normalisation."""
    seen = {name: record["sha256"] for name, record in files.items()}
    text = json.dumps([seen, references, mu, sigma], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def verify(pack: Pack) -> list[str]:
    """Files whose bytes are not those that were packed (reads everything)."""
    wrong = []
    for name, record in pack.manifest["files"].items():
        with open(os.path.join(pack.folder, name), "rb") as f:
            if hashlib.file_digest(f, "sha256").hexdigest() != record["sha256"]:
                wrong.append(name)
    return wrong
