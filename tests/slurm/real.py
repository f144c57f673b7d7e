"""The real Snakefile, profile and trainer on SLURM: pack, train, be preempted, give the same curve."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml
from cluster import Slurm, wait_for
from sandbox import Run, Sandbox

ROOT = Path(__file__).parents[2]
CELL = "mpnn_w8"
CONFIG = {
    "results": "results",
    "dataset": "xtb",
    "datasets": {"xtb": {"source": "xtb", "molecules": 40, "frames": 2, "validation": 0.1, "seed": 0}},
    "architectures": {"mpnn": {"axis": "w", "depth": 2, "base_width": 16, "widths": [8], "absolute": False}},
    # some 10 s: long enough to be interrupted
    "training": {"batch_size": 4, "validations": 12, "epochs": 100},
    "studies": {"main": {"title": "One cell", "arch": ["mpnn"]}},
}
WALL_CLOCK = ["device_hours"]


class RealSandbox(Sandbox):
    """The project's own workflow and profile in a folder; only the threads are those of this machine."""

    def __init__(self, folder: Path, slurm: Slurm) -> None:
        super().__init__(folder, slurm, "real", {})
        for name in ("Snakefile", "workflow", "profiles"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "small.yaml").write_text(yaml.safe_dump(CONFIG))

    def start(self, *arguments: str) -> Run:
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--profile",
            "profiles/slurm",
            "--configfile",
            "small.yaml",
        ]
        command += ["--set-threads", "train=1", "pack=2", "--submitit-poll-interval", "3"]
        command += ["--default-resources", "partition=real", "mem=500MB"]
        return self.run(command)


def real_training_preempted(folder: Path, slurm: Slurm) -> dict:
    box = RealSandbox(folder, slurm)
    log = folder / f"logs/train/{CELL}.log"
    run = box.start(f"results/{CELL}/curve.parquet")
    wait_for(
        "the real trainer",
        lambda: run.lives() and log.exists() and "from the start" in log.read_text(),
        240,
        0.2,
    )
    slurm.preempt("real")
    assert run.wait(400) == 0, run.output[-3000:]
    box.check_nothing_left()
    command = [
        sys.executable,
        "-m",
        "symscale",
        "train",
        "--cell",
        f"results/{CELL}/cell.json",
        "--threads",
        "1",
    ]
    command += ["--checkpoint", "uninterrupted", "--output", "uninterrupted.parquet", "--device", "cpu"]
    subprocess.run(command, cwd=folder, env=box.env, check=True, capture_output=True)
    preempted, reference = (
        pd.read_parquet(folder / path) for path in (f"results/{CELL}/curve.parquet", "uninterrupted.parquet")
    )
    progress = json.loads((folder / f"checkpoints/{CELL}/progress.json").read_text())
    assert (progress["restarts"], progress["preemptions"]) == (1, 1), "it was not interrupted"
    pd.testing.assert_frame_equal(
        preempted.drop(columns=WALL_CLOCK), reference.drop(columns=WALL_CLOCK), check_exact=True
    )
    request = slurm.run("scontrol", "show", "job", progress["job"])
    for asked in ("TresPerNode=gres:gpu:a100:1", "TimeLimit=2-00:00:00", "mem=62.50G"):
        assert asked in request, f"{asked} not in\n{request}"
    status = subprocess.run(
        [sys.executable, "-m", "symscale", "status", "--configfile", "small.yaml"],
        cwd=folder, env=box.env, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert f"{CELL}  done" in status and "1x" in status and "1 cells: 1 done" in status, status
    return {
        "rows": len(reference),
        "steps": int(reference["step"].iloc[-1]),
        "restarts": 1,
        "columns that differ": 0,
    }
