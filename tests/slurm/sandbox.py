"""A folder with a few cells of the little trainer, and Snakemake processes working on it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster import Slurm, wait_for

HERE = Path(__file__).parent
STEPS, HOLD = 20, 12  # an interrupted cell waits at step HOLD for what is to come
SANDBOXES: list["Sandbox"] = []  # of this session, to be cleaned up
CELL = {"steps": STEPS, "hold-at": HOLD}


class Sandbox:
    """`partition` None: no SLURM. `resources` go to every job."""

    def __init__(
        self, folder: Path, slurm: Slurm | None, partition: str | None, cells: dict[str, dict]
    ) -> None:
        folder.mkdir(parents=True)
        self.folder, self.slurm, self.partition, self.cells = folder, slurm, partition, cells
        config = {"python": sys.executable, "trainer": str(HERE / "trainer.py"), "cells": cells}
        (folder / "config.json").write_text(json.dumps(config))
        self.env = os.environ | {"OMP_NUM_THREADS": "1"} | (slurm.env if slurm else {})
        self._runs: list[Run] = []
        SANDBOXES.append(self)

    def start(self, *arguments: str, cluster: str = "slurm", **resources: object) -> "Run":
        """Start Snakemake as `snakemake --executor submitit ... arguments` does."""
        resources = (
            {"cpus": 1, "mem_mb": 200} | ({"partition": self.partition} if self.partition else {}) | resources
        )
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "-s",
            str(HERE / "Snakefile"),
            "--configfile",
            "config.json",
        ]
        command += ["--executor", "submitit", "--submitit-cluster", cluster, "--submitit-poll-interval", "3"]
        command += ["--jobs", "30", "--rerun-incomplete", "--latency-wait", "10", "--nocolor", "--keep-going"]
        command += [*arguments, "--default-resources", *(f"{k}={v}" for k, v in resources.items())]
        return self.run(command)

    def run(self, command: list[str]) -> "Run":
        run = Run(command, self.folder, self.env, len(self._runs))
        self._runs.append(run)
        return run

    def journal(self, cell: str) -> tuple[list[int], list[int]]:
        """(steps at which trainers started, every step ever computed)."""
        starts, steps = [], []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / f"checkpoints/{cell}/journal.txt").read_text().splitlines():
                (starts if "starts" in line else steps).append(int(line.split()[-1]))
        return starts, steps

    def wait_for_hold(self, deadline: float = 300) -> None:
        """Until the trainers of all cells wait at step HOLD."""
        for cell, options in self.cells.items():
            if "hold-at" in options:
                self.wait_for_step(cell, HOLD, deadline)

    def go(self) -> None:
        (self.folder / "go").touch()

    def wait_for_step(self, cell: str, step: int, deadline: float) -> None:
        run = self._runs[-1]
        wait_for(f"{self.folder.name}/{cell} to reach step {step}",
                 lambda: step in self.journal(cell)[1] or not run.lives(), deadline, 0.3)  # fmt: skip

    def curve(self, cell: str) -> list[list[int]] | None:
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.folder / f"results/{cell}/curve.json").read_text())

    def jobs(self) -> dict[str, str]:
        """{id: state} of this sandbox's jobs that are still to end."""
        rows = self.slurm.run("squeue", "-h", "-r", "-o", "%i %T %Z").splitlines()
        return {job: state for job, state, folder in map(str.split, rows) if folder == str(self.folder)}

    def submitted(self) -> int:
        """How many jobs were ever submitted for this sandbox."""
        return len(list((self.folder / "logs/submitit").glob("*/*_submitted.pkl")))

    def entries(self) -> list[Path]:
        """Entries left in the registry."""
        return list((self.folder / "logs/submitit/registry").glob("*.json"))

    def processes(self) -> list[str]:
        """Command lines of living processes that work in this folder (zombies are not living)."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (entry / "cwd").resolve().is_relative_to(self.folder):
                    if (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                        found.append((entry / "cmdline").read_text().replace("\0", " "))
        return found

    def check(self, repeated: int = 0) -> None:
        """What must hold whatever happened: cells whole and trained once, nothing left behind."""
        for cell, options in self.cells.items():
            _, steps = self.journal(cell)
            assert self.curve(cell) == reference(options["steps"]), f"{cell}: not the uninterrupted curve"
            assert sorted(set(steps)) == list(range(1, options["steps"] + 1)), f"{cell}: steps lost"
            assert len(steps) - len(set(steps)) <= repeated, f"{cell}: steps repeated"
        self.check_nothing_left()

    def check_nothing_left(self) -> None:
        if self.slurm:
            wait_for(f"jobs of {self.folder.name} to end", lambda: not self.jobs())
        wait_for(f"processes of {self.folder.name} to end", lambda: not self.processes())
        assert not self.entries(), "registry not empty"

    def stop(self) -> None:
        for run in self._runs:
            run.kill()


class Run:
    """One Snakemake process; what it says is in `output`."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str], number: int) -> None:
        self.log = folder / f"snakemake{number}.txt"
        self.began = time.monotonic()
        with open(self.log, "w") as stream:
            self.process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=stream, stderr=stream, start_new_session=True
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait(self, deadline: float = 400) -> int:
        """Exit status."""
        try:
            status = self.process.wait(deadline)
            self.seconds = time.monotonic() - self.began
            return status
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"Snakemake did not end within {deadline} s:\n{self.output[-3000:]}"
            ) from None

    def lives(self) -> bool:
        assert self.process.poll() is None, f"Snakemake ended:\n{self.output[-3000:]}"
        return True

    def wait_for_text(self, text: str, deadline: float = 100) -> None:
        wait_for(f"{text!r} in {self.log}", lambda: text in self.output or self.process.poll(), deadline)
        assert text in self.output, self.output[-3000:]

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def reference(steps: int) -> list[list[int]]:
    """The curve of a cell nobody interrupted, by the trainer's rule."""
    curve, value = [], 1
    for step in range(1, steps + 1):
        value = (value * 6364136223846793005 + step) % 2**64
        curve.append([step, value])
    return curve


def stop_all() -> None:
    """End every Snakemake that a sandbox of this session started."""
    for sandbox in SANDBOXES:
        sandbox.stop()
