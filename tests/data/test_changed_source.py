"""Snakemake notices that the files behind a pack have changed, by name, size and time; it never reads them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from molecules import ragged_npz

from symscale import cells
from symscale.data.pack import open_pack
from symscale.data.sources.schema import fingerprint, source_state

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sweep(tmp_path, molecules):
    """A folder with the workflow, data in a folder with spaces, and how to call the real snakemake on its pack."""
    for name in ("workflow", "profiles", "config"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    source = tmp_path / "my own data" / "some molecules.npz"
    source.parent.mkdir()
    ragged_npz(source, molecules)
    config = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text())
    config["datasets"] = {
        "mine": {"source": "files", "path": str(source.parent), "validation": 0.2, "check": "off"}
    }
    config |= {"dataset": "mine", "data_dir": "packed data"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    manifest = f"{cells.data_folder(config, 'mine')}/manifest.json"

    def snakemake(*options):
        command = [sys.executable, "-m", "snakemake", *options, "--configfile", "mine.yaml", "--", manifest]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return snakemake, source, tmp_path / Path(manifest).parent


def test_workflow_packs_again_when_a_source_changes_and_only_then(sweep, molecules):
    """Nothing to do while the files are as they were, or gone; changed in place, they are packed again."""
    snakemake, source, pack = sweep
    snakemake("--cores", "1")
    before = open_pack(str(pack)).content_hash
    source.parent.rename(source.parent.with_name("elsewhere"))  # to save space, say: the pack is enough
    assert "Nothing to be done" in snakemake("-n")
    source.parent.mkdir()  # the folder there, its files gone
    assert "Nothing to be done" in snakemake("-n")
    source.parent.rmdir()
    source.parent.with_name("elsewhere").rename(source.parent)
    assert "Nothing to be done" in snakemake("-n")

    ragged_npz(source, molecules[:-3])
    assert "Params have changed" in snakemake("--cores", "1")
    found = open_pack(str(pack))
    assert found.content_hash != before and len(found.train) + len(found.val) == 33


def test_state_of_a_source_sees_names_sizes_and_times(tmp_path):
    """Each of them changes it; lock files that LMDB leaves do not; without source and pack it is unknown."""
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "a.aselmdb").write_bytes(b"12")
    entry = {"source": "omol25", "train": str(folder)}
    states = [source_state(entry, "none")]
    (folder / "a.aselmdb-lock").write_bytes(b"")
    assert source_state(entry, "none") == states[0] and len(fingerprint(entry)) == 1
    os.utime(folder / "a.aselmdb", ns=(1, 1))
    states.append(source_state(entry, "none"))
    (folder / "a.aselmdb").write_bytes(b"123")
    os.utime(folder / "a.aselmdb", ns=(1, 1))
    states.append(source_state(entry, "none"))
    (folder / "a.aselmdb").rename(folder / "b.aselmdb")
    states.append(source_state(entry, "none"))
    assert len(set(states)) == 4
    shutil.rmtree(folder)
    assert source_state(entry, str(tmp_path / "no pack")) == "unknown"
    assert source_state({"source": "xtb", "molecules": 5}, "none") == source_state({"source": "xtb"}, "")
