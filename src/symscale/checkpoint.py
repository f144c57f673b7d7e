"""The checkpoint folder of one cell, its lock, and the request to stop.

    with CheckpointFolder("checkpoints/x", spec_hash) as folder, StopRequest() as stop:
        state = folder.load()                       # dict given to save(), or None
        ...
        folder.save({"step": step, "curve": rows})  # atomic
        if stop.requested:
            folder.stopped()
            return EXIT_STOPPED

The state must hold all that the curve needs: a workflow manager deletes declared outputs whenever it starts
the job again, so a resumed trainer writes the whole curve anew from its checkpoint.
"""

import errno
import fcntl
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from symscale.errors import UserError

EXIT_STOPPED = 85  # stopped on request with everything saved: run the same command again
BEAT_SECONDS = 20.0  # how often the holder of a lock shows that it lives
STALE_SECONDS = 180.0  # a lock of another host unseen for so long is dead (NFS may cache attributes for 60 s)


def job_id(environ: dict[str, str] | None = None) -> str | None:
    """The cluster's id of the job this process runs in (`123` or, in a job array, `123_4`), else None."""
    env = os.environ if environ is None else environ
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID', '0')}"
    return env.get("SLURM_JOB_ID") or env.get("SUBMITIT_LOCAL_JOB_ID")


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside `path`, flush to disk, rename: a reader sees the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


class StopRequest:
    """Turns SIGUSR2 (preemption, time limit), SIGTERM and Ctrl-C into `requested`, asked between two steps.

    Handlers are set on construction and put back on leaving the `with` block. Forked workers inherit them,
    which is wanted: the cluster signals every process of a job, and workers must live until the step is done.
    """

    def __init__(self) -> None:
        self.requested = False
        asked = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
        self._previous = {s: signal.signal(s, self._handle) for s in asked}

    def _handle(self, signum: int, frame: object) -> None:
        if signum == signal.SIGINT and self.requested:  # Ctrl-C a second time: at once
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)


class FolderLock:
    """One trainer per folder, across processes and nodes.

    On one host flock decides: the kernel drops it when its holder dies, however it dies. flock may not reach
    other hosts (NFS without lockd, Lustre without -o flock), so the file also names its holder, who touches
    it every `BEAT_SECONDS`. A holder on another host is taken for dead once that heartbeat is `STALE_SECONDS`
    old, by the file server's clock; one that comes back to life finds another token and stops (`check`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._held: dict[str, Any] = {}
        self._released = threading.Event()

    def acquire(self, patience: float) -> None:
        """Take the lock; a live holder is given `patience` seconds to leave.

        Raises
        ------
        UserError
            Another process holds the lock; the message names host, process and job.
        """
        start, told = time.monotonic(), False
        while True:
            holder, age = self._try()
            if holder is None:
                break
            waited = time.monotonic() - start
            if waited >= patience and age < max(waited, 2 * BEAT_SECONDS):
                raise UserError(
                    f"{self.path.parent}: in use by process {holder.get('pid')} on {holder.get('host')}"
                    f" (job {holder.get('job')}), which is alive; wait for it or cancel it"
                )
            if not told:
                print(f"{self.path}: held by {holder}; waiting", file=sys.stderr, flush=True)
                told = True
            time.sleep(min(1.0, patience / 4 + 0.05))
        self._released.clear()
        threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True).start()

    def _try(self) -> tuple[dict[str, Any] | None, float]:
        """(None, 0) with the lock taken, or (its holder, age of the holder's heartbeat in seconds)."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        flock_works = True
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):  # held, by a process that lives
                return self._give_up(self._read(), 0.0)
            flock_works = False  # ENOLCK, ENOSYS, ENOTSUP: this file system has none
        holder = self._read()
        here = socket.gethostname()
        if holder and flock_works and holder.get("host") == here:
            holder = {}  # flock was free, so that process is gone
        if holder and self._age() < STALE_SECONDS:
            return self._give_up(holder, self._age())
        mine = {"host": here, "pid": os.getpid(), "job": job_id(), "token": secrets.token_hex(8)}
        self._write(mine)
        self._held = mine
        if holder or not flock_works:  # two could take over a dead lock at once: the last to write has it
            time.sleep(1.0)
            if self._read().get("token") != mine["token"]:
                return self._give_up(self._read(), 0.0)
        return None, 0.0

    def _give_up(self, holder: dict[str, Any], age: float) -> tuple[dict[str, Any], float]:
        os.close(self._fd)
        self._fd = -1
        return holder or {"host": "unknown"}, age

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(os.pread(self._fd, 4096, 0) or b"{}")
        except ValueError:  # torn: its writer died while writing
            return {}

    def _write(self, holder: dict[str, Any]) -> None:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(holder).encode() if holder else b"", 0)

    def _age(self) -> float:
        """Seconds since the last heartbeat, both ends by the file server's clock."""
        probe = self.path.with_name(f".lock.{os.getpid()}.now")
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now - os.fstat(self._fd).st_mtime

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            if self._read().get("token") == self._held["token"]:
                os.utime(self._fd)

    def check(self) -> None:
        """Raise UserError when another process took the lock over (this one had been frozen for minutes)."""
        holder = self._read()
        if holder.get("token") != self._held.get("token"):
            raise UserError(f"{self.path}: taken over by {holder}; this process stops and writes nothing")

    def release(self) -> None:
        self._released.set()
        if self._fd >= 0:
            if self._read().get("token") == self._held.get("token"):
                self._write({})
            os.close(self._fd)
            self._fd = -1


