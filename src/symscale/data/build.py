"""From a dataset entry to a pack: stage, split, reference, shuffle, write. Killed at any point, it resumes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from symscale.data import chunks, pack
from symscale.data.checks import check_labels
from symscale.data.reference import ELEMENTS, LeastSquares, References
from symscale.data.shuffle import write_pack
from symscale.data.sources import source_module
from symscale.data.sources.schema import fingerprint, input_paths, missing_inputs, thresholds
from symscale.data.split import DROPPED, TRAIN, VAL, assign, duplicates, leakage
from symscale.data.stage import stage_all
from symscale.errors import UserError


def build_pack(entry: dict, out: str, processes: int | None = None) -> tuple[dict, bool]:
    """Make the pack of ``entry`` in the folder ``out`` ; returns its manifest and whether it was made now.

    A finished pack whose source is unchanged is returned at once; a changed source is packed again. Everything is
    prepared in ``<out>.partial`` and renamed at the end, so that ``out`` is whole or absent.

    Raises
    ------
    UserError
        Missing or unreadable input, a full disk, labels that fail the checks: naming the file and the fix.
    """
    if missing := missing_inputs(entry):
        raise UserError("; ".join(missing))
    source = fingerprint(entry)
    out = os.path.abspath(out)
    _refuse_foreign(out)
    if os.path.exists(os.path.join(out, "manifest.json")):
        with suppress(UserError):  # of an older format, or damaged: make it anew
            manifest = pack.read_manifest(out)
            if manifest["entry"] == entry and manifest["fingerprint"] == source:
                return manifest, False
        tqdm.write(f"{out}: its source or format has changed since it was packed; packing again")
    started = time.time()
    work = f"{out}.partial"
    with chunks.disk_errors(work):
        os.makedirs(work, exist_ok=True)
    with _lock(work):
        staging = _staging(work, entry, source)
        tasks = source_module(entry).tasks(entry)
        reports = stage_all(staging, entry, tasks, processes or os.cpu_count() or 1)
        stems, given = [], []
        for index, (task, report) in enumerate(zip(tasks, reports, strict=True)):
            stems += [os.path.join(staging, f"{index:06d}.{block:04d}") for block in range(report["chunks"])]
            given += [task.part] * report["chunks"]
        staged = Counter()
        for report in reports:
            staged.update(report["dropped"])
        if not sum(report["samples"] for report in reports):
            raise UserError(
                f"{' '.join(input_paths(entry)) or entry['source']}: no usable samples; dropped: {dict(staged)}"
            )
        names = [task.name for task in tasks]
        labels = check_labels(stems, names, entry)
        assign(stems, given, entry)
        references, stats = _references(stems, entry, staged)
        manifest = write_pack(stems, os.path.join(work, "pack"))
        manifest |= {
            "format": pack.FORMAT,
            "entry": entry,
            "fingerprint": source,
            "references": {str(z): float(references.values[z]) for z in np.flatnonzero(references.molecules)},
            **stats,
            "dropped": {reason: count for reason, count in staged.items() if count},
            "rare_elements": {str(z): n for z, n in references.rare_elements().items()},
            "undetermined_elements": references.undetermined_elements(),
            "leakage": leakage(stems),
            "duplicates": duplicates(stems),
            "labels": labels,
            "seconds": round(time.time() - started, 1),
        }
        manifest["content_hash"] = pack.content_hash(
            manifest["files"], manifest["references"], manifest["mu"], manifest["sigma"]
        )
        path = os.path.join(work, "pack", "manifest.json")
        with chunks.disk_errors(path), open(path, "w") as f:
            json.dump(manifest, f, indent=1)
        _install(os.path.join(work, "pack"), out)
        shutil.rmtree(work, ignore_errors=True)
    return manifest, True


@contextmanager
def _lock(work: str):
    with open(os.path.join(work, "lock"), "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{work}: another process is packing into it; wait for it or end it") from None
        yield


def _staging(work: str, entry: dict, source: dict) -> str:
    """The folder of chunk files; emptied if it is of another entry or source."""
    staging, state = os.path.join(work, "staging"), os.path.join(work, "source.json")
    now = json.dumps([pack.FORMAT, entry, source], sort_keys=True)
    before = open(state).read() if os.path.exists(state) else None
    if before != now:
        shutil.rmtree(staging, ignore_errors=True)
    with chunks.disk_errors(work):
        os.makedirs(staging, exist_ok=True)
        with open(f"{state}.tmp", "w") as f:
            f.write(now)
        os.replace(f"{state}.tmp", state)
    return staging


def _references(stems: list[str], entry: dict, dropped: Counter) -> tuple[References, dict]:
    """References, mu and sigma of the training part; marks outliers and unreferenced samples as dropped."""
    limits = thresholds(entry)
    if "max_force" in limits:
        for stem in stems:
            too_large = chunks.read_rows(stem)["max_force"] > limits["max_force"]
            dropped["force above max_force"] += _drop(stem, too_large)
    # Outliers are always told from least squares: given references, as of single atoms, may leave eV per atom
    fitted = _fit(stems)
    if "max_residual" in limits:
        mu, _ = _moments(stems, fitted)
        for stem in stems:
            outlier = _deviation(stem, fitted, mu) > limits["max_residual"]
            dropped["energy beyond max_residual"] += _drop(stem, outlier)
        fitted = _fit(stems)
    for stem in stems:
        unknown = (chunks.read_part(stem) == VAL) & ~fitted.determined(_composition(stem))
        dropped["validation composition that training does not determine"] += _drop(stem, unknown)
    for name, which in (("training", TRAIN), ("validation", VAL)):
        if not any((chunks.read_part(stem) == which).any() for stem in stems):
            raise UserError(f"no {name} samples are left; dropped: {dict(dropped)}")
    outliers, (mu, _) = Counter(), _moments(stems, fitted)
    for stem in stems:
        kept = chunks.read_part(stem) != DROPPED
        far = (_deviation(stem, fitted, mu) > 0.8)[kept]
        outliers["force above 20 eV/Angstrom"] += int((chunks.read_rows(stem)["max_force"][kept] > 20).sum())
        outliers["energy beyond 0.8 eV/atom"] += int(far.sum())
    references = _given(fitted, entry)
    mu, sigma = _moments(stems, references)
    if not sigma > 1e-9:
        raise UserError(
            "all referenced energies of the training part are equal, so sigma is 0: add more data"
        )
    return references, {"mu": mu, "sigma": sigma, "outliers": dict(outliers)}


def _drop(stem: str, which: np.ndarray) -> int:
    """Mark rows of a chunk as dropped; how many of them were not so before."""
    part = chunks.read_part(stem)
    fresh = which & (part != DROPPED)
    if fresh.any():
        part[fresh] = DROPPED
        chunks.write_part(stem, part)
    return int(fresh.sum())


def _fit(stems: list[str]) -> References:
    fit = LeastSquares()
    for stem in stems:
        train = chunks.read_part(stem) == TRAIN
        if train.any():
            fit.add(_composition(stem)[train], chunks.read_rows(stem)["energy"][train])
    if not fit.molecules.any():
        raise UserError("no training samples are left: loosen max_force, max_residual or validation")
    return fit.solve()


def _given(fitted: References, entry: dict) -> References:
    """The references that the entry gives in the place of the fitted ones."""
    if not (given := entry.get("references")):
        return fitted
    from ase.data import atomic_numbers, chemical_symbols

    values = np.zeros(ELEMENTS)
    for symbol, value in given.items():
        if symbol not in atomic_numbers:
            raise UserError(f"references: {symbol}: no such element")
        values[atomic_numbers[symbol]] = value
    present = [chemical_symbols[z] for z in np.flatnonzero(fitted.molecules)]
    if lacking := [symbol for symbol in present if symbol not in given]:
        raise UserError(f"references: no value for {', '.join(lacking)}, which the training part has")
    return replace(fitted, values=values)


def _composition(stem: str) -> np.ndarray:
    return chunks.composition(chunks.read_rows(stem), chunks.read_flat(stem, "z"))


def _deviation(stem: str, references: References, mu: float) -> np.ndarray:
    """(M,) how far energies of a chunk are from what the elements say, eV/atom."""
    rows = chunks.read_rows(stem)
    return np.abs(rows["energy"] - _composition(stem) @ references.values - mu) / rows["natoms"]


def _moments(stems: list[str], references: References) -> tuple[float, float]:
    """Mean and standard deviation (eV) of the training part's referenced energies."""
    count, mean, squares = 0, 0.0, 0.0
    for stem in stems:
        train = chunks.read_part(stem) == TRAIN
        if not train.any():
            continue
        x = chunks.read_rows(stem)["energy"][train] - _composition(stem)[train] @ references.values
        # Chan, Golub and LeVeque's update: no cancellation however large the mean
        delta = x.mean() - mean
        squares += np.square(x - x.mean()).sum() + delta**2 * count * len(x) / (count + len(x))
        mean += delta * len(x) / (count + len(x))
        count += len(x)
    return float(mean), float(np.sqrt(squares / max(count, 1)))


def _refuse_foreign(out: str) -> None:
    """UserError for a folder that holds anything a pack does not: it will be replaced as a whole."""
    if not os.path.isdir(out):
        return
    foreign = sorted(set(os.listdir(out)) - {"manifest.json", *pack.SPLITS})
    path = os.path.join(out, "manifest.json")
    if not foreign and os.path.exists(path):
        with suppress(ValueError), open(path) as f:  # a damaged manifest of ours may be replaced
            manifest = json.load(f)
            if not isinstance(manifest, dict) or "content_hash" not in manifest:
                foreign = ["manifest.json"]
    if foreign:
        raise UserError(
            f"{out}: exists and is not a pack (it holds {foreign[0]}); give another folder or remove it"
        )


def _install(folder: str, out: str) -> None:
    """Rename the finished pack to its name, in the place of what was there of an earlier one."""
    with chunks.disk_errors(out):
        if os.path.isdir(out):
            shutil.rmtree(out)
        os.rename(folder, out)
