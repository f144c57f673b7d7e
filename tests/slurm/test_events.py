"""What the cluster does to its jobs, and what is left of a sweep after it: everything, once."""

import os
import subprocess
import sys
import time

import pytest
from events import EVENTS
from sandbox import Sandbox

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize("event", EVENTS)
def test_cells_survive(event, events, figures):
    """Trained twice 0, orphaned 0, steps lost or repeated 0; the assertions are with each event in events.py."""
    figures[event] = events[event].result()
    assert figures[event]


def test_eight_null_cells_take_at_most_20_s(slurm, events, figures, tmp_path):
    """The whole way, as one array, from starting Snakemake to its end; in proportion where others use the machine."""
    for future in events.values():
        future.exception()  # whatever came of it, it is over
    seconds, limits = [], []
    while len(seconds) < 3 and not (seconds and seconds[-1] <= limits[-1]):
        before = slowdown()
        box = Sandbox(
            tmp_path / f"null{len(seconds)}", slurm, "array", {f"c{i}": {"steps": 0} for i in range(8)}
        )
        run = box.start()
        assert run.wait() == 0, run.output[-3000:]
        assert "array of 8" in run.output
        seconds.append(round(run.seconds, 1))
        limits.append(round(20 * max(before, slowdown()), 1))
    figures["8 null cells"] = {"seconds": seconds, "limits": limits}
    assert seconds[-1] <= limits[-1]


def slowdown() -> float:
    """How many times longer than on idle processors eight starts of Snakemake take here and now, all at once."""
    start, cpu = time.monotonic(), 0.0
    command = [sys.executable, "-m", "snakemake", "--version"]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(8)]
    for process in processes:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu += usage.ru_utime + usage.ru_stime
    return max(1.0, (time.monotonic() - start) / (cpu / min(8, os.cpu_count())))
