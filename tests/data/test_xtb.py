"""The built-in source: real molecules, real labels, the same on every run."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from rdkit import Chem

from symscale.data.sources import smiles, xtb
from symscale.data.sources.smiles import molecules as draw

ENTRY = {"source": "xtb", "molecules": 4, "frames": 2, "seed": 3}


def read(entry):
    return [s for task in xtb.tasks(entry) for s in xtb.read(entry, task)]


@pytest.fixture(scope="module")
def drawn():
    return draw(300, 0)


def test_molecules_are_different_neutral_closed_shell_and_small(drawn):
    """Canonical SMILES of 3-9 heavy atoms, each once."""
    assert len(set(drawn)) == len(drawn) == 300
    for text in drawn:
        mol = Chem.MolFromSmiles(text)
        assert 3 <= mol.GetNumHeavyAtoms() <= 9 and Chem.GetFormalCharge(mol) == 0 and "." not in text
        assert Chem.MolToSmiles(mol) == text
        assert not any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())
    elements = {atom.GetSymbol() for text in drawn for atom in Chem.MolFromSmiles(text).GetAtoms()}
    assert elements >= {"C", "N", "O", "S", "F", "Cl"}


def test_every_way_of_making_molecules_contributes(drawn):
    """Known molecules are a minority of the set, so that joins and mutations did not collapse into them."""
    known = set(smiles._small())
    assert 0.1 < np.mean([text in known for text in drawn]) < 0.6
    rng = np.random.default_rng(0)
    for kind, make in smiles._MAKE.items():
        made = [smiles._accept(make(rng)) for _ in range(60)]
        assert len({text for text in made if text}) >= 5, kind


def test_smaller_sets_are_the_beginning_of_larger_ones(drawn):
    """Molecule i depends on the seed and on those before it only."""
    assert draw(40, 0) == drawn[:40]
    assert draw(40, 1) != drawn[:40]


def test_rerun_is_bit_identical():
    """Positions, energies and forces, with numbers of samples that identify molecule and frame."""
    for a, b in zip(read(ENTRY), read(ENTRY), strict=True):
        for name in ("z", "pos", "forces", "energy", "counts", "row", "molecule"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name
        assert a.molecule.tolist() == [row // 1000 for row in a.row]


def test_forces_are_minus_the_gradient_of_the_energy(molecules):
    """Central differences of tblite's energy along random directions, eV/Angstrom."""
    rng = np.random.default_rng(0)
    step, worst = 1e-3, 0.0
    for m in molecules[::9]:
        direction = rng.normal(size=m.pos.shape)
        direction /= np.linalg.norm(direction)
        (up, _), (down, _) = xtb.labels(m.z, np.array([m.pos + step * direction, m.pos - step * direction]))
        worst = max(worst, abs(-(up - down) / (2 * step) - (m.forces * direction).sum()))
    print("largest difference, eV/A:", worst)
    assert worst < 5e-3


def test_energies_are_in_ev_and_forces_add_up_to_zero(molecules):
    """GFN2-xTB's hydrogen molecule is at -0.98 Hartree; an isolated molecule feels no net force."""
    ((energy, forces),) = xtb.labels(np.array([1, 1]), np.array([[[0, 0, 0], [0, 0, 0.77]]]))
    assert energy == pytest.approx(-0.98 * 27.2114, rel=0.01)
    assert max(np.abs(m.forces.sum(0)).max() for m in molecules) < 1e-4
    assert forces[0, 2] == pytest.approx(-forces[1, 2])


def test_stretched_bonds_are_pulled_back():
    """The sign of forces, by hand: atoms of a stretched H2 are drawn together."""
    ((_, forces),) = xtb.labels(np.array([1, 1]), np.array([[[0, 0, 0], [0, 0, 1.1]]]))
    assert forces[0, 2] > 0.5 and forces[1, 2] < -0.5


def test_untrustworthy_labels_are_dropped_and_counted():
    """Nearly coincident nuclei exceed the force limit; a broken double bond closes the gap."""
    dropped = Counter()
    assert xtb.labels(np.array([1, 1]), np.array([[[0, 0, 0], [0, 0, 0.25]]]), dropped) == [None]
    assert dropped == {"force above 20 eV/Angstrom": 1}
    twisted = np.array(
        [[-0.67, 0, 0], [0.67, 0, 0], [-1.24, 0.92, 0], [-1.24, -0.92, 0], [1.24, 0, 0.92], [1.24, 0, -0.92]]
    )
    assert xtb.labels(np.array([6, 6, 1, 1, 1, 1]), twisted[None], dropped) == [None]
    assert dropped["gap below 0.5 eV"] == 1


def test_dynamics_samples_hot_geometries(molecules):
    """Frames differ from each other and have the forces of a warm molecule, not of a minimum."""
    sizes = [np.linalg.norm(m.forces, axis=1).mean() for m in molecules]
    assert 0.5 < np.median(sizes) < 4
    for a, b in zip(molecules[::3], molecules[1::3], strict=True):
        assert np.abs(a.pos - b.pos).max() > 0.05
