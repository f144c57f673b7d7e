"""One function per event: lets it happen to a sandbox of its own and checks what must hold afterwards.

All run side by side, as most of the time is spent waiting for SLURM. Each returns figures for the summary.
"""

import json
import signal
from collections.abc import Callable
from pathlib import Path

from cluster import Slurm, wait_for
from real import real_training_preempted
from sandbox import CELL, HOLD, STEPS, Sandbox

# {partition: (nodes, GraceTime)}: partitions of their own for events that reach beyond their jobs
PARTITIONS = {
    "grace": (1, 20),
    "nograce": (1, 0),
    "dead": (2, 0),
    "kept": (1, 20),
    "array": (3, 0),
    "plain": (3, 0),
    "real": (1, 20),
}


def preempted(box: Sandbox) -> dict:
    run = box.start()
    box.wait_for_hold()
    box.slurm.preempt(box.partition)
    wait_for("the resumed trainer", lambda: len(box.journal("a")[0]) == 2, 300)
    box.go()
    assert run.wait() == 0, run.output[-3000:]
    box.check()
    assert box.journal("a")[0] == [0, HOLD]
    assert box.submitted() == 1, "a preempted job is requeued, not submitted again"
    return {"resumed at step": HOLD, "seconds": round(run.seconds)}


def preemption_with_grace_time(folder: Path, slurm: Slurm) -> dict:
    return preempted(Sandbox(folder, slurm, "grace", {"a": CELL}))


def preemption_without_grace_time(folder: Path, slurm: Slurm) -> dict:
    return preempted(Sandbox(folder, slurm, "nograce", {"a": CELL}))


def time_limit(folder: Path, slurm: Slurm) -> dict:
    """A limit of two minutes; SLURM's warning may come up to a minute early."""
    box = Sandbox(folder, slurm, "plain", {"a": CELL})
    run = box.start(runtime=2, signal_delay=40)
    box.wait_for_hold()
    wait_for("the resumed trainer", lambda: len(box.journal("a")[0]) >= 2, 300)
    box.go()
    assert run.wait() == 0, run.output[-3000:]
    box.check()
    assert "time limit" in run.output or box.submitted() == 1
    return {"limits reached": len(box.journal("a")[0]) - 1, "submissions": box.submitted()}


def scancel(folder: Path, slurm: Slurm) -> dict:
    box = Sandbox(folder, slurm, "plain", {"a": CELL})
    run = box.start()
    box.wait_for_hold()
    (job,) = box.jobs()
    slurm.run("scancel", job)
    assert run.wait() == 1
    assert f"job {job} cancelled" in run.output and "State CANCELLED" in run.output, run.output[-3000:]
    box.check_nothing_left()
    box.go()
    assert box.start().wait() == 0
    box.check()
    assert box.journal("a")[0] == [0, HOLD]
    return {"resumed at step": HOLD}


def node_killed(folder: Path, slurm: Slurm) -> dict:
    """slurmd, stepds and payload die at once; the other node goes on from the last periodic checkpoint."""
    box = Sandbox(folder, slurm, "dead", {"a": CELL | {"save-every": 5}})
    run = box.start()
    box.wait_for_hold()
    slurm.kill_node(slurm.run("squeue", "-h", "-p", "dead", "-t", "R", "-o", "%N").strip())
    box.go()
    assert run.wait(300) == 0, run.output[-3000:]
    box.check(repeated=HOLD % 5)
    starts, steps = box.journal("a")
    assert starts == [0, HOLD - HOLD % 5], f"not from the last periodic checkpoint: {starts}"
    return {"resumed at step": starts[1], "steps computed again after it": len(steps) - STEPS}


def sigint(folder: Path, slurm: Slurm) -> dict:
    """Ctrl-C cancels the jobs, which save; the next start goes on."""
    box = Sandbox(folder, slurm, "plain", {"a": CELL, "b": CELL})
    run = box.start()
    box.wait_for_hold()
    run.signal(signal.SIGINT)
    assert run.wait(60) == 1
    assert "Cancelled 2 slurm jobs" in run.output, run.output[-3000:]
    box.check_nothing_left()
    box.go()
    assert box.start().wait() == 0
    box.check()
    assert [box.journal(c)[0] for c in "ab"] == [[0, HOLD]] * 2
    return {"jobs cancelled": 2, "resumed at step": HOLD}


