"""The packed store: what is written is read back, and what is not whole is never taken for a pack."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from symscale.data import build, pack, shuffle, sources
from symscale.data.build import build_pack
from symscale.data.pack import open_pack, verify
from symscale.errors import UserError

XTB = {"source": "xtb", "molecules": 100, "frames": 1}


def test_gather_returns_the_molecules_asked_for_in_order(toy_pack):
    """In pack order and in any other, compared with plain indexing."""
    split = toy_pack.train
    for indices in (np.arange(4, 9), np.array([7, 2, 29, 0, 2]), np.array([11]), np.array([5, 4, 3])):
        found = split.gather(indices)
        slices = [slice(split.offsets[m], split.offsets[m + 1]) for m in indices]
        assert np.array_equal(found.pos, np.concatenate([split.pos[s] for s in slices]))
        assert np.array_equal(found.forces, np.concatenate([split.forces[s] for s in slices]))
        assert np.array_equal(found.z, np.concatenate([split.z[s] for s in slices]))
        assert np.array_equal(found.energy, split.energy[indices])
        assert found.counts.tolist() == [s.stop - s.start for s in slices]


def test_prefix_is_the_beginning(toy_pack):
    """A data fraction is a prefix; a tiny one still holds a molecule."""
    half = toy_pack.train.prefix(0.5)
    assert len(half) == 15 and half.atoms == toy_pack.train.offsets[15]
    assert np.array_equal(half.energy, toy_pack.train.energy[:15])
    assert len(toy_pack.train.prefix(1e-6)) == 1 and len(toy_pack.train.prefix(1.0)) == 30


def test_normalised_training_energies_have_mean_0_and_variance_1(toy_pack):
    """Over the whole training part, in float64."""
    split = toy_pack.train
    normal = toy_pack.normalise_energy(split.energy, split.z, np.diff(split.offsets))
    assert normal.dtype == np.float64
    assert normal.mean() == pytest.approx(0, abs=1e-9) and normal.std() == pytest.approx(1, rel=1e-9)


def test_references_see_only_the_training_part(toy_folder, toy_entry, tmp_path, shard_folder):
    """Fitting again from the packed training arrays alone gives the manifest's references, mu and sigma."""
    found = open_pack(toy_folder)
    split = found.train
    table = np.zeros((len(split), 119))
    np.add.at(table, (np.repeat(np.arange(len(split)), np.diff(split.offsets)), split.z), 1)
    values = np.linalg.lstsq(table[:, [1, 6, 7, 8]], split.energy, rcond=None)[0]
    np.testing.assert_allclose(found.reference[[1, 6, 7, 8]], values, rtol=1e-9)
    residual = split.energy - table[:, [1, 6, 7, 8]] @ values
    assert found.mu == pytest.approx(residual.mean(), abs=1e-8) and found.sigma == pytest.approx(
        residual.std()
    )


def test_given_references_are_used_and_must_cover_the_elements(toy_entry, tmp_path):
    """The entry's own eV per element instead of least squares."""
    given = {"H": -10.0, "C": -50.0, "N": -80.0, "O": -110.0}
    build_pack(toy_entry | {"references": given}, str(tmp_path / "a"), 1)
    assert open_pack(str(tmp_path / "a")).reference[[1, 6, 7, 8]].tolist() == list(given.values())
    with pytest.raises(UserError, match="references: no value for N, O"):
        build_pack(toy_entry | {"references": {"H": 1.0, "C": 2.0}}, str(tmp_path / "b"), 1)
    assert not (tmp_path / "b").exists()


