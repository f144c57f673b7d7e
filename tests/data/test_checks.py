"""Checks on import: wrong signs, wrong and mixed units, values that mean nothing."""

from __future__ import annotations

import numpy as np
import pytest

from symscale.data import chunks
from symscale.data.build import build_pack
from symscale.data.chunks import Samples
from symscale.errors import UserError


def write(path, molecules, energy=1.0, forces=1.0, noise=0.0):
    """An npz with energies and forces scaled, and noise like that between a DFT method and GFN2-xTB."""
    rng = np.random.default_rng(0)
    np.savez(
        path,
        z=np.concatenate([m.z for m in molecules]),
        pos=np.concatenate([m.pos for m in molecules]),
        forces=np.concatenate(
            [(m.forces + noise * rng.normal(size=m.forces.shape)) * forces for m in molecules]
        ),
        energy=np.array([m.energy * energy for m in molecules]),
        natoms=np.array([len(m.z) for m in molecules]),
    )
    return path


def pack(tmp_path, path, **entry):
    entry = {"source": "files", "path": str(path), "validation": 3, **entry}
    return build_pack(entry, str(tmp_path / "pack"), 1)[0]


def test_sound_labels_pass_with_their_correlation(tmp_path, molecules):
    """Forces that follow GFN2-xTB as a DFT set does (about .95) pass, and the figures are stored and worded."""
    labels = pack(tmp_path, write(tmp_path / "a.npz", molecules, noise=0.4))["labels"]
    assert 0.9 < labels["force_correlation"] < 0.99 and labels["force_slope"] == pytest.approx(1, abs=0.1)
    assert labels["compared"] == 36 and labels["energy_slope"] == pytest.approx(1, abs=0.05)
    assert labels["net_force_median"] > 0.1
    assert any("correlation 0.9" in line for line in labels["messages"])
    assert any("do not add up to zero" in line for line in labels["messages"])


def test_wrong_sign_is_refused_and_the_key_mends_it(tmp_path, molecules):
    """A set that stores +gradients."""
    path = write(tmp_path / "a.npz", molecules, forces=-1.0)
    with pytest.raises(UserError, match=r"gradients, not forces; correct `units:` or `gradients:`"):
        pack(tmp_path, path)
    assert not (tmp_path / "pack").exists()
    assert pack(tmp_path, path, gradients=True)["labels"]["force_slope"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("factor", "unit"),
    [(1 / 51.42207, "Hartree/Bohr"), (23.06055, "kcal/mol/Angstrom"), (1 / 27.21139, "Hartree/Angstrom")],
)
def test_wrong_unit_of_forces_is_refused_with_the_likely_one(tmp_path, molecules, factor, unit):
    """The message names the unit whose factor explains the slope; declared, the set passes."""
    path = write(tmp_path / "a.npz", molecules, forces=factor)
    with pytest.raises(UserError, match=rf"a wrong unit; they look as if they were in {unit}"):
        pack(tmp_path, path)
    labels = pack(tmp_path, path, units={"energy": "eV", "forces": unit})["labels"]
    assert labels["force_slope"] == pytest.approx(1, abs=0.01)


def test_wrong_unit_of_energies_is_refused(tmp_path, molecules):
    """Forces as declared, energies in Hartree."""
    with pytest.raises(UserError, match=r"energies vary 0\.0367 times as much as GFN2-xTB's"):
        pack(tmp_path, write(tmp_path / "a.npz", molecules, energy=1 / 27.211386))


