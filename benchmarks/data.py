"""Speed and memory of data, measured beside the usual way of doing it.

    python benchmarks/data.py [import|growth|batches|model|memory|scale ...]

Sides alternate, times are CPU seconds of one thread, the best of several rounds (the machine may be shared).
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from symscale.data import pack as packs
from symscale.data.pack import open_pack

MEAN_ATOMS = 27  # of OMol25's neutral subset: 9.2e8 atoms in 34M samples
SHARDS, ROWS = 4, 3000
TRAIN_SECONDS = 12  # of CPU time, the start included


def write_shards(folder: Path) -> None:
    """Shards in OMol25's row layout, written by ase-db-backends: random molecules of its mean size."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase_db_backends.aselmdb import LMDBDatabase

    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        with LMDBDatabase(str(folder / f"data{shard:04d}.aselmdb")) as database:
            for row in range(ROWS):
                n = int(np.clip(rng.normal(MEAN_ATOMS, 10), 5, 60))
                atoms = Atoms(rng.choice([1, 6, 7, 8], n), rng.normal(size=(n, 3)) * n ** (1 / 3))
                forces = rng.normal(size=(n, 3))
                atoms.calc = SinglePointCalculator(atoms, energy=-1000.0 * n * rng.random(), forces=forces)
                data = {"charge": 0, "spin": 1, "data_id": "spice", "source": f"{shard}/{row}"}
                database.write(atoms, data=data)


def rate(work, count: int, clock=time.process_time) -> float:
    start = clock()
    work()
    return count / (clock() - start)


def best(sides: dict, rounds: int = 3) -> dict[str, float]:
    """The best rate of each side over alternating rounds."""
    found = dict.fromkeys(sides, 0.0)
    for _ in range(rounds):
        for name, side in sides.items():
            found[name] = max(found[name], side())
    return found


def bench_import(folder: Path) -> None:
    """Rows a second from .aselmdb: ours, ASE's rows, and ASE's rows made Atoms; then one process against two."""
    from ase.db import connect

    from symscale.data.chunks import clean
    from symscale.data.sources import omol25

    entry = {"source": "omol25", "train": str(folder)}
    shard = str(folder / "data0000.aselmdb")
    task = omol25.Task(shard, ROWS, "", (shard, 1, ROWS + 1, 0))

    def ours():
        for samples in omol25.read(entry, task):
            clean(samples, 0, 0)

    def ase_rows():
        with connect(shard, readonly=True) as database:
            for row in database.select():
                _ = row.numbers, row.positions, row.forces, row.energy

    def ase_atoms():
        with connect(shard, readonly=True) as database:
            for row in database.select():
                atoms = row.toatoms()
                _ = atoms.numbers, atoms.positions, atoms.get_forces(), atoms.get_potential_energy()

    found = best({w.__name__: (lambda w=w: rate(w, ROWS)) for w in (ours, ase_rows, ase_atoms)})
    print("import, samples/s of CPU time on one core (ours includes checks, centring and hashing):")
    for name, value in found.items():
        print(f"  {name:10} {value:9.0f}   ours is {found['ours'] / value:.1f}x")

    from symscale.data.stage import stage_all

    tasks = [t for t in omol25.tasks(entry) for _ in range(16)]
    count = len(tasks) * ROWS
    print(f"whole staging of {count} samples, CPU time of all processes (start of the workers included):")
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as staging:
            before, start = cpu_seconds(), time.perf_counter()
            stage_all(staging, entry, tasks, processes)
            spent, wall = cpu_seconds() - before, time.perf_counter() - start
        print(
            f"  {processes} process(es): {1e6 * spent / count:.1f} us a sample; {spent:.1f} s of CPU in {wall:.1f} s,"
            f" so {spent / wall:.2f} cores were free; {count / wall:.0f} samples/s"
        )


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


GROW = """
import json, sys
from symscale.data.build import build_pack
def peak_mb():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) / 1024


manifest, _ = build_pack({"source": "omol25", "train": sys.argv[1], "validation": 0.02}, sys.argv[2], 1)
size = sum(file["bytes"] for file in manifest["files"].values())
print(json.dumps([sum(c["molecules"] for c in manifest["counts"].values()), size, peak_mb()]))
"""


