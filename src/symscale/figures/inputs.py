"""What `symscale analyse` wrote, with the look-ups that drawing needs. Nothing here fits."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from symscale.analysis import studies as answers
from symscale.analysis import tables
from symscale.analysis.laws import evaluate
from symscale.cells import TOKENS
from symscale.errors import UserError

TITLES = {
    "mpnn": "MPNN",
    "egnn": "EGNN",
    "gemnet": "GemNet-OC",
    "esen": "eSEN",
    "transformer": "Transformer",
}
LETTERS = {"alpha": "α", "beta": "β", "gamma": "γ", "kappa": "κ", "closed_form": "sum law", "L_inf": "L∞"}
ORDER = tuple(TITLES)  # unconstrained to high order, as the paper lists them


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The files of an analysis folder; `studies` is studies.json: name -> title, question, cells."""

    points: pd.DataFrame
    frontier: pd.DataFrame
    fits: dict[str, dict]  # name -> object of fits.json
    draws: pd.DataFrame
    comparisons: list[dict]
    sensitivity: pd.DataFrame
    words: list[str]
    options: dict
    studies: dict[str, dict]
    answers: dict[str, dict] = dataclasses.field(default_factory=dict)  # study -> object of answers.json

    def fit(self, law: str, group: str, x: str = "", variant: str = "") -> dict | None:
        """The fit if it was possible, else None."""
        found = self.record(law, group, x, variant)
        return found if found and found["status"] != "not fitted" else None

    def record(self, law: str, group: str, x: str = "", variant: str = "") -> dict | None:
        """The fit's object, fitted or not; None where the analysis did not try."""
        return self.fits.get(":".join(p for p in (law, group, x, variant) if p))

    def why_not(self, law: str, group: str, x: str = "", variant: str = "") -> str:
        """In words why there is no such fit."""
        record = self.record(law, group, x, variant)
        return "; ".join(record["diagnostics"]) if record else "the analysis holds no such fit"

    @property
    def groups(self) -> list[str]:
        return ordered(self.points["group"].unique())

    @property
    def plain(self) -> list[str]:
        """Groups without a suffix, one an architecture, that a study of exponents asks for; without studies every
        such group, and all groups where there is none."""
        names = set(self.points["arch"])
        plain = [g for g in self.groups if g in names]
        ladders = [s["cells"] for s in self.studies.values() if s.get("ask", "exponents") == "exponents"]
        asked = set(
            self.points.loc[self.points["cell"].isin({c for cells in ladders for c in cells}), "group"]
        )
        return [g for g in plain if g in asked] or plain or self.groups

    def said(self, study: str) -> list[str]:
        """The sentences and reservations of a study's answer, with titles for groups."""
        found = self.answers.get(study, {"sentences": [], "words": []})
        names = [*self.groups, *set(self.points["arch"])]
        sentences = (in_words(s, names) for s in (*found["sentences"], *found["words"]))
        return [f"{capital(s)}." for s in sentences]

    def arch(self, group: str) -> str:
        return str(self.points.loc[self.points["group"] == group, "arch"].iloc[0])

    def rows(self, group: str, kept: bool = True) -> pd.DataFrame:
        """Points of a group; `kept`: without the burn-in and unusable rows."""
        rows = self.points[self.points["group"] == group]
        return rows[rows["kept"]] if kept else rows

    def fitted_rows(self, group: str) -> pd.DataFrame:
        """Points that the sum law was fitted to (unsmoothed, where the analysis smoothed)."""
        rows = self.points[self.points["group"] == group]
        return rows[rows["in_sum_fit"]]

    def frontier_rows(self, group: str, x: str) -> pd.DataFrame:
        if not len(self.frontier):
            return self.frontier
        table = self.frontier
        return table[(table["group"] == group) & (table["x"] == x)].sort_values("budget")

    def band(self, fit: dict, line, *values) -> tuple[np.ndarray, np.ndarray] | None:
        """95 % band about `line` (n,) from the fit's draws of the law at `values`; None without a bootstrap.

        The run-residual bootstrap is read as a basic interval about its own median, the others by percentiles.
        """
        draws = self.draws_of(fit)
        if draws is None:
            return None
        params = {k: draws[k].to_numpy(float)[:, None] for k in fit["params"] if k in draws}
        with np.errstate(all="ignore"):
            logs = np.log(evaluate(params, *[np.asarray(v, float)[None] for v in values]))
        return log_band(logs, np.log(line), basic="basic" in fit["interval"])

    def draws_of(self, fit: dict) -> pd.DataFrame | None:
        """Draws behind the fit's interval; None where that is no bootstrap."""
        if "bootstrap" not in fit["interval"] or not len(self.draws):
            return None
        rows = self.draws[self.draws["fit"] == fit["name"]]
        return rows if len(rows) else None


