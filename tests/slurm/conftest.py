"""One throw-away SLURM per test session, on which all selected events happen side by side."""

import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # cluster, sandbox and events are helpers of these tests only

from cluster import Slurm, why_not
from events import EVENTS, PARTITIONS
from sandbox import stop_all

SIDE_BY_SIDE = 7  # more would only wait for the processors, with deadlines running


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    # started in the background (nohup, &), this process ignores Ctrl-C, and so would every Snakemake it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cluster = Slurm(tmp_path_factory.mktemp("slurm"), PARTITIONS)
    try:
        yield cluster.start()
    finally:
        stop_all()
        cluster.stop()


@pytest.fixture(scope="session")
def events(slurm, request, tmp_path_factory) -> dict[str, Future]:
    """{event: future of its figures} of the events whose tests were selected."""
    selected = {
        item.callspec.params.get("event") for item in request.session.items if hasattr(item, "callspec")
    }
    pool = ThreadPoolExecutor(SIDE_BY_SIDE)
    futures = {
        name: pool.submit(event, tmp_path_factory.mktemp("boxes") / name, slurm)
        for name, event in EVENTS.items()
        if name in selected
    }
    yield futures
    stop_all()
    pool.shutdown(wait=False, cancel_futures=True)


@pytest.fixture(scope="session")
def figures(request):
    """What the events measured, printed at the end (pytest -s, or in the report of a failure)."""
    seen: dict[str, dict] = {}
    yield seen
    for name, values in seen.items():
        print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in values.items()))
