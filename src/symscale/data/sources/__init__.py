"""Where molecules come from: one module per source, imported only when it is used.

A source module has two functions:

``tasks(entry) -> list[Task]``
    Independent pieces of work, in a fixed order.
``read(entry, task) -> Iterator[Samples]``
    The samples of one piece, in blocks of bounded size, in eV and Angstrom. Runs in a worker process.

A new source is such a module, a line here, and what its entry may say in ``schema.py``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

SOURCES = {
    "xtb": "symscale.data.sources.xtb",
    "omol25": "symscale.data.sources.omol25",
    "files": "symscale.data.sources.files",
}


@dataclass(frozen=True)
class Task:
    """One piece of work of a source."""

    name: str  # what messages call it: a file, a range of molecules
    samples: int  # about how many, for progress
    part: str = ""  # "train" or "val" where the source decides, else ""
    payload: tuple = ()


def source_module(entry: dict) -> ModuleType:
    """The module of a dataset entry's source."""
    return importlib.import_module(SOURCES[entry["source"]])
