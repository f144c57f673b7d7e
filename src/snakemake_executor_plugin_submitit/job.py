"""What runs on the node: one inner Snakemake, that no signal of the cluster can hurt.

submitit starts the pickled `SnakemakeJob` and calls its `checkpoint` on SIGUSR2 (preemption, time limit), after
which it asks SLURM to put the job back into the queue. The signal is passed on as SIGUSR2 to everything the job
started. The inner Snakemake ignores it, and so does every program that does not ask for it; a trainer finishes
its step, saves and leaves.
"""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import DelayedSubmission, JobPaths

STOPPED = 85  # exit status of a program that stopped on request with all saved: run it again
RESEND = 2.0  # s; a program may still be importing, with its handler not yet set, at the first signal


class _Ended(Exception):
    """The inner Snakemake had ended by itself when the signal came: there is nothing to save or to requeue."""


class SnakemakeJob:
    """Runs `command` (a shell line) in `workdir`; `grace` is how long a stop may take before SIGKILL, in s."""

    def __init__(self, command: str, workdir: str, grace: float) -> None:
        self.command, self.workdir, self.grace = command, workdir, grace
        self._process: subprocess.Popen[bytes] | None = None
        self._stop_since: float | None = None
        self._last_push = 0.0

    def __call__(self) -> dict[str, Any]:
        """Exit status of the inner Snakemake and, where it tells, of the program that failed inside it.

        Leaves with `sys.exit` on SIGTERM, without a result: whether the job runs again is up to the cluster.
        """
        finished = _earlier_result()
        if finished is not None:  # preempted after its last breath: the work is done
            return finished
        env = {k: v for k, v in os.environ.items() if k != "SNAKEMAKE_PROFILE"}  # it would submit again
        if _paths():  # a job of its own, where no other handler is in the way
            signal.signal(signal.SIGTERM, self._on_sigterm)
        script = f"trap '' USR2\n{self.command}"
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", script], cwd=self.workdir, env=env, process_group=0
        )
        try:
            while self._process.poll() is None:
                if self._stop_since is not None:
                    self._push()
                time.sleep(0.2)
        except _Ended:
            pass
        if self._process.returncode != 0 and self._stop_since is not None:
            self._drain()
            sys.exit(128 + signal.SIGTERM)
        return {"returncode": self._process.returncode, "exit_status": _failed_with()}

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit inside its SIGUSR2 handler, which interrupts the loop above."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        if self._process is not None:
            if self._process.poll() is not None and self._stop_since is None:
                raise _Ended
            self._drain()
            if self._process.returncode == 0:
                raise _Ended
        return DelayedSubmission(SnakemakeJob(self.command, self.workdir, self.grace))

    def _on_sigterm(self, signum: int, frame: object) -> None:
        if self._process is not None:
            self._push()
        else:
            sys.exit(128 + signal.SIGTERM)

    def _push(self) -> None:
        """Ask everything started by this job to stop; after `grace` seconds, make it."""
        now = time.monotonic()
        if self._stop_since is None:
            self._stop_since = now
        elif now - self._last_push < RESEND:
            return
        self._last_push = now
        late = now - self._stop_since > self.grace  # an inner Snakemake may hang, a program ignore the signal
        try:
            os.killpg(self._process.pid, signal.SIGKILL if late else signal.SIGUSR2)
        except ProcessLookupError:
            pass

    def _drain(self) -> None:
        """Until the whole process group is gone: a shell killed by SIGTERM leaves its trainer saving behind.

        poll(), not wait(): the interrupted frame may hold the lock of wait().
        """
        while self._process.poll() is None or _group_lives(self._process.pid):
            self._push()
            time.sleep(0.2)


def _group_lives(group: int) -> bool:
    """Whether a process of the group is more than a zombie (a container's PID 1 may never reap)."""
    if not Path("/proc/self/stat").exists():
        try:
            os.killpg(group, 0)
        except OSError:
            return False
        return True
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = entry.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:  # gone meanwhile
            continue
        if int(pgrp) == group and state != "Z":
            return True
    return False


def _paths() -> JobPaths | None:
    """Where submitit keeps this job's files; None in the debug cluster, which has none."""
    return JobEnvironment().paths if "SUBMITIT_FOLDER" in os.environ else None


def _earlier_result() -> dict[str, Any] | None:
    """The result an earlier run of this very job wrote; one that failed is removed."""
    paths = _paths()
    if paths is None:
        return None
    path = paths.result_pickle
    try:
        outcome, value = pickle.loads(path.read_bytes())
    except (OSError, EOFError, pickle.UnpicklingError):
        return None
    if outcome == "success" and value["returncode"] == 0:
        return value
    path.unlink(missing_ok=True)
    return None


def _failed_with() -> int | None:
    """Exit status of the failing program, as the inner Snakemake wrote it into this job's error log."""
    paths = _paths()
    if paths is None:
        return None
    try:
        with open(paths.stderr, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 20000))
            found = re.findall(rb"non-zero exit (?:status|code):? (\d+)", stream.read())
    except OSError:
        return None
    return int(found[-1]) if found else None