def bench_growth(folder: Path) -> None:
    """Peak memory of one process that imports sets of growing size: the same shard under 10, 40 and 160 names."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase_db_backends.aselmdb import LMDBDatabase

    from symscale.data.sources import xtb

    frames = []  # real molecules, so that nothing is dropped and the checks have something to check
    for task in xtb.tasks({"molecules": 100}):
        for s in xtb.read({}, task):
            ends = np.cumsum(s.counts)
            for first, end, energy in zip(ends - s.counts, ends, s.energy, strict=True):
                atoms = Atoms(s.z[first:end], s.pos[first:end])
                atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=s.forces[first:end])
                frames.append(atoms)
    shard = folder / "one.aselmdb"
    with LMDBDatabase(str(shard)) as database:
        for row in range(10_000):
            data = {"charge": 0, "spin": 1, "data_id": "spice", "source": str(row)}
            database.write(frames[row % len(frames)], data=data)
    for names in (10, 40, 160):
        grown = folder / f"grown{names}"
        grown.mkdir()
        for name in range(names):
            os.link(shard, grown / f"data{name:04d}.aselmdb")
        out = folder / f"pack{names}"
        result = subprocess.run(
            [sys.executable, "-c", GROW, grown, out], stdout=subprocess.PIPE, text=True, check=True
        )
        samples, size, peak = json.loads(result.stdout)
        print(f"import of {samples} samples into a pack of {size / 2**20:.0f} MB: peak {peak:.0f} MB")
        shutil.rmtree(out)


def synthetic_pack(folder: Path, molecules: int, sparse: bool = False) -> Path:
    """A pack of ``molecules`` equal sizes: repeated random data, or holes that take no disk."""
    rng = np.random.default_rng(0)
    atoms = molecules * MEAN_ATOMS
    values = {
        "pos": (rng.normal(size=(1 << 16, 3)) * 2.5).astype("<f4"),
        "forces": rng.normal(size=(1 << 16, 3)).astype("<f4"),
        "z": rng.choice([1, 6, 7, 8], 1 << 16).astype("|u1"),
        "energy": rng.normal(size=1 << 16),
        "molecule": np.arange(1 << 16),
    }
    files, counts = {}, {}
    for split, share in (("train", 1.0), ("val", 0.001)):
        m = max(1, round(molecules * share))
        (folder / split).mkdir(parents=True)
        for name, (dtype, trailing) in packs.ARRAYS.items():
            rows = {"offsets": m + 1, "energy": m, "molecule": m}.get(name, m * MEAN_ATOMS)
            path = folder / split / f"{name}.npy"
            with open(path, "wb") as f:
                header = {"descr": dtype, "fortran_order": False, "shape": (rows, *trailing)}
                np.lib.format.write_array_header_1_0(f, header)
                if name == "offsets":
                    for first in range(0, rows, 1 << 20):
                        f.write(
                            (np.arange(first, min(rows, first + (1 << 20))) * MEAN_ATOMS)
                            .astype("<i8")
                            .tobytes()
                        )
                elif sparse:
                    f.truncate(f.tell() + rows * np.dtype(dtype).itemsize * int(np.prod(trailing)))
                else:
                    for first in range(0, rows, 1 << 16):
                        f.write(values[name][: min(1 << 16, rows - first)].astype(dtype).tobytes())
            files[f"{split}/{name}.npy"] = {
                "bytes": path.stat().st_size,
                "shape": [rows, *trailing],
                "sha256": "",
            }
        counts[split] = {"molecules": m, "atoms": m * MEAN_ATOMS, "elements": {}}
    manifest = {
        "format": packs.FORMAT,
        "files": files,
        "counts": counts,
        "references": {},
        "mu": 0.0,
        "sigma": 1.0,
    }
    (folder / "manifest.json").write_text(
        json.dumps(manifest | {"content_hash": "synthetic", "atoms": atoms})
    )
    return folder


def bench_batches(folder: Path) -> None:
    """Samples a second in batches of 64: from the pack, and from ASE-LMDB row by row in random order."""
    from ase.db import connect

    from symscale.data.loader import Plan, make_batch

    pack = open_pack(str(synthetic_pack(folder / "pack", 200_000)))
    shuffled, in_order = Plan(pack.train, 64, seed=1), Plan(pack.train, 64)
    orders = {
        name: [plan[s] for s in range(1000)]
        for name, plan in (("shuffled", shuffled), ("in order", in_order))
    }
    shard = str(folder / "data0000.aselmdb")
    random_rows = np.random.default_rng(0).permutation(ROWS)[:1000] + 1

    def gather(order):
        return lambda: rate(lambda: [pack.train.gather(i) for i in orders[order]], 64_000)

    def whole(order):
        graph = {"cutoff": 6.0, "max_neighbors": 30}
        return lambda: rate(
            lambda: [make_batch(pack.train, pack, i, **graph) for i in orders[order][:100]], 6_400
        )

    def ase_lmdb():
        with connect(shard, readonly=True) as database:

            def read():
                for row in random_rows.tolist():
                    atoms = database._get_row(row).toatoms()
                    _ = atoms.numbers, atoms.positions, atoms.get_forces(), atoms.get_potential_energy()

            return rate(read, len(random_rows))

    sides = {"ASE-LMDB": ase_lmdb}
    sides |= {f"pack, {order}": gather(order) for order in orders}
    sides |= {f"pack with graphs, {order}": whole(order) for order in orders}
    found = best(sides)
    print("batches of 64, samples/s of CPU time on one core:")
    for name, value in found.items():
        print(f"  {name:28} {value:9.0f}   {value / found['ASE-LMDB']:6.1f}x ASE-LMDB")


def bench_model(folder: Path) -> None:
    """Samples a second that the fastest model trains on, against those that one background thread prepares."""
    import torch

    from symscale.data.loader import Plan, make_batch
    from symscale.models.mpnn import MPNN

    torch.set_num_threads(1)
    pack = open_pack(str(synthetic_pack(folder / "model", 20_000)))
    plan = Plan(pack.train, 64)
    graph = {"cutoff": 6.0, "max_neighbors": 30}
    made = [make_batch(pack.train, pack, plan[s], **graph) for s in range(4)]
    model = MPNN(width=32, depth=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def train():
        for batch in made:
            energy, forces = model(batch)
            loss = (energy - batch.energy).abs().mean() + (forces - batch.forces).norm(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    loader = {
        "loader": lambda: rate(
            lambda: [make_batch(pack.train, pack, plan[s], **graph) for s in range(40)], 2560
        )
    }
    found = best(loader | {"training": lambda: rate(train, 256)})
    print(
        f"one core: loader {found['loader']:.0f} samples/s, training of MPNN w=32 depth 3 {found['training']:.0f} "
        f"samples/s: {found['loader'] / found['training']:.1f}x"
    )


READ = """
import json, sys, time
import numpy as np
from symscale.data.loader import Plan
from symscale.data.pack import open_pack
def peak_mb():  # not ru_maxrss, which a child inherits from its parent
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) / 1024


