"""Rule resources -> submission parameters. Names of Snakemake's own (mem, runtime) keep Snakemake's meaning."""

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError

VALID = {
    "partition": "partition to run in",
    "account": "account to charge",
    "qos": "quality of service",
    "gpus": 'GPUs: a number, or type and number ("a100:1")',
    "gres": 'other generic resources ("gpu:a100:1")',
    "constraint": 'node features ("a100", "a100&nvlink")',
    "cpus": "CPUs; default: the rule's threads",
    "mem": 'memory ("64GB"); also mem_mb, mem_mib, in MB, MiB',
    "runtime": 'time limit ("2d", "12h", minutes), default 1d; longer work is requeued and goes on',
    "signal_delay": "seconds before the limit at which a job is asked to save; default 90",
    "nodelist": "nodes to use",
    "exclude": "nodes to avoid",
    "extra": 'any other sbatch options ("--reservation=r --exclusive")',
}
SNAKEMAKE = {"_cores", "_nodes", "tmpdir", "mem_mb", "mem_mib", "disk", "disk_mb", "disk_mib"}
OURS = {
    "output",
    "error",
    "open-mode",
    "array",
    "comment",
    "signal",
    "requeue",
    "no-requeue",
    "job-name",
    "wrap",
}
SIGNAL_DELAY = 90
RUNTIME = 24 * 60


def check(resources: Mapping[str, Any], rule: str, counted: Iterable[str]) -> None:
    """WorkflowError for names no cluster parameter answers to, and for `extra` options that cannot be passed on.

    `counted` are the names of --resources, which Snakemake's scheduler counts. Values may still be functions.
    """
    unknown = sorted(set(resources) - VALID.keys() - SNAKEMAKE - set(counted))
    if unknown:
        valid = "\n".join(f"  {name:<13}{text}" for name, text in VALID.items())
        raise WorkflowError(f"rule {rule}: unknown resource(s) {', '.join(unknown)}; valid ones are\n{valid}")
    extra = getattr(resources.get("extra"), "raw", resources.get("extra"))  # Snakemake wraps a rule's values
    if isinstance(extra, str):
        parse_extra(extra)


def parse_extra(text: str) -> dict[str, Any]:
    """'--a=1 --b' -> {'a': '1', 'b': True}; WorkflowError for what is no long option or is set by the plugin."""
    options: dict[str, Any] = {}
    for word in shlex.split(text):
        match = re.fullmatch(r"--([a-z][a-z0-9-]*)(?:=(.*))?", word)
        if not match:
            raise WorkflowError(
                f"resource extra={text!r}: {word!r} is not of the form --name or --name=value"
            )
        name, value = match.groups()
        if name in OURS:
            raise WorkflowError(f"resource extra={text!r}: --{name} is set by the executor itself")
        options[name] = True if value is None else value
    return options


def parameters(resources: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Parameters of submitit's SlurmExecutor for one job.

    Memory in MB, `time` in minutes. Options left out are left to the cluster's own defaults.
    """
    get = resources.get
    cpus = int(get("cpus", max(1, threads)))
    params: dict[str, Any] = {
        key: str(get(key))
        for key in ("partition", "account", "qos", "constraint", "gres", "nodelist", "exclude")
        if get(key)
    }
    if get("gpus"):
        params["gpus_per_node"] = get("gpus")
    params["cpus_per_task"] = cpus
    params["srun_args"] = [f"--cpus-per-task={cpus}"]  # since SLURM 22.05 srun does not ask sbatch
    if isinstance(get("mem_mb"), int):
        params["mem"] = f"{get('mem_mb')}MB"
    params["time"] = int(get("runtime", RUNTIME))
    params["signal_delay_s"] = int(get("signal_delay", SIGNAL_DELAY))
    params["additional_parameters"] = parse_extra(str(get("extra", ""))) | {"requeue": True}
    return params
