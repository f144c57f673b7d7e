"""Tables of the report: exponents beside the published ones, comparisons, sensitivity."""

from __future__ import annotations

import math

import pandas as pd

from symscale.analysis.paper import TABLE1, TABLE7
from symscale.figures.inputs import Analysis, in_words, ordered, title

METHODS = (
    ("frontier", "", "frontier, eq. (4)"),
    ("frontier", "uncensored", "frontier, uncensored budgets"),
    ("closed_form", "", "sum law, eq. (7)"),
)
NOT_FITTED = (None,) * 5


def frontier_rows(a: Analysis, x: str) -> list[dict]:
    """Table 1 in C (or its like in H): gamma and F of every group by both methods, published values beside."""
    rows = []
    for group in a.groups:
        for law, variant, method in METHODS:
            record = a.record(law, group, x, variant)
            if record is None:
                continue
            published = TABLE1.get(group, {}).get("sum" if law == "closed_form" else "frontier", {})
            if x != "C" or variant:
                published = {}
            for name in ("gamma", "F"):
                row = _row(a, record, name, f"{'γ' if name == 'gamma' else 'F'}_{x.lower()}", method)
                rows.append(row | {"paper": published.get(name)})
    return rows


def sum_rows(a: Analysis) -> list[dict]:
    """Table 7: log10 A, log10 B, alpha, beta (and L_inf where it was fitted)."""
    rows = []
    for group in a.groups:
        record = a.record("sum", group)
        if record is None:
            continue
        names = ["A", "B", "alpha", "beta"] + (["E"] if str(a.options.get("linf", 0)) == "free" else [])
        for name in names:
            key = f"log10{name}" if name in "AB" else name
            label = {"A": "log10 A", "B": "log10 B", "E": "L∞"}.get(name, in_words(name, []))
            row = _row(a, record, name, label, "sum law, eq. (5)", log=name in "AB")
            rows.append(row | {"paper": TABLE7.get(group, {}).get(key)})
    return rows


def _row(a: Analysis, record: dict, name: str, label: str, method: str, log: bool = False) -> dict:
    p = record["params"].get(name)
    values = [p[k] for k in ("value", "lo", "hi", "naive_lo", "naive_hi")] if p else list(NOT_FITTED)
    if log:
        values = [math.log10(v) if v is not None and v > 0 else None for v in values]
    return {
        "group": record["group"],
        "plain": record["group"] in a.plain,
        "title": title(record["group"]),
        "parameter": label,
        "method": method,
        **dict(zip(("value", "lo", "hi", "naive_lo", "naive_hi"), values, strict=True)),
        "interval": record["interval"],
        "status": record["status"],
        "words": flags(record),
    }


def flags(record: dict) -> str:
    """What a reader must see beside the number: why it is flagged or missing, '' for a sound one."""
    if record["status"] == "ok":
        return ""
    return f"{record['status']}: {'; '.join(record['diagnostics'])}"


def diagnostics(a: Analysis) -> list[dict]:
    """Fits with words, flagged first; fits of one group that say the same are one entry."""
    merged: dict[tuple, list[str]] = {}
    for fit in a.fits.values():
        if fit["diagnostics"]:
            where = " ".join(
                p for p in (in_words(fit["law"], []), fit["x"] and f"in {fit['x']}", fit["variant"]) if p
            )
            merged.setdefault((fit["status"], fit["group"], tuple(fit["diagnostics"])), []).append(where)
    rank = {"not fitted": 1, "flagged": 0, "ok": 2}
    order = ordered({group for _, group, _ in merged})
    found = sorted(merged.items(), key=lambda item: (rank[item[0][0]], order.index(item[0][1])))
    return [
        {
            "status": status,
            "title": title(group),
            "fits": ", ".join(fits),
            "words": list(words),
        }
        for (status, group, words), fits in found
    ]


def comparisons(a: Analysis) -> list[dict]:
    """Rows of comparisons.json with titles."""
    return [
        c
        | {
            "what": in_words(c["what"], []),
            "first": title(c["first"]),
            "second": title(c["second"]) if c["second"] else "",
            "verdict": in_words(c["verdict"], a.groups),
        }
        for c in a.comparisons
    ]


def sensitivity(a: Analysis) -> tuple[list[str], list[dict]]:
    """Columns (exponents) and a row a group and setting."""
    table = a.sensitivity
    if not len(table):
        return [], []
    table = table[table["group"].isin(a.plain)]
    name = (
        table["parameter"].map(lambda v: in_words(v, []))
        + " ("
        + table["law"].map(lambda v: in_words(v, []))
        + ")"
    )
    table = table.assign(column=name)
    columns = list(dict.fromkeys(table["column"]))
    rows = []
    for group in ordered(table["group"].unique()):
        mine = table[table["group"] == group]
        for (setting, value), part in mine.groupby(["setting", "value"], sort=False):
            found = dict(zip(part["column"], part["estimate"], strict=True))
            rows.append(
                {
                    "title": title(group),
                    "setting": f"{setting} = {value}",
                    "values": [found.get(c) for c in columns],
                }
            )
    return columns, rows


def censored(frontier: pd.DataFrame, group: str, x: str = "C") -> float | None:
    """Share of a frontier's budgets whose optimum lies outside the ladder or the data."""
    if not len(frontier):
        return None
    rows = frontier[(frontier["group"] == group) & (frontier["x"] == x)]
    return float(rows["censored"].mean()) if len(rows) else None
