"""State of every cell of a sweep, from files and at most one call of squeue; nothing is imported that trains."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from symscale.cells import checkpoint_folder, expand, side_folder
from symscale.checkpoint import STALE_SECONDS, read_progress

STATES = ("done", "running", "preempted", "queued", "stopped", "failed", "pending")


@dataclass(frozen=True)
class CellStatus:
    """`seconds_left` is extrapolated from the device time per step so far, waiting in queues not counted."""

    cell: str
    state: str  # one of STATES
    step: int = 0
    total_steps: int | None = None
    seconds_left: float | None = None
    val_loss: float | None = None
    preemptions: int = 0
    job: str = ""
    note: str = ""


@dataclass(frozen=True)
class QueuedJob:
    job: str
    state: str  # SLURM's name
    reason: str
    comment: str  # the token under which the executor submitted it


def squeue() -> list[QueuedJob] | None:
    """This user's jobs that are still to end; None where there is no SLURM to ask."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%i|%T|%r|%k"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    rows = (line.split("|", 3) for line in done.stdout.splitlines())
    return [QueuedJob(*row) for row in rows if len(row) == 4]


def registered(folder: Path) -> dict[str, dict]:
    """{output path: entry} of the executor's registry: which job works on what."""
    found = {}
    for path in folder.glob("registry/*.json"):
        with contextlib.suppress(OSError, ValueError):  # taken away or half-known meanwhile
            entry = json.loads(path.read_text())
            found |= dict.fromkeys(entry["outputs"], entry)
    return found


def sweep_status(config: dict, logdir: Path, jobs: list[QueuedJob] | None) -> list[CellStatus]:
    """One row per cell of a checked config; paths are relative to the working directory."""
    entries = registered(logdir)
    results = config["results"].rstrip("/")
    logs = Path(side_folder(config, "logs"))
    rows = []
    for name in expand(config):
        curve = f"{results}/{name}/curve.parquet"
        job = _job_of(entries.get(curve), jobs or [])
        rows.append(
            _cell(name, Path(curve), Path(checkpoint_folder(config, name)), logs / f"train/{name}.log", job)
        )
    return rows


def _job_of(entry: Mapping | None, jobs: list[QueuedJob]) -> QueuedJob | None:
    """The queued job of a registry entry, by its id or, if that was never written down, by its token."""
    if entry is None:
        return None
    for job in jobs:
        if entry["job"] == job.job and job.comment in ("", entry["token"]):
            return job
        index = job.job.partition("_")[2]
        if entry["job"] is None and job.comment == entry["token"] and index in ("", str(entry["index"])):
            return job
    return None


def _cell(name: str, curve: Path, checkpoint: Path, log: Path, job: QueuedJob | None) -> CellStatus:
    progress = read_progress(checkpoint)
    step, total = progress.get("step", 0), progress.get("total_steps")
    preemptions, note = progress.get("preemptions", 0), ""
    if curve.exists():
        state = "done"
    elif job and job.state == "PENDING":
        state = "preempted" if progress else "queued"
        note = job.reason
    elif job or is_held(checkpoint / "lock"):
        state = "running"
        note = "" if progress.get("total_steps") else "starting"
    elif progress.get("stopped"):
        state = "stopped"
        note = "resumes when Snakemake is started"
    else:
        error = _last_error(log)
        started = bool(progress) or (checkpoint / "lock").exists()
        state = "failed" if started or error else "pending"
        note = error or (f"see {log}" if started else "")
    left = None
    if state == "running" and step and total and "seconds" in progress:
        left = progress["seconds"] / step * (total - step)
    identity = job.job if job else ""
    return CellStatus(name, state, step, total, left, progress.get("val_loss"), preemptions, identity, note)


def is_held(lock: Path) -> bool:
    """Whether a living trainer holds a checkpoint folder: its process here, its heartbeat elsewhere."""
    try:
        holder = json.loads(lock.read_text() or "{}")
        age = time.time() - lock.stat().st_mtime
    except (OSError, ValueError):
        return False
    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return age < STALE_SECONDS
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, but alive
        pass
    return True


def _last_error(log: Path) -> str:
    """The error a trainer closed its log with, '' if it did not."""
    try:
        last = log.read_text(errors="replace").rstrip().rpartition("\n")[2]
    except OSError:
        return ""
    return last if last.startswith("error:") else ""


def table(rows: list[CellStatus]) -> str:
    """The rows as aligned text, with a line of totals."""
    lines = [("cell", "state", "progress", "left", "val loss", "preempted", "job", "")]
    for row in rows:
        share = f"{100 * row.step / row.total_steps:.1f} %" if row.total_steps else "-"
        lines.append(
            (
                row.cell,
                row.state,
                "100 %" if row.state == "done" else share,
                _duration(row.seconds_left),
                f"{row.val_loss:.4f}" if row.val_loss is not None else "-",
                f"{row.preemptions}x" if row.preemptions else "-",
                row.job or "-",
                row.note,
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(7)]
    text = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[7]]).rstrip()
        for line in lines
    ]
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    totals = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    return "\n".join([*text, f"{len(rows)} cells: {totals}"])


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes = round(seconds / 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    return f"{days}d {hours:02d}h" if days else f"{hours}:{minutes % 60:02d} h"
