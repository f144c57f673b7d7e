"""Snakemake executor plugin: every job a submitit job, on SLURM or on this machine.

    snakemake --executor submitit --submitit-cluster slurm|local|debug ...

The Snakefile names nothing of the cluster; resources do (see resources.py). A job is entered in a registry on
disk before it is submitted, so Snakemake may be killed and started again at any time: jobs still in the queue are
watched again, not submitted again.
"""

from dataclasses import dataclass, field
from pathlib import Path

from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

from .executor import Executor

__all__ = ["Executor", "ExecutorSettings", "common_settings"]

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=True,
    auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=0,
    pass_group_args=True,
)


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    cluster: str = field(
        default="slurm",
        metadata={
            "help": "Where jobs run: slurm, local (processes of this machine) or debug (inside Snakemake).",
            "choices": ["slurm", "local", "debug"],
        },
    )
    logdir: Path = field(
        default=Path("logs/submitit"),
        metadata={"help": "Folder of scripts, logs and the registry; on a file system that all nodes see."},
    )
    poll_interval: int = field(
        default=30,
        metadata={"help": "Most seconds between two queries of the queue (one squeue for all jobs)."},
    )
    keep_on_interrupt: bool = field(
        default=False,
        metadata={"help": "Let jobs run on after Ctrl-C; the next start watches them again."},
    )
    timeout_retries: int = field(
        default=50,
        metadata={"help": "How often a job that reached its time limit goes on (a requeue each time)."},
    )
    failure_retries: int = field(
        default=2,
        metadata={"help": "How often a job that the cluster lost (not one that failed) is submitted again."},
    )
