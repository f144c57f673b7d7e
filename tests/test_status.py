"""symscale status: the state of a cell from what is on disk and in the queue."""

import json
import os
from pathlib import Path

import pytest

from symscale.checkpoint import CheckpointFolder
from symscale.status import QueuedJob, squeue, sweep_status, table

CONFIG = {
    "results": "results",
    "dataset": "d",
    "datasets": {"d": {"source": "xtb", "molecules": 10, "frames": 1, "validation": 0.1, "seed": 0}},
    "architectures": {"mpnn": {"axis": "w", "depth": 2, "base_width": 8, "widths": [8], "absolute": False}},
    "training": {"batch_size": 2},
    "studies": {"main": {"title": "t", "arch": ["mpnn"]}},
}
CURVE = Path("results/mpnn_w8/curve.parquet")
FOLDER = Path("checkpoints/mpnn_w8")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def status(jobs=()):
    (row,) = sweep_status(CONFIG, Path("logs/submitit"), list(jobs))
    return row


def register(job="7"):
    folder = Path("logs/submitit/registry")
    folder.mkdir(parents=True)
    entry = {"outputs": [str(CURVE)], "job": job, "token": "t1", "index": None}
    (folder / "k.json").write_text(json.dumps(entry))


def train(steps, stop=False):
    with CheckpointFolder(FOLDER, "h") as folder:
        folder.progress(step=steps, total_steps=100, seconds=30.0, val_loss=0.5)
        if stop:
            folder.stopped()


def test_cell_nobody_touched_is_pending():
    """No folder, no job."""
    assert status().state == "pending"


def test_curve_means_done():
    """The trainer writes it last."""
    train(100)
    CURVE.parent.mkdir(parents=True)
    CURVE.touch()
    assert status().state == "done"


def test_held_lock_means_running_with_time_left():
    """Without SLURM, too: 30 s for 25 steps leave 90 s for 75."""
    with CheckpointFolder(FOLDER, "h") as folder:
        folder.progress(step=25, total_steps=100, seconds=30.0)
        row = status()
    assert (row.state, row.step, row.seconds_left) == ("running", 25, 90.0)


def test_trainer_that_died_left_a_failed_cell():
    """Lock and progress of a process that is gone."""
    train(25)
    (FOLDER / "lock").write_text(json.dumps({"host": os.uname().nodename, "pid": 2**22 + 1, "token": "x"}))
    assert status().state == "failed"


def test_error_in_the_log_is_shown():
    """The line the trainer closed its log with."""
    log = Path("logs/train/mpnn_w8.log")
    log.parent.mkdir(parents=True)
    log.write_text("step 1\nerror: the loss became nan\n")
    row = status()
    assert (row.state, row.note) == ("failed", "error: the loss became nan")


def test_stopped_cell_is_not_failed():
    """Stopped on request, with no job in the queue (Ctrl-C)."""
    train(25, stop=True)
    row = status()
    assert (row.state, row.preemptions) == ("stopped", 1)


@pytest.mark.parametrize(("started", "state"), [(False, "queued"), (True, "preempted")])
def test_waiting_job_is_queued_or_preempted(started, state):
    """With SLURM's reason; preempted if it has trained before."""
    register()
    if started:
        train(25, stop=True)
    row = status([QueuedJob("7", "PENDING", "Priority", "t1")])
    assert (row.state, row.note, row.job) == (state, "Priority", "7")


def test_job_is_found_by_its_token():
    """Its id was never written down, as Snakemake was killed."""
    register(job=None)
    assert status([QueuedJob("9", "RUNNING", "None", "t1")]).job == "9"
    assert status([QueuedJob("9", "RUNNING", "None", "t2")]).state == "pending"


def test_table_has_a_row_per_cell_and_totals():
    """Progress, time left, preemptions."""
    train(25, stop=True)
    with CheckpointFolder(FOLDER, "h") as folder:
        folder.progress(step=50)
        text = table([status()])
    assert "50.0 %" in text and "0:00 h" in text and "1x" in text and text.endswith("1 cells: 1 running")


def test_without_squeue_the_queue_is_unknown(monkeypatch):
    """None, rather than 'no jobs'."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert squeue() is None