def sigint_with_jobs_kept(folder: Path, slurm: Slurm) -> dict:
    """With keep-on-interrupt the job runs on, survives a preemption on its own, and is watched again."""
    box = Sandbox(folder, slurm, "kept", {"a": CELL})
    run = box.start("--submitit-keep-on-interrupt")
    box.wait_for_hold()
    run.signal(signal.SIGINT)
    assert run.wait(60) == 1
    assert len(box.jobs()) == 1, "the job did not survive Ctrl-C"
    slurm.preempt("kept")
    wait_for("the resumed trainer", lambda: len(box.journal("a")[0]) == 2, 300)
    again = box.start()
    again.wait_for_text("Watching slurm job")
    box.go()
    assert again.wait() == 0, again.output[-3000:]
    box.check()
    assert box.submitted() == 1
    return {"submissions": box.submitted()}


def sigkill_of_snakemake(folder: Path, slurm: Slurm) -> dict:
    """Killed, unlocked, started again; for cell b as if killed between sbatch and writing the job id down."""
    box = Sandbox(folder, slurm, "plain", {"a": CELL, "b": CELL})
    run = box.start()
    box.wait_for_hold()
    run.kill()
    for path in box.entries():
        entry = json.loads(path.read_text())
        if "/b/" in entry["outputs"][0]:
            path.write_text(json.dumps(entry | {"job": None}))
    refused = box.start()
    assert refused.wait() == 1 and "lock" in refused.output, refused.output[-3000:]
    assert box.start("--unlock").wait() == 0
    again = box.start()
    again.wait_for_text("Watching slurm job")
    box.go()
    assert again.wait() == 0, again.output[-3000:]
    assert again.output.count("Watching slurm job") == 2
    box.check()
    assert box.submitted() == 2
    assert [box.journal(c)[0] for c in "ab"] == [[0], [0]]
    return {"jobs": box.submitted(), "re-attached": 2}


def failing_trainer(folder: Path, slurm: Slurm) -> dict:
    """Snakemake's own output names the error, the exit status, the state and the logs; nothing is retried."""
    box = Sandbox(folder, slurm, "plain", {"a": {"steps": 5, "fail-at": 3}})
    run = box.start()
    assert run.wait() == 1
    for text in (
        "FloatingPointError: loss of a is not finite at step 3",
        "exit status 1",
        "State COMPLETED",  # of the wrapper, which lived to tell
        "logs/a.log",
        "_0_log.err",
    ):
        assert text in run.output, f"{text!r} not in\n{run.output[-3000:]}"
    assert box.submitted() == 1
    box.check_nothing_left()
    return {"said": next(line for line in run.output.splitlines() if "Last error line" in line).strip()}


def unschedulable(folder: Path, slurm: Slurm) -> dict:
    """Refused by sbatch, or accepted and never to start: both reported with SLURM's reason."""
    box = Sandbox(folder, slurm, "plain", {"a": CELL})
    refused = box.start(constraint="h200")
    assert refused.wait() == 1
    assert "Invalid feature specification" in refused.output, refused.output[-3000:]
    never = box.start(runtime=8 * 24 * 60)
    assert never.wait() == 1
    assert "can never be scheduled: PartitionTimeLimit" in never.output, never.output[-3000:]
    box.check_nothing_left()
    assert box.journal("a") == ([], [])
    return {"refused after": round(refused.seconds), "reported after": round(never.seconds)}


def array_of_20_cells(folder: Path, slurm: Slurm) -> dict:
    box = Sandbox(folder, slurm, "array", {f"c{i}": {"steps": 0} for i in range(20)})
    run = box.start()
    assert run.wait(400) == 0, run.output[-3000:]
    assert "array of 20" in run.output
    box.check()
    assert all(box.journal(cell) == ([0], []) for cell in box.cells), "not once each"
    assert box.submitted() == 20
    assert len(list((folder / "logs/submitit").glob("*/*_submission.sh"))) == 1, "more than one sbatch"
    return {"seconds": round(run.seconds), "sbatch calls": 1}


