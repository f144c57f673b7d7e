"""What to make of a job that is not (yet) a success: keep watching it, submit it again, or report it, in words."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .clusters import LIVE, Outcome, Status
from .job import STOPPED
from .registry import Entry

LOST_AFTER = 20.0  # s for which a job may be unknown without a result: its files take time to show on NFS

# pending reasons that waiting does not cure (squeue's %r), and those not worth a line
NEVER = re.compile(
    r"BadConstraints|PartitionNodeLimit|PartitionTimeLimit|AccountNotAllowed|QOSNotAllowed|InvalidAccount"
    r"|InvalidQOS|DependencyNeverSatisfied|JobHoldMaxRequeue|launch failed requeued held"
    r"|(QOS|Assoc)(Max|Min|Grp)\w*PerJob\w*|(QOS|Assoc)MaxWall\w*"
)
ROUTINE = {"", "None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "Dependency", "Prolog"}


@dataclass(frozen=True)
class Verdict:
    act: Literal["watch", "again", "cancel", "fail"]  # cancel: and report
    why: str = ""
    entry: Entry | None = None  # for `again`: with its count of resubmissions
    lost: bool = False  # neither in the queue nor with a result


def judge(
    entry: Entry, outcome: Outcome | None, status: Status | None, unseen: float, timeouts: int, failures: int
) -> Verdict:
    """`status` None: the cluster knows no such job; `unseen`: for how many seconds that has been so."""
    state = status.state if status else "UNKNOWN"
    if status and state in LIVE:  # requeued jobs, too: an error they left behind is of the past
        if state == "PENDING" and NEVER.search(status.reason):
            return Verdict("cancel", f"can never be scheduled: {status.reason}")
        waits = state == "PENDING" and status.reason not in ROUTINE
        return Verdict("watch", f"waits: {status.reason}" if waits else "")
    if outcome and outcome.returncode == 0:
        return Verdict("watch")  # written this moment: the next look settles it
    if outcome and not outcome.error and outcome.exit_status != STOPPED:
        code = outcome.exit_status if outcome.exit_status is not None else outcome.returncode
        return Verdict("fail", f"failed, exit status {code}")
    if (
        outcome and outcome.error and "scontrol" not in outcome.error
    ):  # that one means: could not requeue itself
        return Verdict("fail", outcome.error.strip().splitlines()[-1])
    if state == "CANCELLED":
        return Verdict("fail", "cancelled; it goes on from its checkpoint when started again")
    if state in ("OUT_OF_MEMORY", "DEADLINE", "REVOKED"):
        return Verdict("fail", state.replace("_", " ").lower())
    if state == "PREEMPTED" or (outcome and outcome.exit_status == STOPPED):
        return Verdict("again", "stopped on request", entry)
    if state == "TIMEOUT":
        if entry.timeouts >= timeouts:
            return Verdict("fail", f"reached its time limit more than {timeouts} times")
        return Verdict("again", "reached its time limit", replace(entry, timeouts=entry.timeouts + 1))
    if unseen < LOST_AFTER:
        return Verdict("watch", lost=True)
    if entry.failures >= failures:
        return Verdict("fail", f"was lost by the cluster ({state}) more than {failures} times")
    return Verdict("again", f"was lost ({state})", replace(entry, failures=entry.failures + 1))


def explain(
    cluster: str, entry: Entry, why: str, status: Status | None, logs: list[str]
) -> tuple[str, list[str]]:
    """The message about a failed job, and the paths of the logs it left; `logs` are those of its rule."""
    stem = Path(entry.folder) / f"{entry.job}_0_log"
    own = [path for path in (f"{stem}.err", f"{stem}.out") if Path(path).exists()]
    logs = [log for log in logs if Path(log).exists()] + own
    message = f"{cluster} job {entry.job} {why}. "
    if status:
        message += f"State {status.state}"
        message += f", reason {status.reason}" if status.reason not in ("", "None") else ""
        message += f", exit code {status.exit_code}. " if status.exit_code else ". "
    message += f"Last error line: {last_error_line(logs)}. Logs: {', '.join(logs) or 'none written'}. "
    return message, own


def last_error_line(logs: list[str]) -> str:
    """The last line that names an error, of the first log that has one; else the last line of all."""
    texts = []
    for log in logs:
        with open(log, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 20000))
            text = stream.read().decode(errors="replace")
        # of what the inner Snakemake wrote: the program's own words, not Snakemake's about them
        text = text.rpartition("Select jobs to execute...")[2].partition("RuleException:")[0]
        texts.append([line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()])
    for lines in texts:
        errors = [line for line in lines if re.search(r"error|exception|killed|fault", line, re.IGNORECASE)]
        if errors:
            return errors[-1][:500]
    return next((lines[-1][:500] for lines in texts if lines), "none")
