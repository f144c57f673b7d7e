"""The executor's decisions, without a cluster: resources, registry, what to make of a job's state."""

import dataclasses

import pytest
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_submitit.clusters import Outcome, Status, find
from snakemake_executor_plugin_submitit.registry import Entry, Registry
from snakemake_executor_plugin_submitit.resources import check, parameters, parse_extra
from snakemake_executor_plugin_submitit.verdict import LOST_AFTER, judge, last_error_line

ENTRY = Entry("key", "train", ("results/a",), "params", token="t1", index=None, folder="/logs", job="7")


def verdict(outcome=None, status=None, unseen=0.0, entry=ENTRY):
    return judge(entry, outcome, status, unseen, timeouts=2, failures=1)


def test_misspelt_resource_is_refused_with_the_valid_ones():
    """The message names the culprit, its rule and what may stand there; Snakemake's own names pass."""
    check(dict.fromkeys(["partition", "mem_mb", "runtime", "_cores", "tmpdir"], 1), "train", [])
    with pytest.raises(
        WorkflowError, match=r"(?s)rule train.*partiton.*partition.*account.*constraint.*runtime"
    ):
        check({"partiton": "gpu", "mem": "1GB"}, "train", [])


def test_resource_counted_by_snakemake_is_not_the_clusters_business():
    """--resources downloads=2 limits jobs in Snakemake's scheduler."""
    check({"downloads": 1}, "train", ["downloads"])


def test_resources_become_sbatch_options():
    """Snakemake's units (MB, minutes) arrive as submitit wants them; CPUs reach srun too."""
    asked = {
        "partition": "gpu",
        "gpus": "a100:1",
        "mem_mb": 64000,
        "runtime": 2880,
        "extra": "--nice=5 --exclusive",
    }
    params = parameters(asked, threads=8)
    assert params["partition"] == "gpu" and params["gpus_per_node"] == "a100:1"
    assert params["mem"] == "64000MB" and params["time"] == 2880
    assert params["cpus_per_task"] == 8 and params["srun_args"] == ["--cpus-per-task=8"]
    assert params["additional_parameters"] == {"nice": "5", "exclusive": True, "requeue": True}


@pytest.mark.parametrize("text", ["-p gpu", "--array=1-3", "--output=x", "gpu"])
def test_extra_options_that_would_break_the_executor_are_refused(text):
    """Short options, and what the executor sets itself."""
    with pytest.raises(WorkflowError, match="extra"):
        parse_extra(text)


def test_options_that_cannot_be_passed_on_are_refused_before_any_submission():
    """The check at the start reads the rule's `extra`, not only resource names."""
    check({"extra": "--reservation=r"}, "train", [])
    with pytest.raises(WorkflowError, match="--comment is set by the executor"):
        check({"extra": "--comment=x"}, "train", [])


def test_entry_without_a_job_id_is_found_by_its_token():
    """Killed between sbatch and writing the id down; in an array the element counts."""
    queue = {
        "8_0": Status("RUNNING", "", "t1"),
        "8_1": Status("RUNNING", "", "t1"),
        "9": Status("RUNNING", "", "t2"),
    }
    unknown = dataclasses.replace(ENTRY, job=None)
    assert find(dataclasses.replace(unknown, index=1), queue) == "8_1"
    assert find(dataclasses.replace(unknown, token="t2"), queue) == "9"
    assert find(dataclasses.replace(unknown, token="t3"), queue) is None


def test_job_id_of_another_life_of_slurm_is_not_taken_for_ours():
    """SLURM may have counted from 1 again: the token must agree."""
    assert find(ENTRY, {"7": Status("RUNNING", "", "t1")}) == "7"
    assert find(ENTRY, {"7": Status("RUNNING", "", "another")}) is None
    assert find(ENTRY, {"7": Status("COMPLETED", "", "t1")}) is None