def two_snakemakes(folder: Path, slurm: Slurm) -> dict:
    """Started at once and a third later, with Snakemake's own lock off: they share the jobs."""
    box = Sandbox(folder, slurm, "plain", {"a": CELL, "b": CELL})
    runs = [box.start("--nolock"), box.start("--nolock")]
    box.wait_for_hold()
    runs.append(box.start("--nolock"))
    runs[2].wait_for_text("Watching slurm job")
    for run in runs[:2]:
        wait_for("jobs", lambda run=run: "Watching" in run.output or "Submitted" in run.output, 100)
    box.go()
    assert [run.wait() for run in runs] == [0, 0, 0], "\n".join(run.output[-2000:] for run in runs)
    box.check()
    assert box.submitted() == 2
    assert [box.journal(c)[0] for c in "ab"] == [[0], [0]]
    return {"Snakemakes": 3, "jobs": box.submitted()}


def local_cluster(folder: Path, slurm: Slurm) -> dict:
    """No SLURM at all: processes of this machine; killed and started again, Snakemake finds them."""
    box = Sandbox(folder, None, None, {"a": CELL, "b": {"steps": 3}})
    run = box.start(cluster="local")
    box.wait_for_hold()
    wait_for("cell b", lambda: box.curve("b"))
    run.signal(signal.SIGKILL)
    run.process.wait()
    assert box.start("--unlock", cluster="local").wait() == 0
    again = box.start(cluster="local")
    again.wait_for_text("Watching local job")
    box.go()
    assert again.wait() == 0, again.output[-3000:]
    box.check()
    assert box.submitted() == 2
    return {"jobs": box.submitted()}


def local_sigint(folder: Path, slurm: Slurm) -> dict:
    """Ctrl-C on this machine, and the next start goes on."""
    box = Sandbox(folder, None, None, {"a": CELL})
    run = box.start(cluster="local")
    box.wait_for_hold()
    run.signal(signal.SIGINT)
    assert run.wait(60) == 1
    wait_for("local processes to end", lambda: not box.processes(), 60)
    box.go()
    assert box.start(cluster="local").wait() == 0
    box.check()
    assert box.journal("a")[0] == [0, HOLD]
    return {"resumed at step": HOLD}


def slurm_does_not_answer(folder: Path, slurm: Slurm) -> dict:
    """No controller at that port: nothing is submitted, and the message is SLURM's."""
    box = Sandbox(folder, None, None, {"a": {"steps": 0}})
    conf = Path(slurm.env["SLURM_CONF"]).read_text().splitlines()
    lines = ["SlurmctldPort=1" if line.startswith("SlurmctldPort") else line for line in conf]
    (folder / "slurm.conf").write_text("\n".join([*lines, "MessageTimeout=2"]))
    box.env |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": slurm.env["PATH"]}
    run = box.start()
    assert run.wait() == 1
    assert "cannot be asked, so nothing is submitted" in run.output, run.output[-3000:]
    assert "Unable to contact slurm controller" in run.output
    assert box.submitted() == 0
    box.check_nothing_left()
    return {"submitted": 0}


def misspelt_resource(folder: Path, slurm: Slurm) -> dict:
    box = Sandbox(folder, slurm, "plain", {"a": {"steps": 0}})
    run = box.start(partiton="plain")
    assert run.wait() == 1
    assert "unknown resource(s) partiton; valid ones are" in run.output, run.output[-3000:]
    assert box.submitted() == 0
    return {"submitted": 0}


def groups(folder: Path, slurm: Slurm) -> dict:
    """Three cells as one cluster job."""
    box = Sandbox(folder, slurm, "plain", {name: {"steps": 0} for name in "abc"})
    run = box.start("--groups", "train=cells", "--group-components", "cells=3")
    assert run.wait() == 0, run.output[-3000:]
    box.check()
    assert box.submitted() == 1
    return {"cells": 3, "jobs": 1}


def debug_cluster(folder: Path, slurm: Slurm) -> dict:
    """In Snakemake's own process."""
    box = Sandbox(folder, None, None, {"a": {"steps": 0}})
    run = box.start(cluster="debug")
    assert run.wait() == 0, run.output[-3000:]
    box.check()
    return {"cells": 1}


# the longest first
EVENTS: dict[str, Callable[[Path, Slurm], dict]] = {
    f.__name__: f
    for f in (
        time_limit,
        real_training_preempted,
        preemption_with_grace_time,
        preemption_without_grace_time,
        node_killed,
        sigint_with_jobs_kept,
        sigkill_of_snakemake,
        sigint,
        scancel,
        array_of_20_cells,
        two_snakemakes,
        local_cluster,
        local_sigint,
        unschedulable,
        failing_trainer,
        groups,
        slurm_does_not_answer,
        misspelt_resource,
        debug_cluster,
    )
}
