"""What jobs run on: SLURM, this machine (local), or the calling process (debug). All speak through submitit.

Each class has submit(), queue() (state of every job it still knows, with one query; ClusterError when it cannot be
asked), accounting() (of jobs it no longer knows), cancel() and outcome() (what a job returned, if it did).
"""

import contextlib
import os
import pickle
import shlex
import signal
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import JobPaths
from submitit.helpers import clean_env

from .job import SnakemakeJob
from .registry import Entry

LIVE = set(
    "PENDING RUNNING CONFIGURING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING"
    " REQUEUED REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT".split()
)


class ClusterError(Exception):
    """The cluster could not be asked, or refused; the message is the cluster's own."""


@dataclass(frozen=True)
class Status:
    state: str  # SLURM's name
    reason: str = ""
    comment: str = ""
    exit_code: str = ""  # "status:signal", from the accounting database only


@dataclass(frozen=True)
class Outcome:
    returncode: int
    exit_status: int | None = None  # of the program that failed inside the inner Snakemake
    error: str = ""  # traceback of the wrapper itself


def read_outcome(entry: Entry) -> Outcome | None:
    """What the job left in its result file; None while there is none."""
    path = JobPaths(entry.folder, job_id=entry.job).result_pickle
    try:
        kind, value = pickle.loads(path.read_bytes())
    except (OSError, EOFError, pickle.UnpicklingError):
        return None
    if kind == "success":
        return Outcome(value["returncode"], value["exit_status"])
    return Outcome(1, None, str(value))


def find(entry: Entry, queue: dict[str, Status]) -> str | None:
    """Id of the entry's job while it is in the queue; by its token if its id was never written down."""
    if entry.job:
        status = queue.get(entry.job)
        return entry.job if status and status.state in LIVE and status.comment in ("", entry.token) else None
    for job, status in queue.items():
        index = job.partition("_")[2]
        if status.comment == entry.token and status.state in LIVE:
            if entry.index is None or index == str(entry.index):
                return job
    return None


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Children started inside do not get the terminal's Ctrl-C: it is Snakemake that decides about its jobs."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Slurm:
    name = "slurm"

    def __init__(self, timeout_retries: int) -> None:
        self.timeout_retries = timeout_retries

    def submit(self, jobs: list[SnakemakeJob], params: dict[str, Any], folder: Path, token: str) -> list[str]:
        """Ids of the jobs, submitted as one array when there are several. ClusterError with sbatch's message."""
        config = os.environ.get("SLURM_CONF")
        try:
            with undisturbed(), clean_env():  # Snakemake may itself run in a SLURM job
                if config:
                    os.environ["SLURM_CONF"] = config
                executor = submitit.SlurmExecutor(folder, max_num_timeout=self.timeout_retries)
                executor.update_parameters(**params, comment=token, wckey=None, array_parallelism=len(jobs))
                return [job.job_id for job in executor.submit_array(jobs)]
        except (RuntimeError, OSError) as error:  # submitit's FailedJobError is a RuntimeError
            raise ClusterError(str(error)) from error

    def queue(self, entries: Iterable[Entry]) -> dict[str, Status]:
        """{id: Status} of this user's jobs, those that ended in the last minutes included, with one squeue."""
        command = ["squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", "%i|%T|%r|%k"]
        rows = (line.split("|", 3) for line in _ask(command).splitlines())
        return {row[0]: Status(*row[1:]) for row in rows if len(row) == 4}

    def accounting(self, ids: list[str]) -> dict[str, Status]:
        """Status of ended jobs from slurmdbd; {} where there is none."""
        command = ["sacct", "-n", "-P", "-X", "-o", "JobID,State,Reason,ExitCode", "-j", ",".join(ids)]
        try:
            rows = [line.split("|") for line in _ask(command).splitlines()]
        except ClusterError:
            return {}
        return {r[0]: Status(r[1].split()[0], r[2], "", r[3]) for r in rows if len(r) == 4 and r[1]}

    def cancel(self, ids: list[str]) -> None:
        _ask(["scancel", *ids])

    def outcome(self, entry: Entry) -> Outcome | None:
        return read_outcome(entry)


class Local:
    """Jobs are processes of this machine; their id is the process id of submitit's controller."""

    name = "local"

    def __init__(self, timeout_retries: int) -> None:
        self.timeout_retries = timeout_retries

    def submit(self, jobs: list[SnakemakeJob], params: dict[str, Any], folder: Path, token: str) -> list[str]:
        visible = os.environ.get(
            "CUDA_VISIBLE_DEVICES"
        )  # submitit would hide all GPUs from jobs that name none
        restore = (
            "unset CUDA_VISIBLE_DEVICES" if visible is None else f"export CUDA_VISIBLE_DEVICES={visible!r}"
        )
        executor = submitit.LocalExecutor(folder, max_num_timeout=self.timeout_retries)
        executor.update_parameters(timeout_min=params["time"], signal_delay_s=params["signal_delay_s"])
        with undisturbed(), clean_env():
            return [
                executor.submit(SnakemakeJob(f"{restore}\n{j.command}", j.workdir, j.grace)).job_id
                for j in jobs
            ]

    def queue(self, entries: Iterable[Entry]) -> dict[str, Status]:
        folders = {e.job: e.folder for e in entries if e.job}
        if not folders:
            return {}
        command = ["ps", "-ww", "-o", "pid=,stat=,args=", "-p", ",".join(folders)]
        rows = [line.split(None, 2) for line in _ask(command, quiet=True).splitlines()]
        alive = {r[0] for r in rows if len(r) == 3 and "Z" not in r[1] and folders[r[0]] in shlex.split(r[2])}
        return {job: Status("RUNNING") for job in alive}

    def accounting(self, ids: list[str]) -> dict[str, Status]:
        return {}

    def cancel(self, ids: list[str]) -> None:
        for job in ids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job), signal.SIGTERM)

    def outcome(self, entry: Entry) -> Outcome | None:
        return read_outcome(entry)


class Debug:
    """Jobs run one after the other, in this process, while they are submitted."""

    name = "debug"

    def __init__(self, timeout_retries: int) -> None:
        self._results: dict[str, Outcome] = {}

    def submit(self, jobs: list[SnakemakeJob], params: dict[str, Any], folder: Path, token: str) -> list[str]:
        executor = submitit.DebugExecutor(folder)
        ids = []
        for job in jobs:
            submitted = executor.submit(job)
            value = submitted.result()
            ids.append(submitted.job_id)
            self._results[submitted.job_id] = Outcome(value["returncode"], value["exit_status"])
        return ids

    def queue(self, entries: Iterable[Entry]) -> dict[str, Status]:
        return {}

    def accounting(self, ids: list[str]) -> dict[str, Status]:
        return {}

    def cancel(self, ids: list[str]) -> None:
        pass

    def outcome(self, entry: Entry) -> Outcome | None:
        return self._results.get(entry.job)


CLUSTERS = {cluster.name: cluster for cluster in (Slurm, Local, Debug)}


def _ask(command: list[str], quiet: bool = False) -> str:
    """stdout of a query; ClusterError with its last words when it fails (`quiet`: unless it says nothing)."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"{command[0]}: {error}") from error
    if done.returncode != 0 and not (quiet and not done.stderr.strip()):
        raise ClusterError(f"{command[0]}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout
