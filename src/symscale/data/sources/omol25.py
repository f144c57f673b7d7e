"""OMol25 as distributed: folders of ``.aselmdb`` shards (Levine et al. 2025, arXiv:2505.08762).

A shard is an LMDB file with keys "1".."N" and ``nextid``, perhaps ``deleted_ids``; a value is zlib-compressed JSON
of an ASE row: ``numbers, positions, cell, pbc, energy, forces`` on top, ``charge, spin, data_id`` under ``data``.
Rows are decoded here without ASE's row objects, which takes a third of the time.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import lmdb
import numpy as np
import pyarrow
from pyarrow import csv

from symscale.data.chunks import Samples, disk_errors
from symscale.data.sources import Task
from symscale.errors import UserError

TASK_ROWS = 10_000
BLOCK_ATOMS = 300_000  # held at once: 10,000 neutral molecules, or fewer of a set of larger ones
NEUTRAL_IDS = frozenset({"ani2x", "orbnet_denali", "spice", "geom_orca6", "trans1x", "rgd"})
_VECTORS = re.compile(rb'\{"__ndarray__":\s*\[\[\d+,\s*3\],\s*"float64",\s*\[([^\]]*)\]\]\}')


def tasks(entry: dict) -> list[Task]:
    """Ranges of rows of every shard of ``train`` and ``val``."""
    found = []
    for part in ("train", "val"):
        if part not in entry:
            continue
        folder = Path(entry[part]).expanduser()
        shards = sorted(folder.rglob("*.aselmdb")) if folder.is_dir() else [folder]
        if not shards:
            raise UserError(f"{folder}: no .aselmdb files; give the folder where the archive was unpacked")
        for number, shard in enumerate(shards):
            rows = _next_id(str(shard)) - 1
            first_row = ((part == "val") << 60) + (number << 40)
            for first in range(1, rows + 1, TASK_ROWS):
                last = min(first + TASK_ROWS, rows + 1)
                payload = (str(shard), first, last, first_row)
                name = str(shard)
                found.append(Task(name, last - first, part if "val" in entry else "", payload))
    if not found:
        raise UserError(f"{entry['train']}: the shards hold no rows")
    return found


def read(entry: dict, task: Task) -> Iterator[Samples]:
    """The rows of one range, in blocks."""
    shard, first, last, first_row = task.payload
    neutral = entry.get("neutral", False)
    block = _Block(shard)
    with _transaction(shard) as transaction:
        deleted = set(_decode(shard, "deleted_ids", transaction.get(b"deleted_ids")) or ())
        for number in range(first, last):
            value = transaction.get(str(number).encode())
            if value is None:
                if number in deleted:
                    continue
                raise UserError(f"{shard}: row {number} is missing; the shard is damaged, download it again")
            row, texts = _decode_row(shard, number, value)
            data = row.get("data") or {}
            q, s = int(data.get("charge", 0)), int(data.get("spin", 1))
            if neutral and not (q == 0 and s == 1 and data.get("data_id") in NEUTRAL_IDS):
                block.dropped["not in the neutral subset"] += 1
                continue
            if any(_flat(row.get("pbc", ()))):
                raise UserError(f"{shard}: row {number} is periodic; only molecules are supported")
            for key in ("numbers", "positions", "energy", "forces"):
                if row.get(key) is None:
                    raise UserError(
                        f"{shard}: row {number} has no {key}; this is not a labelled OMol25 split"
                    )
            numbers, xyz, f = (
                _flat(row["numbers"]),
                *(_text(row[key], texts) for key in ("positions", "forces")),
            )
            if not numbers or not xyz.count(b",") == f.count(b",") == 3 * len(numbers) - 1:
                raise UserError(
                    f"{shard}: row {number} has {len(numbers)} atoms, but {xyz.count(b',') + 1} position and "
                    f"{f.count(b',') + 1} force components"
                )
            if len(block.z) + len(numbers) > BLOCK_ATOMS and block.z:
                yield block.samples()
                block = _Block(shard)
            block.z += numbers
            block.pos.append(xyz)
            block.forces.append(f)
            block.molecules.append((len(numbers), row["energy"], first_row + number, q, s))
    yield block.samples()


@dataclass
class _Block:
    """Rows as they are read: numbers, and texts of comma-separated numbers, which are converted all at once."""

    shard: str
    z: list[int] = field(default_factory=list)
    pos: list[bytes] = field(default_factory=list)
    forces: list[bytes] = field(default_factory=list)
    molecules: list[tuple] = field(default_factory=list)  # atoms, energy, row, charge, spin
    dropped: Counter = field(default_factory=Counter)

    def samples(self) -> Samples:
        counts, energy, row, charge, spin = zip(*self.molecules, strict=True) if self.molecules else [()] * 5
        return Samples(
            z=np.array(self.z, dtype=np.int64),
            pos=_numbers(self.shard, self.pos, 3 * len(self.z)).reshape(-1, 3),
            forces=_numbers(self.shard, self.forces, 3 * len(self.z)).reshape(-1, 3),
            energy=np.array(energy, dtype=np.float64),
            counts=np.array(counts, dtype=np.int64),
            row=np.array(row, dtype=np.int64),
            charge=np.array(charge, dtype=np.int64),
            spin=np.array(spin, dtype=np.int64),
            dropped=dict(self.dropped),
        )


def _decode_row(shard: str, number: int, value: bytes) -> tuple[dict, list[bytes]]:
    """A row with its (n, 3) arrays cut out: such a field is then a place in the list of their texts.

    Python's JSON reader takes most of an import's time, and nearly all of that for these numbers.
    """
    texts: list[bytes] = []

    def cut(match: re.Match) -> bytes:
        texts.append(match[1])
        return b"%d" % (len(texts) - 1)

    try:
        return json.loads(_VECTORS.sub(cut, zlib.decompress(value))), texts
    except (zlib.error, ValueError) as error:
        raise UserError(
            f"{shard}: row {number} is not zlib-compressed JSON ({error}); download it again"
        ) from None


def _text(value, texts: list[bytes]) -> bytes:
    return texts[value] if isinstance(value, int) else json.dumps(_flat(value))[1:-1].encode()


def _numbers(shard: str, texts: list[bytes], count: int) -> np.ndarray:
    """All numbers of a block by Arrow's parser: correctly rounded, so bit for bit those of a JSON reader."""
    if not texts:
        return np.zeros(0)
    lines = b",".join(texts).replace(b",", b"\n")
    try:
        values = csv.read_csv(
            pyarrow.BufferReader(lines),
            read_options=csv.ReadOptions(column_names=["x"], use_threads=False),
            convert_options=csv.ConvertOptions(column_types={"x": pyarrow.float64()}, null_values=[]),
        )["x"].to_numpy()
    except pyarrow.ArrowInvalid:
        values = np.zeros(0)
    if len(values) != count:
        raise UserError(f"{shard}: positions or forces that are no numbers; download it again")
    return values


