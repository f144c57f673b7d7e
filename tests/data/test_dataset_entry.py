"""Dataset entries: what they may say, where their pack goes, what the commands answer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from symscale.commands.pack import parse_entry
from symscale.data.sources.schema import DATASET_SCHEMA, input_paths, missing_inputs, pack_folder
from symscale.errors import UserError

GOOD = [
    {"source": "xtb", "molecules": 5000, "frames": 4, "validation": 0.05, "seed": 0},
    {"source": "omol25", "train": "/path/neutral_train", "val": "/path/neutral_val"},
    {"source": "omol25", "train": "/path/train_4M", "validation": 79000, "seed": 1},
    {
        "source": "files",
        "path": "my.extxyz",
        "energy": "energy",
        "forces": "forces",
        "units": {"energy": "eV", "length": "Angstrom"},
        "split": "molecule",
        "validation": 0.05,
    },
]


@pytest.mark.parametrize("entry", GOOD)
def test_entries_of_the_documentation_are_valid(entry):
    """The forms that the config shows."""
    assert parse_entry(json.dumps(entry)) == entry


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"source": "xtb", "molecules": 5, "frame": 4},
            "'frame' was unexpected); it may have source, validation",
        ),
        ({"source": "xtb"}, "'molecules' is a required property"),
        ({"source": "xtb", "molecules": 0}, "molecules: 0 is less than"),
        ({"source": "qm9"}, "source: 'qm9' is not one of"),
        ({"molecules": 5}, "'source' is a required property"),
        ({"source": "files", "path": "a", "units": {"energy": "ev"}}, "units.energy: 'ev' is not one of"),
        ({"source": "files", "path": "a", "validation": 1.5}, "validation: 1.5 is not of type 'integer'"),
        ({"source": "omol25", "train": 3}, "train: 3 is not of type 'string'"),
        ([], "is not of type 'object'"),
    ],
)
def test_wrong_entries_are_refused_at_their_key(entry, said):
    """The message has the path of the key and what is allowed there."""
    with pytest.raises(UserError) as error:
        parse_entry(json.dumps(entry))
    assert said in str(error.value)


def test_every_property_is_described():
    """The schema is the documentation of an entry."""
    jsonschema.Draft202012Validator.check_schema(DATASET_SCHEMA)
    for alternative in DATASET_SCHEMA["allOf"]:
        for name, part in alternative["then"]["properties"].items():
            assert part.get("description"), name


def test_pack_folder_changes_with_the_entry_only():
    """Order of keys does not matter, any value does; the digest is pinned, as folders on disk depend on it."""
    entry = {"source": "xtb", "molecules": 100}
    folder = pack_folder(entry, "x", "data")
    assert folder == pack_folder({"molecules": 100, "source": "xtb"}, "x", "data") == "data/x-dda79d96"
    assert folder != pack_folder(entry | {"seed": 1}, "x", "data")


def test_missing_inputs_say_where_to_get_them(tmp_path):
    """Nothing for the built-in data; the archive and its size for OMol25."""
    assert missing_inputs(GOOD[0]) == []
    train, val = missing_inputs(GOOD[1])
    assert train.startswith("/path/neutral_train: no such file") and "neutral_train.tar.gz 101 GB" in train
    assert val.startswith("/path/neutral_val: ") and "huggingface.co" in val
    assert missing_inputs({"source": "omol25", "train": str(tmp_path)}) == []
    assert input_paths({"source": "files", "path": "~/a", "val": "b"}) == [str(Path("~/a").expanduser()), "b"]


def test_schema_module_is_stdlib_only():
    """The Snakefile imports it: no numpy, torch or chemistry."""
    code = (
        "import sys; import symscale.data.sources.schema; "
        "print([m for m in ('numpy', 'torch', 'ase', 'rdkit', 'lmdb', 'tblite') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_loader_does_not_import_chemistry():
    """Training must not wait for packages that only sources need."""
    code = (
        "import sys; import symscale.data.loader; "
        "print([m for m in ('ase', 'rdkit', 'lmdb', 'tblite', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_pack_and_data_info_commands(tmp_path, toy_entry, run_symscale):
    """Pack, pack again (at once), describe, draw, verify; a missing pack is one line."""
    out = tmp_path / "my pack"
    arguments = ("pack", "--entry", json.dumps(toy_entry), "--out", out, "--processes", 1)
    first = run_symscale(*arguments)
    assert (
        first.returncode == 0 and f"{out}: packed" in first.stderr and "train: 30 molecules" in first.stderr
    )
    assert re.search(r"omol25: 100%.*36/36 \[.*sample/s\]", first.stderr)  # progress, time and rate
    assert "energies declared in eV" in first.stderr and "charge: 0 (36 samples)" in first.stderr
    again = run_symscale(*arguments)
    assert again.returncode == 0 and "already packed, and its source is unchanged" in again.stderr
    info = run_symscale("data-info", out, "--svg", tmp_path / "a.svg", "--verify")
    assert info.returncode == 0, info.stderr
    assert "|F|, eV/Angstrom: 0.5 %" in info.stdout and "####" in info.stdout and "verified" in info.stdout
    assert "</svg>" in (tmp_path / "a.svg").read_text()
    missing = run_symscale("data-info", tmp_path / "nothing")
    assert (
        missing.returncode == 1 and missing.stderr.count("\n") == 1 and "no finished pack" in missing.stderr
    )
    (out / "train" / "z.npy").write_bytes(b"")
    broken = run_symscale("data-info", out)
    assert broken.returncode == 1 and "z.npy: has 0 bytes" in broken.stderr
