"""Memory does not grow with the data: neither while packing nor while reading a pack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from symscale.data import pack

PEAK = """
def peak_mb():  # not ru_maxrss, which a child inherits from its parent
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) / 1024
"""


def peak(code, *arguments) -> float:
    """What a program in a process of its own prints last."""
    command = [sys.executable, "-c", PEAK + code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return float(result.stdout.split()[-1])


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Files with 50,000 and 800,000 hydrogen molecules; the rows of the latter are 16 MB."""
    rng = np.random.default_rng(0)
    found = {}
    for count in (20_000, 240_000):
        pos = np.zeros((count, 2, 3), dtype=np.float32)
        pos[:, 1] = np.add(rng.normal(size=(count, 3)), [2, 0, 0])
        found[count] = tmp_path_factory.mktemp("many") / f"{count}.npz"
        np.savez(
            found[count],
            z=np.array([1, 1]),
            pos=pos,
            forces=rng.normal(size=pos.shape).astype(np.float32),
            energy=rng.normal(size=count),
        )
    return found


def test_packing_takes_the_same_memory_for_12_times_the_data(many, tmp_path):
    """With small blocks, the peaks are within 8 MB; were the rows of each chunk kept alive, by far not."""
    code = """
import sys
from symscale.data import chunks, shuffle, split
from symscale.data.build import build_pack
shuffle.BUCKET_BYTES, split._PARTITION = 2**18, 40_000
if sys.argv[3] == "keep":
    kept, read = [], chunks.read_rows
    def keep(stem):
        kept.append(read(stem)[:1])  # a slice is enough
        return read(stem)
    split.read_rows = keep
entry = {"source": "files", "path": sys.argv[1], "split": "random", "check": "warn", "validation": 0.1}
build_pack(entry, sys.argv[2], 1)
print(peak_mb())
"""
    small = peak(code, many[20_000], tmp_path / "small", "")
    large = peak(code, many[240_000], tmp_path / "large", "")
    leaky = peak(code, many[240_000], tmp_path / "leaky", "keep")
    print(f"peaks: {small:.0f} MB, {large:.0f} MB, keeping rows {leaky:.0f} MB")
    assert large - small < 8
    assert leaky - small > 40


@pytest.mark.parametrize(("release_bytes", "bounded"), [(pack.RELEASE_BYTES, True), (2**60, False)])
def test_reading_a_large_pack_takes_constant_memory(tmp_path, release_bytes, bounded):
    """5 million molecules (3.5 GB of arrays, sparse): 300,000 read in order and 10,000 scattered over a data fraction
    raise the resident peak by less than 200 MB; without giving pages back, by far more."""
    folder = sparse_pack(tmp_path / "big", 5_000_000, 27)
    code = """
import sys
import numpy as np
from symscale.data import pack
pack.RELEASE_BYTES = int(sys.argv[2])
part = pack.open_pack(sys.argv[1]).train.prefix(0.5)
before = peak_mb()
scattered = np.random.default_rng(0).integers(0, len(part), 10_000)
for first in range(0, 300_000, 500):
    assert part.gather(np.arange(first, first + 500)).counts.sum() == 27 * 500
for first in range(0, 10_000, 100):
    assert part.gather(scattered[first : first + 100]).counts.sum() == 27 * 100
print(peak_mb() - before)
"""
    grown = peak(code, folder, release_bytes)
    print("grew by MB:", grown)
    assert (grown < 200) == bounded


def sparse_pack(folder: Path, molecules: int, atoms: int) -> Path:
    """A pack of equal sizes whose arrays are holes but for the offsets."""
    files, counts = {}, {}
    for split, m in (("train", molecules), ("val", 1)):
        (folder / split).mkdir(parents=True)
        for name, (dtype, trailing) in pack.ARRAYS.items():
            rows = {"offsets": m + 1, "energy": m, "molecule": m}.get(name, m * atoms)
            with open(folder / split / f"{name}.npy", "wb") as f:
                header = {"descr": dtype, "fortran_order": False, "shape": (rows, *trailing)}
                np.lib.format.write_array_header_1_0(f, header)
                if name == "offsets":
                    f.write((np.arange(rows) * atoms).astype(dtype).tobytes())
                f.truncate(128 + rows * np.dtype(dtype).itemsize * int(np.prod(trailing)))
            size = (folder / split / f"{name}.npy").stat().st_size
            files[f"{split}/{name}.npy"] = {"bytes": size, "shape": [rows, *trailing], "sha256": ""}
        counts[split] = {"molecules": m}
    manifest = {
        "format": pack.FORMAT,
        "files": files,
        "counts": counts,
        "references": {},
        "mu": 0.0,
        "sigma": 1.0,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | {"content_hash": "sparse"}))
    return folder