def _flat(value) -> list:
    """The numbers of an array in ASE's JSON: {"__ndarray__": [shape, dtype, flat list]}, or nested lists."""
    if isinstance(value, dict):
        return value["__ndarray__"][2]
    if value and isinstance(value[0], list):
        return [x for row in value for x in row]
    return list(value)


def _decode(shard: str, row: int | str, value: bytes | None):
    if value is None:
        return None
    try:
        return json.loads(zlib.decompress(value))
    except (zlib.error, ValueError) as error:
        raise UserError(
            f"{shard}: row {row} is not zlib-compressed JSON ({error}); download the shard again"
        ) from None


def _next_id(shard: str) -> int:
    with _transaction(shard) as transaction:
        value = _decode(shard, "nextid", transaction.get(b"nextid"))
    if value is None:
        raise UserError(f"{shard}: no 'nextid'; not an ASE LMDB database, or one whose writing was cut off")
    return int(value)


def _lacks_pages(shard: str, page: int, size: int) -> bool:
    """Whether a page that LMDB's tree of rows uses lies beyond the end of the file (layout: mdb.c of LMDB 0.9)."""
    with open(shard, "rb") as f:

        def unpack(form: str, place: int) -> tuple:
            f.seek(place)
            return struct.unpack(form, f.read(struct.calcsize(form)))

        try:
            # two meta pages: root of the tree of rows at byte 128, number of the transaction at 144; the newer counts
            root = max((unpack("<Q", n * page + 144), unpack("<Q", n * page + 128)) for n in (0, 1))[1][0]
            todo = [] if root == 2**64 - 1 else [root]
            while todo:
                place = todo.pop() * page
                if place + page > size:
                    return True
                flags, lower = unpack("<HH", place + 10)
                branch = flags & 1
                for node in unpack(f"<{(lower - 16) // 2}H", place + 16):
                    low, high, node_flags, key = unpack("<4H", place + node)
                    if branch:
                        todo.append(low | high << 16 | node_flags << 32)
                    elif node_flags & 1:  # the value has pages of its own, with a header of 16 bytes
                        start = unpack("<Q", place + node + 8 + key)[0] * page
                        if start + 16 + (low | high << 16) > size:
                            return True
        except struct.error:  # a read that came back short, or counts that mean nothing
            return True
    return False


@contextmanager
def _transaction(shard: str) -> Iterator[lmdb.Transaction]:
    """A read-only view of a shard; closed after use, as a process may not open a shard twice."""
    with (
        disk_errors(shard),
        open(shard, "rb"),
    ):  # lmdb's own message for a missing right does not name the file
        size = os.path.getsize(shard)
    if size == 0:
        raise UserError(f"{shard}: is empty; download it again")
    try:
        environment = lmdb.open(shard, subdir=False, readonly=True, lock=False, meminit=False)
    except lmdb.Error as error:
        raise UserError(f"{shard}: cannot be opened ({error}); download it again") from None
    with environment:
        # Reading a page beyond the end of the file would kill the process, so look at the size first. A whole file
        # may end before the last page allocated, if that was freed before it was written: then see which are used.
        page = environment.stat()["psize"]
        expected = (environment.info()["last_pgno"] + 1) * page
        if size < expected and _lacks_pages(shard, page, size):
            raise UserError(f"{shard}: cut off: {size} of {expected} bytes; download it again")
        try:
            with environment.begin() as transaction:
                yield transaction
        except lmdb.Error as error:
            raise UserError(f"{shard}: is damaged ({error}); download it again") from None
