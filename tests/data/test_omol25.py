"""The reader of OMol25 shards, on toy shards in the distribution's exact row layout."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from symscale.data.build import build_pack
from symscale.data.pack import open_pack
from symscale.data.sources import omol25
from symscale.errors import UserError


def read_all(entry):
    """Every sample as (z, pos, forces, energy, charge, spin)."""
    found = []
    for task in omol25.tasks(entry):
        for s in omol25.read(entry, task):
            ends = np.cumsum(s.counts)
            for i, (a, b) in enumerate(zip(ends - s.counts, ends, strict=True)):
                found.append((s.z[a:b], s.pos[a:b], s.forces[a:b], s.energy[i], s.charge[i], s.spin[i]))
    return found


def edit(shard, key, value):
    """Overwrite one raw value of a shard."""
    with lmdb.open(str(shard), subdir=False, map_size=2**30) as env, env.begin(write=True) as transaction:
        transaction.put(key, value)


@pytest.fixture
def shard(tmp_path, ase_atoms, write_shard):
    return write_shard(tmp_path / "data0000.aselmdb", ase_atoms[:8])


def test_shards_are_read_value_for_value(shard_folder, ase_atoms):
    """Every number is the one that was written, bit for bit, in order; compared with ASE's own reading too."""
    from ase.db import connect

    found = read_all({"source": "omol25", "train": str(shard_folder)})
    expected = [atoms for shard in range(3) for atoms in ase_atoms[shard::3]]
    rows = [
        row
        for shard in sorted(shard_folder.glob("*.aselmdb"))
        for row in connect(shard, readonly=True).select()
    ]
    assert len(found) == len(expected) == len(rows) == 36
    for (z, pos, forces, energy, charge, spin), atoms, row in zip(found, expected, rows, strict=True):
        assert np.array_equal(z, atoms.numbers) and np.array_equal(z, row.numbers)
        assert np.array_equal(pos, atoms.positions) and np.array_equal(pos, row.positions)
        assert np.array_equal(forces, atoms.get_forces()) and np.array_equal(forces, row.forces)
        assert energy == atoms.get_potential_energy() == row.energy
        assert (charge, spin) == (0, 1)


def test_rows_in_other_json_are_read_the_same(shard, ase_atoms):
    """Nested lists instead of ASE's arrays, no spaces; numbers that are no numbers are refused."""
    with lmdb.open(str(shard), subdir=False, map_size=2**30) as env, env.begin(write=True) as transaction:
        row = json.loads(zlib.decompress(transaction.get(b"2")))
        atoms = ase_atoms[1]
        row["positions"], row["forces"] = atoms.positions.tolist(), atoms.get_forces().tolist()
        transaction.put(b"2", zlib.compress(json.dumps(row).encode()))
        third = json.loads(zlib.decompress(transaction.get(b"3")))
        transaction.put(b"3", zlib.compress(json.dumps(third, separators=(",", ":")).encode()))
    found = read_all({"source": "omol25", "train": str(shard)})
    for (_, pos, forces, energy, _, _), atoms in zip(found, ase_atoms, strict=False):
        assert np.array_equal(pos, atoms.positions) and np.array_equal(forces, atoms.get_forces())
        assert energy == atoms.get_potential_energy()
    text = json.dumps(third).replace(str(third["forces"]["__ndarray__"][2][4]), "None")
    edit(shard, b"3", zlib.compress(text.encode()))
    with pytest.raises(UserError, match=r"data0000.aselmdb: .*no numbers"):
        read_all({"source": "omol25", "train": str(shard)})


