"""Run a source's tasks in worker processes, each leaving chunk files and then a report that says it is done."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from symscale.data import chunks
from symscale.data.sources import Task, source_module
from symscale.errors import UserError

# Workers are processes: one thread each, and the same sums in the same order on every machine
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def stage_all(staging: str, entry: dict, tasks: list[Task], processes: int) -> list[dict]:
    """Stage every task that has no report yet; the reports in order of tasks.

    A report holds the number of chunks and samples and what was dropped. A task that was interrupted has none and
    is done again from its start.
    """
    reports = [_report(staging, index) for index in range(len(tasks))]
    todo = [index for index, report in enumerate(reports) if report is None]
    total = sum(task.samples for task in tasks)
    done = total - sum(tasks[index].samples for index in todo)
    if not todo:
        return reports
    unit = getattr(source_module(entry), "UNIT", "sample")
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        with tqdm(
            total=total,
            initial=done,
            desc=entry["source"],
            unit=unit,
            smoothing=0.05,
            mininterval=1 if sys.stderr.isatty() else 10,
        ) as bar:
            for index, report in _run(staging, entry, tasks, todo, min(processes, len(todo))):
                reports[index] = report
                bar.update(tasks[index].samples)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return reports


def _run(staging, entry, tasks, todo, processes):
    if processes == 1:
        for index in todo:
            yield index, stage(staging, index, entry, tasks[index])
        return
    # not fork: workers would inherit thread pools that do not survive one
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent)
    try:
        waiting = {pool.submit(stage, staging, index, entry, tasks[index]): index for index in todo}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            f"{entry['source']}: a worker process died (out of memory?); run again with fewer --processes: what was "
            "finished is kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _report(staging: str, index: int) -> dict | None:
    path = os.path.join(staging, f"{index:06d}.json")
    if not os.path.exists(path):
        return None
    with open(path) as f:
        return json.load(f)


def stage(staging: str, index: int, entry: dict, task: Task) -> dict:
    """Read one task, write its chunks, then its report."""
    report = {"chunks": 0, "samples": 0, "atoms": 0, "dropped": {}}
    for samples in source_module(entry).read(entry, task):
        for reason, count in samples.dropped.items():
            report["dropped"][reason] = report["dropped"].get(reason, 0) + count
        if len(samples.counts) == 0:
            continue
        rows, flat, dropped = chunks.clean(samples, entry.get("seed", 0), index)
        for reason, count in dropped.items():
            report["dropped"][reason] = report["dropped"].get(reason, 0) + count
        if len(rows):
            chunks.write_chunk(os.path.join(staging, f"{index:06d}.{report['chunks']:04d}"), rows, flat)
            report["chunks"] += 1
            report["samples"] += len(rows)
            report["atoms"] += len(flat["z"])
    path = os.path.join(staging, f"{index:06d}.json")
    with chunks.disk_errors(path), open(f"{path}.tmp", "w") as f:
        json.dump(report, f)
    os.replace(f"{path}.tmp", path)
    return report
