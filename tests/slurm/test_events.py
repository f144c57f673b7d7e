"""What the cluster does to its jobs, and what is left of a sweep after it: everything, once."""

import os
import time
from pathlib import Path

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
        others = running_processes()
        box = Sandbox(
            tmp_path / f"null{len(seconds)}", slurm, "array", {f"c{i}": {"steps": 0} for i in range(8)}
        )
        run = box.start()
        assert run.wait() == 0, run.output[-3000:]
        assert "array of 8" in run.output
        seconds.append(round(run.seconds, 1))
        limits.append(20 * max(1.0, others / os.cpu_count()))
    figures["8 null cells"] = {"seconds": seconds, "limits": limits}
    assert seconds[-1] <= limits[-1]


def running_processes() -> float:
    """How many threads want a processor, averaged over two seconds."""
    counts = []
    for _ in range(10):
        counts.append(int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) - 1)
        time.sleep(0.2)
    return sum(counts) / len(counts)