def test_files_of_mixed_units_are_refused_by_name(tmp_path, molecules):
    """One file in eV, one in Hartree; one file of forces, one of gradients."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    write(folder / "ev.npz", molecules[::2])
    write(folder / "hartree.npz", molecules[1::2], energy=1 / 27.211386)
    with pytest.raises(UserError, match=r"median.*(ev|hartree).npz .*(ev|hartree).npz .*mixed units\?"):
        pack(tmp_path, folder)
    write(folder / "hartree.npz", molecules[1::2], forces=-1)
    with pytest.raises(UserError, match=r"of 36 molecules disagree.*Look at .*hartree.npz"):
        pack(tmp_path, folder)


def test_check_can_be_told_to_warn_or_not_to_look(tmp_path, molecules):
    """``check: warn`` packs with the warning in the manifest; ``check: off`` computes nothing."""
    path = write(tmp_path / "a.npz", molecules, forces=-1.0)
    messages = pack(tmp_path, path, check="warn")["labels"]["messages"]
    assert any(m.startswith("warning: forces point against") for m in messages)
    assert pack(tmp_path, path, check="off")["labels"] == {}


def test_geometries_near_minima_get_no_verdict(tmp_path, molecules):
    """Forces unrelated to GFN2-xTB's, as the small ones at another method's minimum: a warning, no refusal."""
    rng = np.random.default_rng(1)
    still = []
    for m in molecules:
        copy = type(m)(**vars(m))
        copy.forces = 0.01 * rng.normal(size=m.forces.shape)
        still.append(copy)
    labels = pack(tmp_path, write(tmp_path / "a.npz", still))["labels"]
    assert any("signs and units could not be checked" in message for message in labels["messages"])


def test_what_means_nothing_is_dropped_and_counted(tmp_path, molecules):
    """NaN, coincident atoms, an element that does not exist, a huge force, a wild energy; the rest is kept."""
    bad = [type(m)(**{k: np.copy(v) for k, v in vars(m).items()}) for m in molecules]
    bad[0].pos[0, 0] = np.nan
    bad[1].energy = np.array(np.inf)
    bad[2].pos[1] = bad[2].pos[0] + 0.01
    bad[3].z[0] = 119
    bad[4].z[0] = 0
    bad[5].forces[2] = [60.0, 80.0, 0.0]
    bad[6].energy = bad[6].energy + 30.0
    path = write(tmp_path / "a.npz", bad)
    manifest = pack(tmp_path, path, max_force=50, max_residual=1.0, split="random")
    assert {k: v for k, v in manifest["dropped"].items() if v} == {
        "not a number": 2,
        "atoms closer than 0.1 Angstrom": 1,
        "unknown element": 2,
        "force above max_force": 1,
        "energy beyond max_residual": 1,
    }
    assert sum(c["molecules"] for c in manifest["counts"].values()) == 29
    kept = pack(tmp_path, path, split="random")
    assert kept["outliers"] == {"force above 20 eV/Angstrom": 1, "energy beyond 0.8 eV/atom": 1}


def test_outliers_do_not_depend_on_given_references(tmp_path, molecules):
    """Energies of single atoms as references leave eV per atom to every molecule; that makes none an outlier."""
    wild = [type(m)(**vars(m)) for m in molecules]
    wild[6].energy = wild[6].energy + 30.0
    path = write(tmp_path / "a.npz", wild)
    atoms = {"H": -8.0, "C": -45.0, "N": -70.0, "O": -100.0}  # eV, some above what least squares finds
    for references in ({}, {"references": atoms}):
        kept = pack(tmp_path, path, split="random", check="off", **references)
        assert kept["outliers"] == {"force above 20 eV/Angstrom": 0, "energy beyond 0.8 eV/atom": 1}
        dropped = pack(tmp_path, path, split="random", check="off", max_residual=1.0, **references)["dropped"]
        assert dropped == {"energy beyond max_residual": 1}


def test_validation_molecules_with_unknown_elements_are_dropped(tmp_path, molecules):
    """An element that training never saw has no reference: its energy would mean nothing."""
    odd = type(molecules[0])(**vars(molecules[0]))
    odd.z = np.where(odd.z == 8, 16, odd.z)
    train, val = write(tmp_path / "train.npz", molecules), write(tmp_path / "val.npz", [odd, molecules[4]])
    manifest = pack(tmp_path, train, val=str(val), check="off")
    assert manifest["counts"]["val"]["molecules"] == 1
    assert manifest["dropped"]["validation composition that training does not determine"] == 1


def test_identical_structures_are_recognised_when_shifted():
    """The hash of a structure does not see a translation; it sees elements, order and 0.01 Angstrom."""
    rng = np.random.default_rng(0)
    pos, z = rng.normal(size=(5, 3)) * 3, np.array([6, 1, 1, 8, 7])
    moved = [pos, np.add(pos, [3.0, -2.0, 1.0]), pos + 0.01 * np.eye(5, 3), pos[[0, 2, 1, 3, 4]], pos]
    elements = [z, z, z, z, z[[4, 1, 2, 3, 0]]]
    samples = Samples(
        z=np.concatenate(elements),
        pos=np.concatenate(moved),
        forces=np.zeros((25, 3)),
        energy=np.zeros(5),
        counts=np.full(5, 5),
        row=np.arange(5),
    )
    rows, flat, _ = chunks.clean(samples, 0, 0)
    by_row = rows[np.argsort(np.argsort(chunks.mix(chunks.mix(np.uint64(0)) ^ chunks.mix(np.arange(5)))))]
    structure, formula = by_row["structure"], by_row["formula"]
    assert structure[0] == structure[1] and len(set(structure.tolist())) == 4
    assert len(set(formula.tolist())) == 1
    assert by_row["molecule"][0] == by_row["molecule"][1] != by_row["molecule"][4]
    assert (np.diff(rows["key"].astype(float)) > 0).all() and flat["pos"].shape == (25, 3)
