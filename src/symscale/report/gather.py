"""What a report says about the runs: cells with status and cost, data, code. Reads a results folder, nothing else."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

from symscale.curves import read_curve
from symscale.errors import UserError

PFLOP = 1e15
# fields of a spec that a reader asks for first; the rest are in each cell.json
SETTINGS = ("dataset", "depth", "lmax", "mmax", "base_width", "lr", "mup", "batch_size", "epochs", "data_fraction",
            "cutoff", "max_neighbors", "symmetry_samples", "augment", "precision", "seed")  # fmt: skip
ONLY = {"lmax": ("esen",), "mmax": ("esen",)}  # every spec has these fields, but no other model reads them


def read_studies(results: Path) -> dict[str, dict]:
    """studies.json with every key that the page asks for; empty where there is none. Raises UserError where it is
    not JSON."""
    path = results / "studies.json"
    if not path.exists():
        return {}
    try:
        studies = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); delete it and run again") from None
    return {name: {"title": name, "question": "", "paper": ""} | entry for name, entry in studies.items()}


def cells(results: Path, studies: dict[str, dict]) -> list[dict]:
    """One record a cell, of every study and every folder: also of those whose curve is missing or not whole."""
    names = dict.fromkeys(name for study in studies.values() for name in study["cells"])
    names |= dict.fromkeys(sorted(p.parent.name for p in results.glob("*/cell.json")))
    names |= dict.fromkeys(sorted(p.parent.name for p in results.glob("*/curve.parquet")))
    return [_cell(results / name, [s for s in studies if name in studies[s]["cells"]]) for name in names]


def _cell(folder: Path, studies: list[str]) -> dict:
    document, problem = _document(folder / "cell.json")
    record = {"name": folder.name, "studies": studies, "spec": document.get("spec", {}), "meta": {}}
    record |= {"data": document.get("data"), "status": "done", "words": [problem] if problem else []}
    curve = folder / "curve.parquet"
    if not curve.exists():
        return record | {"status": "curve missing"}
    try:
        rows, meta = read_curve(curve)
    except UserError as error:
        return record | {"status": "unreadable", "words": [str(error)]}
    record |= {"meta": meta, "spec": meta["spec"]}
    if document.get("hash") not in (None, meta.get("spec_hash")):
        record["words"].append("trained with another spec than cell.json says")
    if not len(rows):
        return record | {"status": "no rows"}
    last = rows.iloc[-1]
    total = int(meta.get("total_steps") or last["step"])
    record |= {
        "N": int(meta["N"]),
        "steps": int(last["step"]),
        "total_steps": total,
        "loss": _finite(last["val_loss"]),
        "energy_mae": _finite(last["val_energy_mae"]),
        "force_mae": _finite(last["val_force_mae"]),
        "D": int(last["atoms"]),
        "C": float(last["flops"]) / PFLOP,
        "H": float(last["device_hours"]),
        "restarts": int(meta.get("restarts") or 0),
        "preemptions": int(meta.get("preemptions") or 0),
    }
    if record["loss"] is None:
        record["status"] = "loss not finite"
    elif record["steps"] < total:
        record["status"] = "ended early"
    return record


def _document(path: Path) -> tuple[dict, str]:
    """cell.json, and a word where it is there and cannot be read."""
    try:
        return json.loads(path.read_text()), ""
    except FileNotFoundError:
        return {}, ""
    except (OSError, json.JSONDecodeError):
        return {}, "cell.json is not readable"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def settings(records: list[dict], plain: set[str]) -> tuple[list[str], list[dict]]:
    """Fields, and for each architecture its ladder and the settings of its plain cells."""
    by_arch: dict[str, list[dict]] = {}
    for record in records:
        if record["name"] in plain and record["spec"]:
            by_arch.setdefault(record["spec"]["arch"], []).append(record["spec"])
    rows = []
    for arch, specs in by_arch.items():
        row = {"arch": arch, "widths": ", ".join(str(w) for w in sorted({s["width"] for s in specs}))}
        for field in SETTINGS:
            values = list(dict.fromkeys(str(s[field]) for s in specs if field in s))
            row[field] = "–" if arch not in ONLY.get(field, (arch,)) else ", ".join(values)
        rows.append(row)
    columns = [f for f in SETTINGS if any(row.get(f) not in ("", "–", "False", "None", None) for row in rows)]
    return columns, rows


def provenance(records: list[dict]) -> tuple[list[tuple[str, str]], list[str]]:
    """What made the curves, (label, words) with counts where cells differ, and warnings."""
    counts: dict[str, Counter] = {}
    for record in records:
        meta = record["meta"]
        if not meta:
            continue
        values = {
            "code commit": meta.get("git_commit") or "not in a git checkout",
            "device": meta.get("device"),
        }
        values |= dict(sorted(meta.get("versions", {}).items()))
        if meta.get("sigma") is not None:
            values["sigma (eV)"] = f"{meta['sigma']:.6g}"
        values["data hash"] = meta.get("data_hash")
        for label, value in values.items():
            counts.setdefault(label, Counter())[str(value)] += 1
    lines = []
    for label, found in counts.items():
        several = len(found) > 1
        lines.append(
            (label, "; ".join(f"{v} ({n} cells)" if several else v for v, n in sorted(found.items())))
        )
    words = []
    for label, what in (
        ("device", "hours do not compare"),
        ("code commit", "results may differ by more than the cell"),
    ):
        if len(counts.get(label, ())) > 1:
            words.append(f"cells were made with {len(counts[label])} values of '{label}': {what}")
    dirty = sum(n for v, n in counts.get("code commit", {}).items() if v.endswith("+"))
    if dirty:
        words.append(f"{dirty} cells were made from a checkout with uncommitted changes (commit marked +)")
    return lines, words


def packs(records: list[dict]) -> tuple[list[dict], list[str]]:
    """The packs that cells were trained on: path, lines in words; and warnings where a pack is not the one used."""
    from symscale.data.info import summary
    from symscale.data.pack import read_manifest

    out, words = [], []
    for path in dict.fromkeys(r["data"] for r in records if r["data"]):
        hashes = {r["meta"].get("data_hash") for r in records if r["data"] == path and r["meta"]}
        if not (Path(path) / "manifest.json").exists():
            out.append(
                {"path": path, "lines": ["not on this machine: known from the curves only"], "hash": None}
            )
            continue
        try:
            manifest = read_manifest(path)
            out.append(
                {"path": path, "lines": summary(manifest).splitlines(), "hash": manifest["content_hash"]}
            )
        except (UserError, KeyError) as error:
            out.append({"path": path, "lines": [f"manifest not readable: {error}"], "hash": None})
            continue
        if hashes - {manifest["content_hash"], "simulated"}:
            words.append(
                f"{path}: curves were trained on a pack of another content hash than this folder has now"
            )
    return out, words


def is_simulated(records: list[dict]) -> bool:
    """Whether any curve was drawn from a law instead of trained."""
    return any(r["meta"].get("device") == "simulated" for r in records)
