"""The executor: groups ready jobs into arrays, submits, watches, explains. See the package's docstring."""

import asyncio
import os
import re
import secrets
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.utils import format_cli_arg

from .clusters import CLUSTERS, ClusterError, Outcome, Status, find
from .job import SnakemakeJob
from .registry import Entry, Registry, entry_of, key_of, label, rules_of
from .resources import check, parameters
from .verdict import explain, judge

ARRAY_LIMIT = 500  # SLURM's default MaxArraySize is 1001


class Executor(RemoteExecutor):
    _pause = 1.0  # s to the next look at the jobs; here, as the watching thread starts before __post_init__

    def __post_init__(self) -> None:
        settings = self.workflow.executor_settings
        self.settings = settings
        self.cluster = CLUSTERS[settings.cluster](settings.timeout_retries)
        self.logdir = Path(settings.logdir).absolute()
        self.registry = Registry(self.logdir / "registry")
        self.watched: dict[str, Entry] = {}  # by key: all that is submitted and not yet settled
        self._told: set[tuple[str, str]] = set()
        self._unseen: dict[str, float] = {}
        self._last_query = 0.0
        for rule in {rule.name: rule for job in self.dag.needrun_jobs() for rule in rules_of(job)}.values():
            check(rule.resources, rule.name, self.workflow.global_resources.keys())
        try:
            self._tidy()
        except ClusterError as error:
            message = f"{self.cluster.name} cannot be asked, so nothing is submitted: {error}"
            raise WorkflowError(message) from error

    def _tidy(self) -> None:
        """Ask the cluster what is left of earlier starts, and forget what has ended."""
        with self.registry.locked():
            entries = self.registry.entries()
            queue = self.cluster.queue(entries)
            for entry in entries:
                if not find(entry, queue):
                    self.registry.remove(entry)
        if left := len(self.registry.entries()):
            self.logger.info(f"{left} {self.cluster.name} jobs of an earlier start are still there")

    # -- the command of a job ------------------------------------------------------------------------------

    def get_job_args(self, job: Any) -> str:
        """Without the base class's temporary folder, which is gone when a requeued job starts again."""
        files = list(job.get_wait_for_files())
        if len(files) <= 20:
            return f"{RealExecutor.get_job_args(self, job)} {format_cli_arg('--wait-for-files', files)}"
        listing = self.logdir / "inputs" / f"{key_of(job)}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("\n".join(map(str, files)) + "\n")
        return f"{RealExecutor.get_job_args(self, job)} {format_cli_arg('--wait-for-files-file', listing)}"

    def additional_general_args(self) -> str:
        """The inner Snakemake reads no profile (it might submit again) and has but one job to schedule."""
        return "--executor local --profile none --workflow-profile none --scheduler greedy"

    def format_job_exec(self, job: Any) -> str:
        """Without the outer Snakemake's cache folder, which is gone when a requeued job outlives it."""
        return re.sub(r"--runtime-source-cache-path \S+", "", super().format_job_exec(job))

    # -- submission ----------------------------------------------------------------------------------------

    def run_job(self, job: Any) -> None:
        self.run_jobs([job])

    def run_jobs(self, jobs: list[Any]) -> None:
        """Attach to what already runs, submit the rest: jobs of one rule and equal resources as an array."""
        for job in jobs:
            self.run_job_pre(job)
        with self.registry.locked():
            try:
                known = [(job, self.registry.read(key_of(job))) for job in jobs]
                queue = self.cluster.queue([entry for _, entry in known if entry])
            except ClusterError as error:
                for job in jobs:
                    message = f"{self.cluster.name} cannot be asked, so nothing is submitted: {error}. "
                    self.report_job_error(SubmittedJobInfo(job), msg=message)
                return
            batches = defaultdict(list)
            for job, entry in known:
                running = entry and find(entry, queue)
                if running:
                    self._attach(job, replace(entry, job=running))
                else:
                    params = parameters(job.resources, job.threads)
                    batches[job.name, repr(params)].append((job, entry_of(job), params))
            for batch in batches.values():
                for start in range(0, len(batch), ARRAY_LIMIT):
                    self._submit(batch[start : start + ARRAY_LIMIT])

    def _attach(self, job: Any, entry: Entry) -> None:
        if entry.params != entry_of(job).params:
            message = (
                f"{self.cluster.name} job {entry.job} still makes {', '.join(entry.outputs)} with other params;"
                f" cancel it (scancel {entry.job}) or restore them. "
            )
            self.report_job_error(SubmittedJobInfo(job, entry.job), msg=message)
            return
        self.registry.write(entry)
        self.logger.info(
            f"Watching {self.cluster.name} job {entry.job} again, which makes {entry.outputs[0]}"
        )
        self._watch(job, entry)

    def _submit(
        self, batch: list[tuple[Any, Entry, dict[str, Any]]], again: bool = False
    ) -> list[SubmittedJobInfo]:
        """Submit jobs of equal resources; the registry knows of them before the cluster does."""
        token = f"snakemake-{secrets.token_hex(8)}"
        first, _, params = batch[0]
        name = first.name if len(batch) > 1 or first.is_group() else label(first)
        folder = self.logdir / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{token[-4:]}"
        grace = max(10.0, params["signal_delay_s"] - 5.0)
        submissions, entries = [], []
        for index, (job, entry, _) in enumerate(batch):
            index = index if len(batch) > 1 else None
            entries.append(replace(entry, token=token, index=index, folder=str(folder), job=None))
            submissions.append(SnakemakeJob(self.format_job_exec(job), os.getcwd(), grace))
            self.registry.write(entries[-1])
            self.watched[entry.key] = entries[-1]
        try:
            ids = self.cluster.submit(submissions, params | {"job_name": name}, folder, token)
        except ClusterError as error:
            ids = self._submitted_after_all(entries)
            if not ids:
                for (job, _, _), entry in zip(batch, entries, strict=True):
                    self.watched.pop(entry.key)
                    if ids is not None:  # else it may be there: the next start asks again, by the token
                        self.registry.remove(entry)
                    self.report_job_error(SubmittedJobInfo(job), msg=f"Not submitted: {error} ")
                return []
        infos = []
        for (job, _, _), entry, cluster_id in zip(batch, entries, ids, strict=True):
            entry = entry.with_job(cluster_id)
            self.registry.write(entry)
            infos.append(self._watch(job, entry, report=not again))
        what = f"array of {len(ids)}, {ids[0]} ... {ids[-1]}" if len(ids) > 1 else f"job {ids[0]}"
        self.logger.info(f"Submitted {name} as {self.cluster.name} {what}; logs in {folder}")
        self._pause = 1.0
        return infos

    def _submitted_after_all(self, entries: list[Entry]) -> list[str] | None:
        """Ids of jobs in the queue although their submission failed (sbatch timed out); None: nobody can tell."""
        try:
            queue = self.cluster.queue(entries)
        except ClusterError:
            return None
        found = [find(entry, queue) for entry in entries]
        return found if all(found) else []

    def _watch(self, job: Any, entry: Entry, report: bool = True) -> SubmittedJobInfo:
        self.watched[entry.key] = entry
        info = SubmittedJobInfo(job, entry.job, aux={"entry": entry})
        if report:
            self.report_job_submission(info)
        return info

    def _settle(self, entry: Entry) -> None:
        self.watched.pop(entry.key, None)
        self.registry.remove(entry)

    # -- watching ------------------------------------------------------------------------------------------

    async def sleep(self) -> None:
        """In slices, so that neither the end of Snakemake nor a job just submitted waits for a long pause."""
        start = time.monotonic()
        while self.wait and time.monotonic() - start < self._pause:
            await asyncio.sleep(0.2)

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]):
        """Result files are looked at often, the queue at most every `poll_interval` s or when a job failed."""
        if not active_jobs:
            return
        pending, asking = [], time.monotonic() - self._last_query >= self.settings.poll_interval
        for info in active_jobs:
            outcome = self.cluster.outcome(info.aux["entry"])
            if outcome and outcome.returncode == 0:
                self._settle(info.aux["entry"])
                self.report_job_success(info)
                self._pause = 0.5
            else:
                pending.append((info, outcome))
                asking = asking or outcome is not None
        self._pause = min(self._pause * 1.2, self.settings.poll_interval)
        if not pending or not asking:
            for info, _ in pending:
                yield info
            return
        try:
            queue = self.cluster.queue([info.aux["entry"] for info, _ in pending])
            self._last_query = time.monotonic()
        except ClusterError as error:  # the jobs go on without us: keep on asking
            self.logger.warning(f"{self.cluster.name} cannot be asked ({error}); asking again")
            for info, _ in pending:
                yield info
            return
        ended = [i.external_jobid for i, o in pending if o is None and i.external_jobid not in queue]
        queue |= self.cluster.accounting(ended) if ended else {}
        for info, outcome in pending:
            following = self._act(info, outcome, queue.get(info.external_jobid))
            if following:
                yield following

    def _act(
        self, info: SubmittedJobInfo, outcome: Outcome | None, status: Status | None
    ) -> SubmittedJobInfo | None:
        """What to watch from now on: the same job, its successor, or None when it is settled."""
        entry: Entry = info.aux["entry"]
        outcome = outcome or self.cluster.outcome(entry)  # it may have ended after the last look
        now = time.monotonic()
        unseen = now - self._unseen.get(entry.key, now)
        retries = self.settings.timeout_retries, self.settings.failure_retries
        verdict = judge(entry, outcome, status, unseen, *retries)
        if verdict.lost:
            self._unseen.setdefault(entry.key, now)
            self._last_query = 0.0
        else:
            self._unseen.pop(entry.key, None)
        if verdict.act == "again":
            return self._again(info, verdict.entry, verdict.why)
        if verdict.act == "watch":
            if verdict.why and (entry.rule, verdict.why) not in self._told:
                self._told.add((entry.rule, verdict.why))
                self.logger.info(f"{self.cluster.name} job {entry.job} {verdict.why}")
            return info
        if verdict.act == "cancel":
            self._cancel_ids([entry.job])
        self._settle(entry)
        rule_logs = [str(log) for log in info.job.log]
        message, logs = explain(self.cluster.name, entry, verdict.why, status, rule_logs)
        self.report_job_error(info, msg=message, aux_logs=logs)
        return None

    def _again(self, info: SubmittedJobInfo, entry: Entry, why: str) -> SubmittedJobInfo | None:
        self.logger.info(f"{self.cluster.name} job {entry.job} {why}: submitting it again")
        with self.registry.locked():
            infos = self._submit(
                [(info.job, entry, parameters(info.job.resources, info.job.threads))], again=True
            )
        return infos[0] if infos else None

    # -- the end -------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Ctrl-C: cancel all that is watched, also what was being submitted at that moment, unless kept."""
        if self.watched and not self.settings.keep_on_interrupt:
            self.cancel_jobs([])
        elif self.watched:
            self.logger.info(f"{len(self.watched)} jobs run on; start Snakemake again to watch them")
        self.shutdown()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """All watched jobs: the base class's list is empty while their states are being asked."""
        entries = list(self.watched.values())
        try:
            queue = self.cluster.queue(entries)
            ids = [job for entry in entries if (job := find(entry, queue))]
            if ids:
                self.cluster.cancel(ids)
        except ClusterError as error:
            kept = ", ".join(entry.job or entry.token for entry in entries)
            self.logger.error(f"Not cancelled, {self.cluster.name} cannot be asked ({error}): {kept}")
            return
        self.logger.info(
            f"Cancelled {len(ids)} {self.cluster.name} jobs; started again, they go on where they were"
        )
        for entry in entries:
            self._settle(entry)

    def _cancel_ids(self, ids: list[str]) -> None:
        try:
            self.cluster.cancel(ids)
        except ClusterError as error:
            self.logger.warning(f"could not cancel {', '.join(ids)}: {error}")
