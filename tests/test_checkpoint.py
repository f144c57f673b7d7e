"""The checkpoint folder: atomic, of one spec, in one pair of hands."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from symscale import checkpoint
from symscale.checkpoint import CheckpointFolder, StopRequest, job_id, read_progress
from symscale.errors import UserError

HOLD = """
import sys
from symscale.checkpoint import CheckpointFolder
with CheckpointFolder(sys.argv[1], "a"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path` until its stdin closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_state_comes_back_as_saved(tmp_path):
    """Tensors, numbers and progress survive; the restart is counted."""
    with CheckpointFolder(tmp_path, "a") as folder:
        assert folder.load() is None and folder.restarts == 0
        folder.save({"w": torch.arange(3.0), "step": 7})
        folder.progress(step=7, total_steps=10)
        folder.stopped()
    with CheckpointFolder(tmp_path, "a") as folder:
        state = folder.load()
        folder.progress(step=8)
    assert state["step"] == 7 and torch.equal(state["w"], torch.arange(3.0))
    progress = read_progress(tmp_path)
    assert (progress["step"], progress["total_steps"]) == (8, 10)
    assert (progress["restarts"], progress["preemptions"]) == (1, 1)


def test_checkpoint_of_another_spec_is_refused_with_both_hashes(tmp_path):
    """A changed spec under an old name must not go on from old weights."""
    with CheckpointFolder(tmp_path, "hash-old") as folder:
        folder.save({})
    with (
        CheckpointFolder(tmp_path, "hash-new") as folder,
        pytest.raises(UserError, match=r"hash-old.*hash-new"),
    ):
        folder.load()


def test_failed_save_leaves_the_previous_state(tmp_path):
    """A save that dies half-way (it cannot be pickled) leaves state.pt whole, and no litter in the end."""
    with CheckpointFolder(tmp_path, "a") as folder:
        folder.save({"step": 1})
        with pytest.raises((AttributeError, TypeError, RuntimeError)):
            folder.save({"step": 2, "bad": (i for i in range(3))})
        assert folder.load() == {"step": 1}
    with CheckpointFolder(tmp_path, "a"):
        assert not list(tmp_path.glob(".*.tmp"))


def test_unreadable_state_names_file_and_fix(tmp_path):
    """A truncated state.pt is an error with a way out, not a silent fresh start."""
    (tmp_path / "state.pt").write_bytes(b"PK\x03")
    with CheckpointFolder(tmp_path, "a") as folder, pytest.raises(UserError, match=r"(?s)state.pt.*delete"):
        folder.load()


def test_second_process_is_refused_and_told_who_holds(tmp_path, holder):
    """The message names the holder's process."""
    with pytest.raises(UserError, match=f"process {holder.pid} "):
        CheckpointFolder(tmp_path, "a", patience=0).__enter__()


def test_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, holder):
    """SIGKILL leaves the lock file behind, not the lock."""
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == holder.pid
    with CheckpointFolder(tmp_path, "a", patience=0):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_patience_lets_the_previous_holder_leave(tmp_path, holder):
    """A job that is still saving its last step delays the next one instead of failing it."""
    holder.stdin.close()  # the holder now leaves, in its own time
    with CheckpointFolder(tmp_path, "a", patience=30):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(("age", "free"), [(5, False), (checkpoint.STALE_SECONDS + 5, True)])
def test_lock_of_another_host_counts_by_its_heartbeat(tmp_path, age, free):
    """flock cannot see other hosts: a fresh heartbeat refuses, a stale one gives the lock away."""
    lock = tmp_path / "lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": "7", "token": "x"}))
    os.utime(lock, (time.time() - age,) * 2)
    folder = CheckpointFolder(tmp_path, "a", patience=0)
    if free:
        with folder:
            assert json.loads(lock.read_text())["pid"] == os.getpid()
    else:
        with pytest.raises(UserError, match=r"elsewhere.*job 7"):
            folder.__enter__()


def test_process_that_lost_its_lock_writes_nothing(tmp_path):
    """A trainer frozen so long that another took over must not overwrite the other's state."""
    with CheckpointFolder(tmp_path, "a") as folder:
        folder.save({"step": 1})
        (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "other"}))
        with pytest.raises(UserError, match="taken over"):
            folder.save({"step": 2})
        assert folder.load() == {"step": 1}
    assert json.loads((tmp_path / "lock").read_text())["token"] == "other"


@pytest.mark.parametrize("signum", [signal.SIGUSR2, signal.SIGTERM])
def test_signal_only_sets_the_request(signum):
    """The step goes on; the handlers are put back afterwards."""
    before = signal.getsignal(signum)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signum)
        assert stop.requested
    assert signal.getsignal(signum) is before


def test_job_id_of_array_elements():
    """An element of a job array has its own name."""
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "1"}
    assert (job_id(array), job_id({"SLURM_JOB_ID": "9"}), job_id({})) == ("8_1", "9", None)
