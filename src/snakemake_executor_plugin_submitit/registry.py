"""Which cluster job works on which outputs: on disk, so that it survives the death of Snakemake.

One JSON file per Snakemake job (rule and outputs), written before the submission (`job` is None, `token` is the
job's comment on the cluster) and again after it. Whoever finds an entry without a job id asks the cluster for
the token, so a kill at any moment neither loses a job nor submits it twice. `symscale status` reads these files.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError


@dataclass(frozen=True)
class Entry:
    key: str  # of rule and outputs
    rule: str
    outputs: tuple[str, ...]
    params: str  # hash of the rule's params: a job that runs with others must not be taken for this one
    token: str  # comment of the cluster job
    index: int | None  # element of the job array, None for a job of its own
    folder: str  # submitit's folder: script, pickles, logs
    job: str | None = None  # id on the cluster
    timeouts: int = 0  # resubmissions so far, by cause
    failures: int = 0
    submitted: float = 0.0  # Unix time

    def with_job(self, job: str) -> "Entry":
        return replace(self, job=job, submitted=time.time())


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class Registry:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One Snakemake at a time looks up, submits and writes down."""
        with open(self.folder / "lock", "w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def read(self, key: str) -> Entry | None:
        """WorkflowError for a file that is no entry: its job may live, so nothing is submitted in its place."""
        path = self.folder / f"{key}.json"
        try:
            fields = json.loads(path.read_text())
            return Entry(**fields | {"outputs": tuple(fields["outputs"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise WorkflowError(
                f"{path}: damaged ({error}), so nobody can tell which job makes its outputs; cancel that job if"
                " it is still in the queue (its script lies beside the registry), delete this file, start again"
            ) from error

    def entries(self) -> list[Entry]:
        found = (self.read(path.stem) for path in sorted(self.folder.glob("*.json")))
        return [entry for entry in found if entry]

    def write(self, entry: Entry) -> None:
        path = self.folder / f"{entry.key}.json"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(asdict(entry)))
        os.replace(temporary, path)

    def remove(self, entry: Entry) -> None:
        """Forget the entry, unless another submission has taken its place."""
        present = self.read(entry.key)
        if present is not None and present.token == entry.token:
            (self.folder / f"{entry.key}.json").unlink(missing_ok=True)


def members(job: Any) -> list[Any]:
    """The single jobs of a group; a job itself when it is none."""
    return sorted(job.jobs, key=lambda j: (j.rule.name, str(j))) if job.is_group() else [job]


def rules_of(job: Any) -> list[Any]:
    return [] if job.is_local else [member.rule for member in members(job)]


def key_of(job: Any) -> str:
    return digest(job.name, sorted(map(str, job.output)))


def entry_of(job: Any) -> Entry:
    """What is known of a Snakemake job before it is submitted."""
    params = digest([(j.rule.name, sorted(j.params.items()), list(j.params)) for j in members(job)])
    outputs = tuple(sorted(map(str, job.output)))
    return Entry(key_of(job), job.name, outputs, params, token="", index=None, folder="")


def label(job: Any) -> str:
    """`train-mpnn_w32`: rule and wildcards, safe as a file name."""
    parts = [job.name, *map(str, job.wildcards)]
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", "-".join(parts))[:80]