def test_registry_forgets_only_its_own_submission(tmp_path):
    """A Snakemake that settles an old submission must not remove the newer one of another."""
    registry = Registry(tmp_path)
    registry.write(ENTRY)
    assert registry.read("key") == ENTRY and registry.entries() == [ENTRY]
    registry.remove(dataclasses.replace(ENTRY, token="older"))
    assert registry.read("key") == ENTRY
    registry.remove(ENTRY)
    assert registry.read("key") is None


@pytest.mark.parametrize("text", ["", '{"key": "key"}', '{"outputs": 3}', "[]"])
def test_damaged_registry_entry_stops_the_start(tmp_path, text):
    """Its job may be running: taking the file for 'no job' would train the cell twice."""
    registry = Registry(tmp_path)
    registry.write(ENTRY)
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(WorkflowError, match=r"key\.json: damaged"):
        registry.entries()


def test_requeued_job_is_watched_whatever_it_left_behind():
    """submitit may write an error while SLURM puts the job back: the queue is right."""
    for state in ("PENDING", "RUNNING", "COMPLETING"):
        assert verdict(Outcome(1, 85), Status(state, "BeginTime")).act == "watch"


def test_failing_program_is_reported_and_not_repeated():
    """Its own exit status, not the wrapper's."""
    found = verdict(Outcome(1, 3), Status("COMPLETED"))
    assert (found.act, found.why) == ("fail", "failed, exit status 3")


def test_program_that_stopped_on_request_is_submitted_again():
    """Exit status 85 with the job out of the queue: someone asked the trainer itself."""
    assert verdict(Outcome(1, 85), Status("COMPLETED")).act == "again"


@pytest.mark.parametrize("state", ["CANCELLED", "OUT_OF_MEMORY", "DEADLINE"])
def test_job_ended_on_purpose_is_not_repeated(state):
    """Nor is one that would end the same way again."""
    assert verdict(status=Status(state)).act == "fail"


def test_time_limits_are_counted():
    """Two are allowed here, the third is reported."""
    first = verdict(status=Status("TIMEOUT"))
    assert (first.act, first.entry.timeouts) == ("again", 1)
    assert verdict(status=Status("TIMEOUT"), entry=dataclasses.replace(ENTRY, timeouts=2)).act == "fail"


def test_lost_job_is_given_time_then_repeated_then_reported():
    """Its result may be late on a network file system; `failures` bounds the repeats."""
    assert verdict(status=None).act == "watch" and verdict(status=None).lost
    late = LOST_AFTER + 1
    again = verdict(status=Status("NODE_FAIL"), unseen=late)
    assert (again.act, again.entry.failures) == ("again", 1)
    assert verdict(unseen=late, entry=again.entry).act == "fail"


@pytest.mark.parametrize(
    ("reason", "act"),
    [
        ("PartitionTimeLimit", "cancel"),
        ("QOSMaxGRESPerJob", "cancel"),
        ("Resources", "watch"),
        ("QOSMaxJobsPerUserLimit", "watch"),
    ],
)
def test_only_what_can_never_run_is_given_up(reason, act):
    """A limit on one job never passes; one on all of a user's jobs does."""
    found = verdict(status=Status("PENDING", reason))
    assert found.act == act
    assert act == "watch" or reason in found.why


def test_last_error_line_is_the_programs_own(tmp_path):
    """Not the progress bar after it, not what the inner Snakemake says about it."""
    progress, output = tmp_path / "a.log", tmp_path / "7_0_log.err"
    progress.write_text("step 1/10\rstep 2/10\n")
    output.write_text(
        "Error of an earlier run\nSelect jobs to execute...\nTraceback:\nValueError: no good\n"
        "RuleException:\nCalledProcessError: exit status 1\n"
    )
    assert last_error_line([str(progress), str(output)]) == "ValueError: no good"
    assert last_error_line([str(progress)]) == "step 2/10"
    assert last_error_line([]) == "none"