def test_pack_of_shards_holds_every_sample(toy_folder, ase_atoms):
    """Packed energies are the shards' own; positions and forces are theirs in float32, centred on the mass."""
    pack = open_pack(toy_folder)
    energies = {round(a.get_potential_energy(), 9): a for a in ase_atoms}
    assert len(pack.train) == 30 and len(pack.val) == 6
    for split in (pack.train, pack.val):
        for m in range(len(split)):
            atoms = energies.pop(round(float(split.energy[m]), 9))
            rows = slice(split.offsets[m], split.offsets[m + 1])
            assert split.energy[m] == atoms.get_potential_energy()
            assert np.array_equal(split.z[rows], atoms.numbers)
            assert np.array_equal(split.forces[rows], atoms.get_forces().astype(np.float32))
            np.testing.assert_allclose(
                split.pos[rows], atoms.positions - atoms.get_center_of_mass(), atol=1e-6
            )
    assert not energies


def test_given_validation_folder_is_the_validation_part(shard_folder, ase_atoms, write_shard, tmp_path):
    """With ``val``, nothing of train is held out; the shared structure is counted as leakage."""
    val = tmp_path / "neutral val"
    val.mkdir()
    write_shard(val / "data0000.aselmdb", ase_atoms[:2])
    entry = {"source": "omol25", "train": str(shard_folder), "val": str(val), "check": "off"}
    manifest, _ = build_pack(entry, str(tmp_path / "pack"), 1)
    assert manifest["counts"]["train"]["molecules"] == 36 and manifest["counts"]["val"]["molecules"] == 2
    assert manifest["leakage"] == {"formula": 2, "molecule": 2, "structure": 2}


def test_neutral_filter_keeps_the_six_neutral_organic_sets(tmp_path, ase_atoms, write_shard):
    """Charge 0, spin 1 and a data_id of the list; what is left out is counted."""
    data = [{}, {"charge": 1}, {"spin": 2}, {"data_id": "elytes"}, {"data_id": "rgd"}, {"data_id": "ani2x"}]
    write_shard(tmp_path / "data0000.aselmdb", ase_atoms[:6], data)
    entry = {"source": "omol25", "train": str(tmp_path)}
    assert len(read_all(entry | {"neutral": True})) == 3
    assert [q for *_, q, _ in read_all(entry)] == [0, 1, 0, 0, 0, 0]  # without it all are kept, and counted
    task = omol25.tasks(entry)[0]
    assert next(omol25.read(entry | {"neutral": True}, task)).dropped == {"not in the neutral subset": 3}


def test_charge_and_spin_are_counted_in_the_manifest(tmp_path, ase_atoms, write_shard):
    """The models take neither, so the pack says how many there are."""
    write_shard(tmp_path / "data0000.aselmdb", ase_atoms, [{"charge": -1, "spin": 2}] * 4 + [{}] * 32)
    entry = {"source": "omol25", "train": str(tmp_path), "validation": 4, "check": "off"}
    manifest, _ = build_pack(entry, str(tmp_path / "pack"), 1)
    assert manifest["charge"] == {"-1": 4, "0": 32} and manifest["spin"] == {"1": 32, "2": 4}


def test_deleted_rows_are_skipped(shard, ase_atoms):
    """Rows that ase-db-backends deleted are not missing."""
    from ase_db_backends.aselmdb import LMDBDatabase

    with LMDBDatabase(str(shard)) as database:
        database.delete([3, 5])
    found = read_all({"source": "omol25", "train": str(shard)})
    kept = [a for i, a in enumerate(ase_atoms[:8], 1) if i not in (3, 5)]
    assert [e for *_, e, _, _ in found] == [a.get_potential_energy() for a in kept]


