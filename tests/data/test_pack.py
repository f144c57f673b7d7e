"""The packed store: what is written is read back, and what is not whole is never taken for a pack."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from symscale.data import build, shuffle, sources
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
