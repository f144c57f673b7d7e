"""From a dataset entry to curves and a report: OMol25 shards under the paper's config, and two files of one's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import yaml

from symscale.curves import read_curve

ROOT = Path(__file__).parents[2]


def test_omol25_shards_extxyz_and_npz_run_end_to_end(tmp_path, shard_folder, ase_atoms, molecules):
    """The paper's config with toy shards and small ladders of its four architectures gives a report; an extxyz of
    MD17 form and an npz, in a folder with spaces, need a line or two of config each to give a curve."""
    folder = tmp_path / "my own data"
    folder.mkdir()
    ase.io.write(folder / "md.extxyz", ase_atoms)
    np.savez(
        folder / "mine.npz",
        numbers=np.concatenate([m.z for m in molecules]),
        pos=np.concatenate([m.pos for m in molecules]),
        forces=np.concatenate([m.forces for m in molecules]),
        E=np.array([m.energy for m in molecules]),
        natoms=np.array([len(m.z) for m in molecules]),
    )
    config = yaml.safe_load((ROOT / "config" / "paper.yaml").read_text())
    config["datasets"]["omol25"] |= {"train": str(shard_folder), "val": str(shard_folder)}
    config["datasets"] |= yaml.safe_load(
        f"md: {{source: files, path: {folder}/md.extxyz, validation: 0.2}}\n"
        f"mine: {{source: files, path: {folder}/mine.npz, numbers: numbers, energy: E, validation: 0.2}}\n"
    )
    small = {
        "mpnn": {"depth": 1, "widths": [4, 8, 16]},
        "egnn": {"depth": 1, "widths": [4]},
        "gemnet": {"depth": 1, "widths": [4]},
        "esen": {"depth": 1, "lmax": 1, "mmax": 1, "hidden_channels": 2, "widths": [4]},
    }
    config["architectures"] = {arch: config["architectures"][arch] | small[arch] for arch in small}
    config["training"] |= {"batch_size": 4}
    config["architectures"]["egnn"]["batch_size"] = 4
    config["studies"] = {"main": {"title": "Toy", "arch": list(small)}}
    config["analysis"] |= {"bootstraps": 20, "ema": {}}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(config))
    cells = {"omol25": "mpnn_w8", "md": "mpnn_w8_on-md", "mine": "mpnn_w8_on-mine"}
    curves = {name: f"results/paper/{cell}/curve.parquet" for name, cell in cells.items()}
    report = "results/paper/report.html"
    command = [sys.executable, "-m", "snakemake", report, *curves.values(), "--snakefile", ROOT / "Snakefile"]
    command += ["--cores", "2", "--configfile", "toy.yaml"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    text = (tmp_path / report).read_text()
    assert all(cell in text for cell in ("mpnn_w8", "egnn_w4", "gemnet_w4", "esen_c4"))
    for name, path in curves.items():
        table, metadata = read_curve(tmp_path / path)
        assert np.isfinite(table["val_loss"]).all() and len(table) >= 2
        assert metadata["spec"]["dataset"] == name
        held_out = {"omol25": 0}.get(name, 7)  # val is a folder of its own; 20 % of 36 elsewhere
        assert abs(table["molecules"].iloc[-1] - (36 - held_out)) <= 2  # whole molecules of three frames