def test_truncated_shard_is_refused_by_name(shard, ase_atoms, write_shard, tmp_path):
    """An unfinished download; reading beyond its end would otherwise kill the process."""
    folder = tmp_path / "cut"
    folder.mkdir()
    big = write_shard(folder / "data0001.aselmdb", ase_atoms * 8)
    with open(big, "r+b") as f:
        f.truncate(big.stat().st_size // 2)
    with pytest.raises(UserError, match=r"data0001.aselmdb: cut off: \d+ of \d+ bytes"):
        omol25.tasks({"source": "omol25", "train": str(folder)})
    with open(big, "r+b") as f:
        f.truncate(100)
    with pytest.raises(UserError, match=r"data0001.aselmdb: cannot be opened"):
        omol25.tasks({"source": "omol25", "train": str(folder)})
    big.write_bytes(b"")
    with pytest.raises(UserError, match=r"data0001.aselmdb: is empty"):
        omol25.tasks({"source": "omol25", "train": str(folder)})


@pytest.fixture
def long_shard(tmp_path, ase_atoms, write_shard):
    """300 rows, of which every third is too large for a page and has pages of its own."""
    rng = np.random.default_rng(0)
    large = Atoms("H80", rng.normal(size=(80, 3)) * 9)
    large.calc = SinglePointCalculator(large, energy=-1.0, forces=rng.normal(size=(80, 3)))
    return write_shard(tmp_path / "data0000.aselmdb", [large, *ase_atoms[:2]] * 100)


def used_bytes(shard) -> int:
    """Up to the end of the last page with a row, from where LMDB itself finds the rows in memory."""
    with (
        lmdb.open(str(shard), subdir=False, readonly=True, lock=False) as env,
        env.begin(buffers=True) as txn,
    ):
        maps = Path("/proc/self/maps").read_text().splitlines()
        base = int(next(line for line in maps if line.endswith(str(shard))).partition("-")[0], 16)
        ends = []
        for item in txn.cursor():
            ends += [np.frombuffer(part, np.uint8).ctypes.data + len(part) - base for part in item]
        return -(-max(ends) // 4096) * 4096


def test_no_cut_of_a_shard_is_too_small_to_be_noticed(long_shard):
    """One page less than its rows use: reading on would kill the process."""
    entry = {"source": "omol25", "train": str(long_shard)}
    size, used = long_shard.stat().st_size, used_bytes(long_shard)
    assert len(read_all(entry)) == 300
    for cut in (4096, 20_000, 60_000):
        os.truncate(long_shard, used - cut)
        with pytest.raises(UserError, match=rf"data0000.aselmdb: cut off: {used - cut} of {size} bytes"):
            omol25.tasks(entry)


def test_shard_that_ends_before_its_free_pages_is_read_whole(long_shard):
    """LMDB need not write a page that is freed at once, so the file may be shorter than its pages are many."""
    from ase_db_backends.aselmdb import LMDBDatabase

    with LMDBDatabase(str(long_shard)) as database:
        database.delete(range(150, 301))
    entry = {"source": "omol25", "train": str(long_shard)}
    before = read_all(entry)
    size, used = long_shard.stat().st_size, used_bytes(long_shard)
    assert len(before) == 149 and used < size
    os.truncate(long_shard, used)
    assert [sample[3] for sample in read_all(entry)] == [sample[3] for sample in before]
    os.truncate(long_shard, used - 4096)
    with pytest.raises(UserError, match="cut off"):
        omol25.tasks(entry)


def test_damaged_pages_are_refused_by_name(long_shard):
    """Zeros in the place of a page, as a broken download leaves them."""
    with open(long_shard, "r+b") as f:
        size = long_shard.stat().st_size
        for place in range(8192, size, 4096):
            f.seek(place)
            f.write(bytes(4096))
    with pytest.raises(UserError, match=r"data0000.aselmdb: "):
        omol25.tasks({"source": "omol25", "train": str(long_shard)})


def test_blocks_of_a_task_are_bounded_by_atoms_and_change_nothing(
    toy_entry, toy_folder, tmp_path, monkeypatch
):
    """Molecules many times larger than the mean come in smaller blocks; the pack is the same to the last bit."""
    whole = list(omol25.read(toy_entry, omol25.tasks(toy_entry)[0]))
    monkeypatch.setattr(omol25, "BLOCK_ATOMS", 25)
    blocks = list(omol25.read(toy_entry, omol25.tasks(toy_entry)[0]))
    assert len(whole) == 1 and len(blocks) > 3 and max(len(block.z) for block in blocks) <= 25
    assert np.array_equal(np.concatenate([block.pos for block in blocks]), whole[0].pos)
    build_pack(toy_entry, str(tmp_path / "pack"), 1)
    assert open_pack(str(tmp_path / "pack")).manifest["files"] == open_pack(toy_folder).manifest["files"]


@pytest.mark.parametrize("value", [b"not zlib", zlib.compress(b"not json"), zlib.compress(b"{}")[:-2]])
def test_wrong_zlib_is_refused_by_row(shard, value):
    """The message names shard and row."""
    edit(shard, b"4", value)
    with pytest.raises(UserError, match=r"data0000.aselmdb: row 4 is not zlib-compressed JSON"):
        read_all({"source": "omol25", "train": str(shard)})


def test_wrong_number_of_components_is_refused_by_row(shard):
    """One force component less than three an atom."""
    with lmdb.open(str(shard), subdir=False, map_size=2**30) as env, env.begin(write=True) as transaction:
        row = json.loads(zlib.decompress(transaction.get(b"6")))
        row["forces"]["__ndarray__"][2].pop()
        transaction.put(b"6", zlib.compress(json.dumps(row).encode()))
    with pytest.raises(UserError, match=r"row 6 has \d+ atoms, but \d+ position and \d+ force components"):
        read_all({"source": "omol25", "train": str(shard)})


def test_missing_row_is_refused(shard):
    """A row that is neither there nor deleted."""
    with lmdb.open(str(shard), subdir=False, map_size=2**30) as env, env.begin(write=True) as transaction:
        transaction.delete(b"7")
    with pytest.raises(UserError, match="row 7 is missing"):
        read_all({"source": "omol25", "train": str(shard)})


def test_missing_forces_are_refused(tmp_path, ase_atoms, write_shard):
    """As in the test split, which has no labels."""
    atoms = ase_atoms[0].copy()
    atoms.calc = SinglePointCalculator(atoms, energy=1.0)
    write_shard(tmp_path / "data0000.aselmdb", [ase_atoms[1], atoms])
    with pytest.raises(UserError, match="row 2 has no forces"):
        read_all({"source": "omol25", "train": str(tmp_path)})


def test_periodic_row_is_refused(tmp_path, write_shard):
    """Only molecules are supported."""
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], cell=[5, 5, 5], pbc=True)
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.zeros((2, 3)))
    write_shard(tmp_path / "data0000.aselmdb", [atoms])
    with pytest.raises(UserError, match="row 1 is periodic"):
        read_all({"source": "omol25", "train": str(tmp_path)})


def test_unreadable_shard_is_refused_by_name(open_folder, ase_atoms, write_shard, ordinary_user):
    """Permissions, as an ordinary user meets them."""
    shard = write_shard(open_folder / "data0000.aselmdb", ase_atoms[:2])
    shard.chmod(0)
    with ordinary_user(), pytest.raises(UserError, match=r"data0000.aselmdb: Permission denied; correct"):
        omol25.tasks({"source": "omol25", "train": str(open_folder)})


def test_folder_without_shards_is_refused(tmp_path):
    """Say what was expected there."""
    with pytest.raises(UserError, match=r"no \.aselmdb files"):
        omol25.tasks({"source": "omol25", "train": str(tmp_path)})


def test_seeded_hold_out_has_the_exact_size_and_moves_with_the_seed(toy_entry, tmp_path):
    """As the 79K of the 4M set: a number of samples, the same for a seed, another for another seed."""
    held = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_pack(toy_entry | {"seed": seed, "validation": 7}, str(tmp_path / name), 1)
        held[name] = set(open_pack(str(tmp_path / name)).val.energy.tolist())
    assert len(held["a"]) == 7 and held["a"] == held["b"] != held["c"]