def capital(sentence: str) -> str:
    """A capital first letter, but not of a name ('eSEN') or a parameter ('γ')."""
    if not sentence[:1].isascii() or sentence.startswith(tuple(TITLES.values())):
        return sentence
    return sentence[:1].upper() + sentence[1:]


def log_band(logs: np.ndarray, line: np.ndarray, basic: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """exp of the 2.5 and 97.5 % quantiles of draws logs (R, n), reflected about their median where `basic`."""
    logs = logs[np.isfinite(logs).all(axis=1)]
    if len(logs) < 10:
        return None
    low, middle, high = np.quantile(logs, [0.025, 0.5, 0.975], axis=0)
    if basic:
        low, high = line - (high - middle), line - (low - middle)
    return np.exp(low), np.exp(high)


def load(folder: str | Path, studies: str | Path | None = None) -> Analysis:
    """Read an analysis folder and, if given, studies.json. Raises UserError where a file is missing."""
    parts = tables.read(folder)
    document = parts["document"]
    named = {}
    if studies is not None:
        try:
            named = json.loads(Path(studies).read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"{studies}: not readable ({error})") from None
    return Analysis(
        parts["points"],
        parts["frontier"],
        {fit["name"]: fit for fit in document["fits"]},
        parts["draws"],
        parts["comparisons"],
        parts["sensitivity"],
        document["words"],
        document["options"],
        named,
        answers.read(folder),
    )


def ordered(groups: Iterable[str]) -> list[str]:
    """Known architectures first, in the paper's order; a plain group before its variants."""

    def key(group: str):
        arch = group.split("_")[0]
        return (ORDER.index(arch) if arch in ORDER else len(ORDER), arch, group.count("_"), group)

    return sorted(map(str, groups), key=key)


def fields_of(group: str) -> dict[str, str]:
    """Spec fields that a group's name sets: 'esen_l2' -> {'lmax': '2'}, a flag -> ''."""
    out = {}
    tokens = sorted(TOKENS.items(), key=lambda item: -len(item[1][0]))
    for token in group.split("_")[1:]:
        for field, (letters, kind, _) in tokens:
            rest = token.removeprefix(letters)
            fits = not rest if kind == "flag" else (rest or kind == "sym") and re.match(r"\d|$", rest)
            if token.startswith(letters) and (kind == "word" or fits):
                out[field] = (rest or "5") if kind == "sym" else rest + (" %" if kind == "percent" else "")
                break
        else:
            out[token] = ""
    return out


def title(group: str, siblings: Iterable[str] = (), points: pd.DataFrame | None = None) -> str:
    """'esen_l2' -> 'eSEN, lmax 2'. Beside siblings a plain group is 'eSEN, lmax 4' where lmax is all that they
    vary, else 'eSEN, default'."""
    arch, fields = group.split("_")[0], fields_of(group)
    others = [s for s in siblings if s != group and s.split("_")[0] == arch]
    if not fields and others:
        varied = {field for other in others for field in fields_of(other)}
        fields["default"] = ""
        field = next(iter(varied))
        if len(varied) == 1 and points is not None and field in points:
            values = points.loc[points["group"] == group, field].unique()
            if len(values) == 1 and str(values[0]) not in ("False", "0", "0.0"):
                fields = {field: "100 %" if field == "data_fraction" else str(values[0])}
    words = [f"{field.replace('_', ' ')} {value}".strip() for field, value in sorted(fields.items())]
    return ", ".join([TITLES.get(arch, arch), *words])


def in_words(sentence: str, groups: Iterable[str]) -> str:
    """A sentence of the analysis with titles for group names and letters for parameters."""
    for group in sorted(groups, key=len, reverse=True):
        name = title(group)
        first, _, rest = name.partition(", ")
        sentence = re.sub(
            rf"(?<![\w]){re.escape(group)}(?![\w])", f"{first} ({rest})" if rest else first, sentence
        )
    for name, letter in LETTERS.items():
        sentence = sentence.replace(name, letter)
    return sentence