folder, steps = sys.argv[1], int(sys.argv[2])
start = time.perf_counter()
pack = open_pack(folder)
opened = time.perf_counter() - start
part = pack.train.prefix(0.5)
before = peak_mb()
start = time.perf_counter()
seen = 0
for seed in (0, 1):
    plan = Plan(part, 64, seed=seed)
    for step in range(0, steps):
        seen += len(part.gather(plan[step]).counts)
print(json.dumps({"opened": opened, "before": before, "peak": peak_mb(), "samples": seen,
                  "seconds": time.perf_counter() - start}))
"""


def run_reader(folder: Path, steps: int, prefix: tuple[str, ...] = ()) -> dict:
    command = [*prefix, sys.executable, "-c", READ, str(folder), str(steps)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"reader failed ({result.returncode}): {result.stderr[-500:]}")
    return json.loads(result.stdout)


def memory_cgroup(limit: int) -> tuple[Path, Path] | None:
    """A cgroup that may use ``limit`` bytes, page cache included, and the file of its peak; None without a right."""
    for root, name, peak in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),  # version 1
        ("/sys/fs/cgroup", "memory.max", "memory.peak"),  # version 2
    ):
        group = Path(root) / "symscale_benchmark"
        try:
            group.mkdir(exist_ok=True)
            if not (group / "cgroup.procs").exists():  # no cgroup file system
                group.rmdir()
                continue
            (group / name).write_text(str(limit))
            return group, group / peak
        except OSError:
            continue
    return None


def train_peak(folder: Path, pack: Path, seconds: float, prefix: tuple[str, ...] = ()) -> tuple[float, int]:
    """Peak resident MB of `symscale train` after ``seconds`` of CPU time, and the molecules it had trained on.

    Seed 1: the molecules of a step come from all over the pack.
    """
    from symscale import cells

    config = {
        "dataset": "x",
        "datasets": {"x": {"source": "files", "path": "x"}},
        "architectures": {"mpnn": {"axis": "w", "depth": 2, "base_width": 16, "widths": [16]}},
        "training": {"batch_size": 64, "validation_molecules": 500},
    }
    run = Path(tempfile.mkdtemp(dir=folder))
    spec = cells.parse_name(config, "mpnn_w16_s1")
    (run / "cell.json").write_text(cells.cell_document(config, spec))
    command = [
        *prefix,
        sys.executable,
        "-m",
        "symscale",
        "train",
        "--cell",
        str(run / "cell.json"),
        "--threads",
        "1",
    ]
    command += [
        "--data",
        str(pack),
        "--checkpoint",
        str(run / "checkpoint"),
        "--output",
        str(run / "curve.parquet"),
    ]
    with open(run / "log", "w") as log:
        process = subprocess.Popen([*command, "--device", "cpu"], stderr=log)
    ticks = os.sysconf("SC_CLK_TCK")
    while process.poll() is None:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        if (int(fields[11]) + int(fields[12])) / ticks > seconds:
            break
        time.sleep(0.2)
    status = Path(f"/proc/{process.pid}/status").read_text()
    process.terminate()
    process.wait()
    text = (run / "log").read_text()
    if "VmHWM" not in status or not (step := re.search(r"saved at step (\d+)", text)):
        sys.exit(f"symscale train ended by itself: {text[-500:]}")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024, int(step[1]) * 64


def bench_memory(folder: Path) -> None:
    """Peak memory of training on a pack and on one 100 times larger; then on one larger than all memory allowed."""
    small = synthetic_pack(folder / "small", 25_000)
    large = synthetic_pack(folder / "large", 2_500_000)
    size = sum(f.stat().st_size for f in large.rglob("*.npy")) / 2**20
    a, b = run_reader(small, 150), run_reader(large, 4_000)
    print(
        f"reading: peak {a['peak']:.0f} MB on a pack of {size / 100:.0f} MB, {b['peak']:.0f} MB on one of "
        f"{size:.0f} MB ({b['samples']} samples): {b['peak'] - a['peak']:+.0f} MB"
    )
    (a, seen), (b, more) = (train_peak(folder, pack, TRAIN_SECONDS) for pack in (small, large))
    print(
        f"symscale train for {TRAIN_SECONDS} s of CPU: peak {a:.0f} MB on a pack of {size / 100:.0f} MB ({seen} "
        f"molecules), {b:.0f} MB on one of {size:.0f} MB ({more} molecules): {b - a:+.0f} MB"
    )
    limit = 1000 * 2**20  # training alone needs some 600
    made = memory_cgroup(limit)
    if made is None:
        print("no right to make a memory cgroup here: not shown under a limit")
        return
    group, peak_file = made
    for path in large.rglob("*.npy"):  # out of the page cache, which belongs to who read a page first
        with open(path, "rb") as f:
            os.fsync(f.fileno())
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    enter = ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"')
    found = run_reader(large, 4_000, enter)
    trained, seen = train_peak(folder, large, TRAIN_SECONDS, enter)
    peak = int(peak_file.read_text()) / 2**20
    print(
        f"in a cgroup of {limit / 2**20:.0f} MB (page cache included, {peak:.0f} MB used at most): "
        f"{found['samples']} samples of the {size:.0f} MB pack at {found['samples'] / found['seconds']:.0f}/s; "
        f"symscale train on it: {seen} molecules, peak resident {trained:.0f} MB"
    )
    group.rmdir()


def bench_scale(folder: Path) -> None:
    """OMol25's neutral subset in size: 34,335,828 molecules (sparse files)."""
    big = synthetic_pack(folder / "scale", 34_335_828, sparse=True)
    nominal = sum(f.stat().st_size for f in big.rglob("*.npy")) / 1e9
    steps = round(0.01 * 34_335_828 / 64 / 2)
    found = run_reader(big, steps)
    print(
        f"34,335,828 molecules ({nominal:.1f} GB nominal): opened in {found['opened'] * 1e3:.1f} ms; "
        f"{found['samples']} samples (1 %) of a fraction of 0.5, half in order and half shuffled, at "
        f"{found['samples'] / found['seconds']:.0f}/s; peak {found['peak']:.0f} MB, "
        f"{found['peak'] - found['before']:+.0f} MB while reading"
    )


BENCHMARKS = {
    "import": bench_import,
    "growth": bench_growth,
    "batches": bench_batches,
    "model": bench_model,
    "memory": bench_memory,
    "scale": bench_scale,
}


def main() -> None:
    wanted = sys.argv[1:] or list(BENCHMARKS)
    if unknown := set(wanted) - set(BENCHMARKS):
        sys.exit(f"unknown: {', '.join(unknown)}; choose from {', '.join(BENCHMARKS)}")
    folder = Path(tempfile.mkdtemp(prefix="symscale-bench-"))
    try:
        if {"import", "batches"} & set(wanted):
            write_shards(folder)
        for name in wanted:
            BENCHMARKS[name](folder)
    finally:
        shutil.rmtree(folder)
    print(f"peak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
