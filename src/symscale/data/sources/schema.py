"""What a dataset entry of the config may say, where its pack goes, and what it needs. Stdlib only."""

from __future__ import annotations

import hashlib
import json
import os

ENERGY_UNITS = ["eV", "meV", "Hartree", "kcal/mol", "kJ/mol", "Rydberg"]
LENGTH_UNITS = ["Angstrom", "Bohr", "nm"]
FORCE_UNITS = [
    "eV/Angstrom",
    "meV/Angstrom",
    "Hartree/Bohr",
    "Hartree/Angstrom",
    "kcal/mol/Angstrom",
    "kJ/mol/nm",
]

_COMMON = {
    "source": {"description": "Where the molecules come from.", "enum": ["xtb", "omol25", "files"]},
    "validation": {
        "description": "Held-out part: a share of the molecules (below 1) or a number of them (a whole number).",
        "type": "number",
        "exclusiveMinimum": 0,
        "if": {"minimum": 1},
        "then": {"type": "integer"},
    },
    "split": {
        "description": "molecule: all frames of a molecule on one side; formula: all isomers; random: by frame.",
        "enum": ["molecule", "formula", "random"],
    },
    "seed": {
        "description": "Seed of molecules, split, shuffle.",
        "type": "integer",
        "minimum": 0,
        "maximum": 2**32,
    },
    "references": {
        "description": "eV per element, e.g. {H: -16.0, C: -1037.1}. Default: least squares on the training part.",
        "type": "object",
        "propertyNames": {"pattern": "^[A-Z][a-z]?$"},
        "additionalProperties": {"type": "number"},
        "minProperties": 1,
    },
    "max_force": {
        "description": "Drop molecules with an atomic force above this, eV/Angstrom.",
        "type": "number",
        "exclusiveMinimum": 0,
    },
    "max_residual": {
        "description": "Drop molecules whose energy per atom is further than this from least squares on the "
        "elements, eV/atom.",
        "type": "number",
        "exclusiveMinimum": 0,
    },
}
_LABELS_CHECK = {
    "check": {
        "description": "Compare forces with GFN2-xTB: refuse wrong signs and units, only warn, or do not look.",
        "enum": ["refuse", "warn", "off"],
    }
}

_SOURCES = {
    "xtb": {
        "required": ["source", "molecules"],
        "properties": {
            **_COMMON,
            "molecules": {"description": "Molecules to make.", "type": "integer", "minimum": 2},
            "frames": {
                "description": "Geometries of each molecule (default 4), every 40 fs of its dynamics.",
                "type": "integer",
                "minimum": 1,
                "maximum": 1000,
            },
        },
    },
    "omol25": {
        "required": ["source", "train"],
        "properties": {
            **_COMMON,
            **_LABELS_CHECK,
            "train": {"description": "Folder of .aselmdb shards.", "type": "string", "minLength": 1},
            "val": {"description": "Folder of validation shards.", "type": "string", "minLength": 1},
            "neutral": {
                "description": "Keep charge 0, spin 1 and the six neutral organic data_ids (for the full set).",
                "type": "boolean",
            },
        },
    },
    "files": {
        "required": ["source", "path"],
        "properties": {
            **_COMMON,
            **_LABELS_CHECK,
            "path": {
                "description": "A file ASE reads, an .npz, or a folder.",
                "type": "string",
                "minLength": 1,
            },
            "val": {"description": "The same, for validation.", "type": "string", "minLength": 1},
            "energy": {"description": "Key of the energy (default energy).", "type": "string"},
            "forces": {"description": "Key of the forces (default forces).", "type": "string"},
            "positions": {"description": "npz: key of the positions (default pos).", "type": "string"},
            "numbers": {"description": "npz: key of the atomic numbers (default z).", "type": "string"},
            "molecule": {
                "description": "Key of a molecule's name or number (default: the order of the elements).",
                "type": "string",
            },
            "gradients": {
                "description": "True: the 'forces' are +gradients and change sign.",
                "type": "boolean",
            },
            "units": {
                "description": "Units of the file (default eV, Angstrom and energy/length).",
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "energy": {"description": "Unit of energies.", "enum": ENERGY_UNITS},
                    "length": {"description": "Unit of positions.", "enum": LENGTH_UNITS},
                    "forces": {"description": "Unit of forces, if not energy/length.", "enum": FORCE_UNITS},
                },
            },
        },
    },
}

# if/then on `source`, not oneOf: a misspelt key is then reported as such, not as 'matches no alternative'
DATASET_SCHEMA = {
    "description": "A dataset: one source and what it needs.",
    "type": "object",
    "required": ["source"],
    "properties": {"source": _COMMON["source"]},
    "allOf": [
        {
            "if": {"required": ["source"], "properties": {"source": {"const": name}}},
            "then": {"additionalProperties": False, **parts},
        }
        for name, parts in _SOURCES.items()
    ],
}

_OMOL25_HELP = (
    "OMol25 is at https://huggingface.co/facebook/OMol25 (free, after agreeing to its licence): unpack an archive "
    "with `tar -xzf` and put the folder of its data*.aselmdb files here: neutral_train.tar.gz 101 GB, "
    "neutral_val.tar.gz 119 MB, train_4M.tar.gz 19 GB, train.tar.gz 456 GB, val.tar.gz 20 GB (docs/data.md)"
)


def pack_folder(entry: dict, name: str, data_dir: str) -> str:
    """Folder of the pack of a dataset entry: any change of the entry gives another folder."""
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    return f"{data_dir}/{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def input_paths(entry: dict) -> list[str]:
    """Files and folders that the entry reads; none for the built-in source."""
    keys = {"xtb": (), "omol25": ("train", "val"), "files": ("path", "val")}[entry["source"]]
    return [os.path.expanduser(entry[key]) for key in keys if key in entry]


def missing_inputs(entry: dict) -> list[str]:
    """One message for each input of the entry that does not exist, with where to get it."""
    help_text = _OMOL25_HELP if entry["source"] == "omol25" else "correct the path in the dataset entry"
    return [
        f"{path}: no such file or folder; {help_text}"
        for path in input_paths(entry)
        if not os.path.exists(path)
    ]


def fingerprint(entry: dict) -> dict[str, list[int]]:
    """Size and time of change of every file that the entry reads and that is there."""
    found = {}
    for path in filter(os.path.exists, input_paths(entry)):
        files = (
            [os.path.join(d, f) for d, _, fs in os.walk(path) for f in fs] if os.path.isdir(path) else [path]
        )
        for name in sorted(f for f in files if not f.endswith("-lock")):
            status = os.stat(name)
            found[name] = [status.st_size, status.st_mtime_ns]
    return found


def source_state(entry: dict, folder: str) -> str:
    """A short text that changes with the files behind the pack in ``folder``; nothing of them is read.

    Files that are gone are no change, as those of an archive deleted to save space: Snakemake would remove the pack's
    manifest before packing what is left of them.
    """
    try:
        with open(os.path.join(folder, "manifest.json")) as f:
            packed = dict(json.load(f)["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        packed = {}
    try:
        files = fingerprint(entry)
    except OSError:
        return "unknown"  # packing will say why
    if not packed and missing_inputs(entry):
        return "unknown"
    if packed and all(packed.get(name) == state for name, state in files.items()):
        files = packed
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def thresholds(entry: dict) -> dict[str, float]:
    """Outlier thresholds in force: the entry's, or those of the built-in data."""
    found = {"max_force": 20.0, "max_residual": 0.8} if entry["source"] == "xtb" else {}
    return found | {key: entry[key] for key in ("max_force", "max_residual") if key in entry}
