"""Splits, leakage and duplicates, on chunks whose rows are written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from symscale.data import chunks, split
from symscale.data.chunks import read_part, write_part
from symscale.data.split import TRAIN, VAL, duplicates, leakage
from symscale.errors import UserError


@pytest.fixture
def stems(tmp_path):
    """Two chunks with 600 samples of 100 molecules and 20 formulas."""
    rng = np.random.default_rng(0)
    found = []
    for chunk in range(2):
        rows = np.zeros(300, dtype=chunks.ROW)
        rows["key"] = np.sort(rng.integers(0, 2**63, 300).astype(np.uint64))
        rows["molecule"] = rng.integers(0, 100, 300)
        rows["formula"] = rows["molecule"] % 20
        rows["structure"] = np.arange(300) + 300 * chunk
        np.save(tmp_path / f"{chunk}.rows.npy", rows)
        found.append(str(tmp_path / str(chunk)))
    return found


def assign(stems, given, entry):
    """The parts that were written."""
    split.assign(stems, given, entry)
    return [read_part(stem) for stem in stems]


def columns(stems, parts, name, which):
    return np.concatenate([chunks.read_rows(s)[name][p == which] for s, p in zip(stems, parts, strict=True)])


@pytest.mark.parametrize("kind", ["molecule", "formula"])
def test_groups_are_never_divided(stems, kind):
    """No molecule (or formula) on both sides, and about as many samples held out as asked for."""
    parts = assign(stems, ["", ""], {"source": "files", "split": kind, "validation": 0.2})
    train, val = (set(columns(stems, parts, kind, which).tolist()) for which in (TRAIN, VAL))
    assert not train & val and train and val
    held = sum((p == VAL).sum() for p in parts)
    assert 120 <= held <= 120 + 60  # at most one group more than asked for
    assert leakage(stems)[kind] == 0


def test_random_split_holds_out_the_exact_number(stems, monkeypatch):
    """As for the seeded 79K of the 4M set; and it leaks, which is counted."""
    parts = assign(stems, ["", ""], {"source": "files", "split": "random", "validation": 50})
    assert sum((p == VAL).sum() for p in parts) == 50
    train = set(columns(stems, parts, "molecule", TRAIN).tolist())
    expected = sum(m in train for m in columns(stems, parts, "molecule", VAL))
    assert expected > 25
    assert leakage(stems)["molecule"] == expected
    monkeypatch.setattr(split, "_PARTITION", 7)  # in eight pieces, as where hashes do not fit in memory
    assert leakage(stems)["molecule"] == expected


@pytest.mark.parametrize("kind", ["random", "molecule", "formula"])
def test_hold_out_is_the_first_groups_in_the_order_of_their_hashes(stems, kind):
    """Against sorting all hashes in memory: as many whole groups as are needed, in that order."""
    hashes = np.concatenate([split._groups(chunks.read_rows(s), kind, 3) for s in stems])
    for n in (1, 2, 77, 300, 599):
        assert split._nth_hash(stems, kind, 3, n) == np.sort(hashes)[n - 1]
    parts = assign(stems, ["", ""], {"source": "files", "split": kind, "validation": 100, "seed": 3})
    assert np.array_equal(np.concatenate(parts) == VAL, hashes <= np.sort(hashes)[99])


def test_split_depends_on_seed_not_on_order_of_files(stems):
    """Chunks in another order: the same samples are held out. Another seed: others."""
    entry = {"source": "files", "split": "molecule", "validation": 0.2}
    forward = assign(stems, ["", ""], entry)
    backward = assign(stems[::-1], ["", ""], entry)
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward[::-1], strict=True))
    other = assign(stems, ["", ""], entry | {"seed": 1})
    assert not all(np.array_equal(a, b) for a, b in zip(forward, other, strict=True))


def test_given_validation_files_are_kept_as_given(stems):
    """A source that says what is for validation is not split again."""
    parts = assign(stems, ["", "val"], {"source": "files", "validation": 0.5, "val": "held_out.xyz"})
    assert (parts[0] == TRAIN).all() and (parts[1] == VAL).all()


def test_a_validation_file_of_which_nothing_is_left_is_an_error(stems):
    """Held-out training samples must not silently take its place."""
    with pytest.raises(UserError, match=r"held_out\.xyz: none of its samples is usable"):
        assign(stems, ["", ""], {"source": "files", "val": "held_out.xyz"})


def test_one_molecule_cannot_be_split_by_molecule(tmp_path):
    """MD of one molecule: the message says which split works."""
    rows = np.zeros(10, dtype=chunks.ROW)
    rows["key"] = np.arange(10)
    np.save(tmp_path / "0.rows.npy", rows)
    with pytest.raises(UserError, match="split: random"):
        assign([str(tmp_path / "0")], [""], {"source": "files", "validation": 0.2})
    with pytest.raises(UserError, match="validation: 10 of 10"):
        assign([str(tmp_path / "0")], [""], {"source": "files", "split": "random", "validation": 10})


@pytest.mark.parametrize("partition", [4_000_000, 100])
def test_duplicates_are_counted_in_bounded_memory(stems, monkeypatch, partition):
    """Three copies of one structure are two duplicates, in one pass or in many; dropped samples do not count."""
    monkeypatch.setattr(split, "_PARTITION", partition)
    rows = chunks.read_rows(stems[0])
    rows["structure"][[4, 90, 200]] = 5
    rows["structure"][5] = 10_000
    np.save(f"{stems[0]}.rows.npy", rows)
    part = np.full(300, TRAIN, np.uint8)
    for stem in stems:
        write_part(stem, part)
    assert duplicates(stems) == 2
    part[90] = split.DROPPED
    write_part(stems[0], part)
    assert duplicates(stems) == 1