def test_shuffle_is_global_and_does_not_depend_on_how_it_was_done(
    toy_entry, toy_folder, tmp_path, monkeypatch
):
    """Many small buckets, small tasks and two processes give the same bytes; shards end up mixed."""
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 1000)
    monkeypatch.setattr(sources.source_module(toy_entry), "TASK_ROWS", 5)
    build_pack(toy_entry, str(tmp_path / "a"), 1)
    found, plain = open_pack(str(tmp_path / "a")), open_pack(toy_folder)
    assert found.manifest["files"] == plain.manifest["files"]  # every hash
    np.testing.assert_allclose(found.reference, plain.reference, rtol=1e-10)  # sums in another order
    monkeypatch.undo()
    build_pack(toy_entry, str(tmp_path / "b"), 2)
    assert open_pack(str(tmp_path / "b")).content_hash == plain.content_hash
    build_pack(toy_entry | {"seed": 1}, str(tmp_path / "c"), 1)
    assert not np.array_equal(open_pack(str(tmp_path / "c")).train.energy, plain.train.energy)


def test_verify_finds_a_changed_byte(toy_folder, tmp_path):
    """The content hash covers every array."""
    copy = shutil.copytree(toy_folder, tmp_path / "copy")
    assert verify(open_pack(str(copy))) == []
    with open(copy / "train" / "forces.npy", "r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"\x55")
    assert verify(open_pack(str(copy))) == ["train/forces.npy"]


def test_half_written_packs_are_refused(toy_folder, tmp_path):
    """No manifest, a short array, a missing array, a damaged manifest: each is named."""
    copy = shutil.copytree(toy_folder, tmp_path / "copy")
    with open(copy / "train" / "pos.npy", "r+b") as f:
        f.truncate(500)
    with pytest.raises(UserError, match=r"train/pos.npy: has 500 bytes instead of \d+"):
        open_pack(str(copy))
    (copy / "train" / "pos.npy").unlink()
    with pytest.raises(UserError, match=r"train/pos.npy: is missing"):
        open_pack(str(copy))
    (copy / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json: cannot be read"):
        open_pack(str(copy))
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest.json: no such file"):
        open_pack(str(copy))


def test_finished_pack_is_left_alone_and_a_changed_source_packed_again(
    tmp_path, ase_atoms, write_shard, monkeypatch
):
    """Same files: nothing is done. Another file in the folder: it is noticed."""
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "data0000.aselmdb", ase_atoms[:24])
    entry = {"source": "omol25", "train": str(folder), "validation": 4, "check": "off"}
    out = str(tmp_path / "pack")
    _, made = build_pack(entry, out, 1)
    before = os.stat(out).st_mtime_ns, open_pack(out).content_hash
    assert made and build_pack(entry, out, 1)[1] is False
    assert (os.stat(out).st_mtime_ns, open_pack(out).content_hash) == before
    write_shard(folder / "data0001.aselmdb", ase_atoms[24:])
    manifest, made = build_pack(entry, out, 1)
    assert made and manifest["counts"]["train"]["molecules"] == 32
    assert not Path(f"{out}.partial").exists()


def test_a_folder_that_is_no_pack_is_never_replaced(toy_entry, tmp_path):
    """What lies at the given place and is not a pack stays."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="exists and is not a pack"):
        build_pack(toy_entry, str(tmp_path / "mine"), 1)
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize("manifest", ['{"name": "a web app"}', '{"content_hash": "x", "format": 0}'])
def test_a_folder_with_a_manifest_of_its_own_is_never_replaced(manifest, toy_entry, tmp_path):
    """Many tools write a manifest.json; one beside files of no pack does not make them ours."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text(manifest)
    (tmp_path / "web" / "index.html").write_text("x")
    with pytest.raises(UserError, match="exists and is not a pack"):
        build_pack(toy_entry, str(tmp_path / "web"), 1)
    assert (tmp_path / "web" / "index.html").exists()


def test_killed_while_packing_resumes_to_the_same_pack(tmp_path):
    """SIGKILL after the first finished piece: no pack, no orphans; the next run keeps that piece and the pack's
    bytes are those of an uninterrupted run."""
    out = tmp_path / "a b" / "killed"
    out.parent.mkdir()
    command = [sys.executable, "-m", "symscale", "pack", "--entry", json.dumps(XTB), "--out", str(out)]
    process = subprocess.Popen([*command, "--processes", "2"], stderr=subprocess.DEVNULL)
    first = Path(f"{out}.partial") / "staging" / "000000.json"
    second = Path(f"{out}.partial") / "staging" / "000001.json"
    while not (first.exists() or second.exists()):
        assert process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists() and children
    done = next(p for p in (first, second) if p.exists())
    stamp = done.stat().st_mtime_ns
    while any(Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) for pid in children):
        time.sleep(0.01)  # workers notice that their parent is gone
    calls = []
    original = build.stage_all

    def watched(staging, *arguments):
        calls.append((Path(staging) / done.name).stat().st_mtime_ns)
        return original(staging, *arguments)

    build.stage_all = watched
    try:
        build_pack(XTB, str(out), 1)
    finally:
        build.stage_all = original
    assert calls == [stamp]
    build_pack(XTB, str(tmp_path / "whole"), 2)
    assert open_pack(str(out)).content_hash == open_pack(str(tmp_path / "whole")).content_hash


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.mark.parametrize("limit", [600, 3000])
def test_disk_full_is_one_message_and_leaves_no_pack(toy_entry, tmp_path, run_symscale, limit):
    """Files may not grow beyond ``limit`` bytes: staging fails at 600, the final arrays at 3000. With room, the same
    command then finishes."""
    out = tmp_path / "full"
    arguments = ("pack", "--entry", json.dumps(toy_entry), "--out", out, "--processes", 1)
    result = run_symscale(
        *arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert result.returncode == 1 and not out.exists()
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("symscale pack: ") and ".npy: no space left to write it" in message
    assert ("staging" in message) == (limit == 600)
    assert "Traceback" not in result.stderr
    assert run_symscale(*arguments).returncode == 0 and open_pack(str(out))


def test_too_small_a_disk_is_noticed_before_writing(toy_entry, tmp_path, monkeypatch):
    """The arrays' size is known beforehand; staging is kept for the next run."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shuffle.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"the pack takes 0.0 GB, 0.0 GB are free"):
        build_pack(toy_entry, str(tmp_path / "a"), 1)
    assert not (tmp_path / "a").exists()
    monkeypatch.undo()
    assert build_pack(toy_entry, str(tmp_path / "a"), 1)[1]


def test_unwritable_folder_is_one_message(open_folder, ordinary_user):
    """Rights are missing where the pack should go."""
    with ordinary_user(), pytest.raises(UserError, match=r"out.partial: Permission denied; correct"):
        build_pack(XTB, str(open_folder / "out"), 1)


def test_two_processes_cannot_pack_into_one_folder(toy_entry, tmp_path):
    """The second is told, and the first is unharmed."""
    out = str(tmp_path / "x")
    os.makedirs(f"{out}.partial")
    with build._lock(f"{out}.partial"), pytest.raises(UserError, match="another process is packing"):
        build_pack(toy_entry, out, 1)
    assert build_pack(toy_entry, out, 1)[1]


@pytest.mark.parametrize(("release_bytes", "bounded"), [(pack.RELEASE_BYTES, True), (2**60, False)])
def test_reading_a_large_pack_takes_constant_memory(tmp_path, release_bytes, bounded):
    """5 million molecules (3.5 GB of arrays, sparse): 300,000 read in order and 10,000 scattered over a data fraction
    raise the resident peak by less than 200 MB; without giving pages back, by far more."""
    folder = sparse_pack(tmp_path / "big", 5_000_000, 27)
    code = """
import sys
import numpy as np
from symscale.data import pack
def peak_mb():  # not ru_maxrss, which a child inherits from its parent
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) / 1024
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
    command = [sys.executable, "-c", code, str(folder), str(release_bytes)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    print("grew by MB:", result.stdout)
    assert (float(result.stdout) < 200) == bounded


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