class CheckpointFolder:
    """`checkpoints/<cell>/`: state.pt, progress.json and lock, for the one process inside the `with` block.

    Parameters
    ----------
    path
        The folder; created when missing.
    spec_hash
        Hash of the cell's resolved spec. A state saved under another hash is refused.
    patience
        Seconds to wait for a previous holder that is about to leave (a cancelled job saving its last step).

    Attributes
    ----------
    restarts
        How many times training went on from a checkpoint, this time included.
    preemptions
        How many times it was asked to stop (`stopped`).
    """

    def __init__(self, path: str | os.PathLike[str], spec_hash: str, patience: float = 60.0) -> None:
        self.path = Path(path)
        self.spec_hash = spec_hash
        self.patience = patience
        self.restarts = 0
        self.preemptions = 0
        self._progress: dict[str, Any] = {}
        self._lock = FolderLock(self.path / "lock")

    def __enter__(self) -> "CheckpointFolder":
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock.acquire(self.patience)
        for leftover in self.path.glob(".*.tmp"):  # of processes that died while writing
            leftover.unlink()
        self._progress = read_progress(self.path)
        self.preemptions = int(self._progress.get("preemptions", 0))
        self.restarts = int(self._progress.get("restarts", 0)) + (self.path / "state.pt").exists()
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def load(self) -> dict[str, Any] | None:
        """The state of the last `save`, tensors on the CPU; None when there is none.

        Raises
        ------
        UserError
            The state belongs to another spec (both hashes are named), or cannot be read.
        """
        file = self.path / "state.pt"
        if not file.exists():
            return None
        import torch  # not at the top: `symscale status` reads progress without it

        try:
            saved = torch.load(file, map_location="cpu", weights_only=False)
            found, state = saved["spec_hash"], saved["state"]
        except Exception as error:
            raise UserError(f"{file}: cannot be read ({error}); delete {self.path} to train anew") from error
        if found != self.spec_hash:
            raise UserError(
                f"{file}: checkpoint of spec {found}, but the cell's spec is {self.spec_hash}; restore the"
                f" cell's settings, or delete {self.path} to train anew"
            )
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace state.pt atomically.

        Raises
        ------
        UserError
            The lock was lost to another process, or the file cannot be written; the state before stays.
        """
        import torch

        self._lock.check()
        temporary = self.path / f".state.pt.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as stream:
                torch.save({"spec_hash": self.spec_hash, "state": state}, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, self.path / "state.pt")
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its own
            temporary.unlink(missing_ok=True)
            reason = error.strerror if isinstance(error, OSError) else "the disk may be full"
            raise UserError(
                f"{self.path / 'state.pt'}: cannot be written ({reason}); make room and run again: the checkpoint"
                " before is kept"
            ) from error

    def progress(self, **fields: Any) -> None:
        """Update progress.json (step, total_steps, epoch, val_loss, seconds ...); earlier fields stay."""
        self._progress |= {"stopped": False} | fields
        self._progress |= {"restarts": self.restarts, "preemptions": self.preemptions, "updated": time.time()}
        self._progress |= {"host": socket.gethostname(), "pid": os.getpid(), "job": job_id()}
        write_atomically(self.path / "progress.json", json.dumps(self._progress).encode())

    def stopped(self) -> None:
        """Note one more stop on request, after the state is saved."""
        self.preemptions += 1
        self.progress(stopped=True)


def read_progress(path: str | os.PathLike[str]) -> dict[str, Any]:
    """progress.json of a checkpoint folder, {} when there is none (anyone may read, no lock needed)."""
    try:
        return json.loads((Path(path) / "progress.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
