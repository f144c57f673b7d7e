"""One's own files: extxyz, npz, ASE databases, folders of them; units, keys and what is refused."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from molecules import ragged_npz

from symscale.data.build import build_pack
from symscale.data.pack import open_pack
from symscale.data.sources import files
from symscale.errors import UserError


def read_all(path, **entry):
    """Every sample as (z, pos, forces, energy)."""
    entry = {"source": "files", "path": str(path), **entry}
    found = []
    for task in files.tasks(entry):
        for s in files.read(entry, task):
            ends = np.cumsum(s.counts)
            found += [
                (s.z[a:b], s.pos[a:b], s.forces[a:b], e)
                for a, b, e in zip(ends - s.counts, ends, s.energy, strict=True)
            ]
    return found


def assert_same(found, molecules, tolerance=0.0):
    assert len(found) == len(molecules)
    for (z, pos, forces, energy), m in zip(found, molecules, strict=True):
        assert np.array_equal(z, m.z)
        np.testing.assert_allclose(pos, m.pos, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(forces, m.forces, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(energy, m.energy, rtol=tolerance)


def md17_text(molecules, factor=1.0):
    """extxyz of the form in which MD17 trajectories are given: energy on the comment line, a forces column."""
    lines = []
    for m in molecules:
        lines += [
            str(len(m.z)),
            f'Properties=species:S:1:pos:R:3:forces:R:3 energy={m.energy * factor!r} pbc="F F F"',
        ]
        for z, x, f in zip(m.z, m.pos, m.forces, strict=True):
            lines.append(" ".join([chemical_symbols[z], *(repr(float(v)) for v in (*x, *(f * factor)))]))
    return "\n".join(lines) + "\n"


def md_npz(path, molecules, **changes):
    arrays = {
        "R": np.array([m.pos for m in molecules]),
        "nuclear_charges": molecules[0].z,
        "F": np.array([m.forces for m in molecules]),
        "E": np.array([[m.energy] for m in molecules]),
    }
    np.savez(path, **arrays | changes)
    return path


MD_KEYS = {"positions": "R", "numbers": "nuclear_charges", "forces": "F", "energy": "E"}


def test_extxyz_of_md17_form_is_read_value_for_value(tmp_path, molecules):
    """Also from a path with a space and an @, which ASE would take for an index."""
    path = tmp_path / "my data@2" / "md 17@1.xyz"
    path.parent.mkdir()
    path.write_text(md17_text(molecules))
    assert_same(read_all(path), molecules)
    assert_same(read_all(path.parent), molecules)


@pytest.mark.parametrize("name", ["a.traj", "a.db", "a.extxyz"])
def test_what_ase_writes_is_read_back(tmp_path, ase_atoms, molecules, name):
    """Trajectory, ASE database, extended xyz (eight decimals)."""
    ase.io.write(tmp_path / name, ase_atoms)
    assert_same(read_all(tmp_path / name), molecules, tolerance=0 if name != "a.extxyz" else 1e-7)


def test_energy_and_forces_may_have_any_key(tmp_path, ase_atoms, molecules):
    """Keys of info and arrays, as other codes write them."""
    copies = []
    for atoms in ase_atoms:
        copy = Atoms(atoms.numbers, atoms.positions, info={"REF_energy": atoms.get_potential_energy()})
        copy.arrays["REF_forces"] = atoms.get_forces()
        copies.append(copy)
    ase.io.write(tmp_path / "a.extxyz", copies)
    assert_same(read_all(tmp_path / "a.extxyz", energy="REF_energy", forces="REF_forces"), molecules, 1e-7)
    with pytest.raises(UserError, match=r"no energy under 'energy'; it has .*REF_energy.*: set `energy:`"):
        read_all(tmp_path / "a.extxyz")


def test_npz_of_one_molecule_and_of_many(tmp_path, molecules, monkeypatch):
    """Both documented forms, in blocks smaller than the file."""
    monkeypatch.setattr(files, "BLOCK", 2)
    assert_same(read_all(ragged_npz(tmp_path / "a.npz", molecules)), molecules)
    assert_same(read_all(md_npz(tmp_path / "b.npz", molecules[:3]), **MD_KEYS), molecules[:3])
    fortran = np.asfortranarray(np.array([m.pos for m in molecules[:3]]))
    assert_same(read_all(md_npz(tmp_path / "c.npz", molecules[:3], R=fortran), **MD_KEYS), molecules[:3])


def test_npz_molecule_key_groups_frames(tmp_path, molecules):
    """The named array is the molecule of each sample."""
    path = ragged_npz(tmp_path / "a.npz", molecules, name=np.array([m.molecule for m in molecules]))
    entry = {"source": "files", "path": str(path), "molecule": "name", "validation": 3, "check": "off"}
    build_pack(entry, str(tmp_path / "pack"), 1)
    pack = open_pack(str(tmp_path / "pack"))
    assert set(pack.val.molecule) <= set(range(12)) and not set(pack.val.molecule) & set(pack.train.molecule)
    assert len(pack.val) == 3  # a molecule's three frames stay together


@pytest.mark.parametrize(
    ("units", "energy", "length", "force"),
    [
        ({"energy": "Hartree", "length": "Bohr"}, 27.211386, 0.52917721, 51.422067),
        ({"energy": "kcal/mol"}, 0.0433641, 1.0, 0.0433641),
        ({"energy": "Hartree", "forces": "eV/Angstrom"}, 27.211386, 1.0, 1.0),
        ({"energy": "kJ/mol", "length": "nm"}, 0.01036427, 10.0, 0.001036427),
        ({"forces": "Hartree/Bohr"}, 1.0, 1.0, 51.422067),
    ],
)
def test_declared_units_are_converted(units, energy, length, force):
    """Against textbook values of the factors."""
    assert files.unit_factors({"units": units}) == pytest.approx((energy, length, force), rel=1e-6)


def test_gradients_change_sign(tmp_path, molecules):
    """``gradients: true`` for sets that store +gradients."""
    path = ragged_npz(tmp_path / "a.npz", molecules)
    for plain, turned in zip(read_all(path), read_all(path, gradients=True), strict=True):
        assert np.array_equal(plain[2], -turned[2]) and plain[3] == turned[3]


def test_one_atom_and_500_atoms_pack_together(tmp_path):
    """Sizes from 1 to 500 in one file, one line of the entry."""
    rng = np.random.default_rng(0)
    frames = []
    for n in (1, 500, 1, 2, 30, 500, 1, 3):
        grid = np.stack(np.meshgrid(*[np.arange(8)] * 3), -1).reshape(-1, 3)[:n] * 1.5
        atoms = Atoms(f"H{n}", grid + 0.1 * rng.normal(size=(n, 3)))
        atoms.calc = SinglePointCalculator(
            atoms, energy=-16.0 * n + rng.normal(), forces=rng.normal(size=(n, 3))
        )
        frames.append(atoms)
    ase.io.write(tmp_path / "a.extxyz", frames)
    entry = {
        "source": "files",
        "path": str(tmp_path / "a.extxyz"),
        "split": "random",
        "validation": 2,
        "check": "off",
    }
    build_pack(entry, str(tmp_path / "pack"), 1)
    pack = open_pack(str(tmp_path / "pack"))
    sizes = np.concatenate([np.diff(pack.train.offsets), np.diff(pack.val.offsets)])
    assert sorted(sizes) == [1, 1, 1, 2, 3, 30, 500, 500]
    singles = [
        pack.train.pos[o]
        for o, n in zip(pack.train.offsets, np.diff(pack.train.offsets), strict=False)
        if n == 1
    ]
    assert all(np.array_equal(x, np.zeros(3)) for x in singles)


def test_periodic_cells_are_refused(tmp_path, ase_atoms):
    """Out of scope, with the number of the sample and what to do."""
    periodic = ase_atoms[0].copy()
    periodic.set_cell([9, 9, 9])
    periodic.pbc = True
    periodic.calc = ase_atoms[0].calc
    ase.io.write(tmp_path / "a.extxyz", [ase_atoms[1], periodic])
    with pytest.raises(UserError, match=r"a.extxyz: sample 1 is periodic; only molecules"):
        read_all(tmp_path / "a.extxyz")


@pytest.mark.parametrize("name", ["a.xyz", "a.npz", "a.extxyz", "a.traj", "a.db"])
def test_empty_file_is_refused_by_name(tmp_path, name):
    """Zero bytes, whatever the format."""
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"{name}: "):
        read_all(tmp_path / name)


def test_truncated_files_are_refused_by_name(tmp_path, molecules):
    """Cut in the middle of a frame, or of the archive."""
    text = md17_text(molecules)
    (tmp_path / "a.xyz").write_text(text[: int(len(text) * 0.7)])
    with pytest.raises(UserError, match=r"a.xyz: ASE cannot read it beyond sample \d+"):
        read_all(tmp_path / "a.xyz")
    data = ragged_npz(tmp_path / "a.npz", molecules).read_bytes()
    (tmp_path / "a.npz").write_bytes(data[: int(len(data) * 0.7)])
    with pytest.raises(UserError, match=r"a.npz: not a whole .npz"):
        read_all(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "wrong", [{"E": np.zeros((2, 1))}, {"F": np.zeros((3, 2, 3))}, {"nuclear_charges": np.ones(4, int)}]
)
def test_mismatched_npz_lengths_are_refused(tmp_path, molecules, wrong):
    """Each array in turn; the message gives the shapes."""
    with pytest.raises(UserError, match=r"a.npz: lengths do not agree: energy \("):
        read_all(md_npz(tmp_path / "a.npz", molecules[:3], **wrong), **MD_KEYS)


def test_natoms_must_add_up(tmp_path, molecules):
    """One atom too few in the last molecule."""
    arrays = dict(np.load(ragged_npz(tmp_path / "a.npz", molecules)))
    arrays["natoms"][-1] -= 1
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(UserError, match=r"b.npz: 'natoms' does not add up"):
        read_all(tmp_path / "b.npz")


def test_missing_npz_key_names_those_there(tmp_path, molecules):
    """The message is enough to write the entry."""
    with pytest.raises(
        UserError, match=r"no positions under 'pos'; it has E, F, R, nuclear_charges: set `positions:`"
    ):
        read_all(md_npz(tmp_path / "a.npz", molecules[:3]))


def test_missing_forces_are_refused(tmp_path, molecules):
    """Energies alone are not enough."""
    atoms = Atoms(molecules[0].z, molecules[0].pos, info={"energy": 1.0})
    ase.io.write(tmp_path / "a.extxyz", [atoms])
    with pytest.raises(UserError, match="sample 0 has no forces under 'forces'"):
        read_all(tmp_path / "a.extxyz")


def test_unreadable_file_is_refused_by_name(open_folder, molecules, ordinary_user):
    """Permissions, as an ordinary user meets them."""
    path = ragged_npz(open_folder / "a.npz", molecules)
    path.chmod(0)
    with ordinary_user(), pytest.raises(UserError, match=r"a.npz: Permission denied; correct"):
        read_all(path)


def test_folder_of_nothing_known_is_refused(tmp_path):
    """A README is no data."""
    (tmp_path / "README.md").write_text("hello")
    with pytest.raises(UserError, match="no files of a known kind"):
        read_all(tmp_path)
