"""Small neutral molecules for the built-in data: known ones, recombined, mutated and grown.

Molecule number i is a function of the seed and of the molecules before it, so a smaller set is the beginning of a
larger one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import AllChem
from tqdm import tqdm

MIN_HEAVY, MAX_HEAVY = 3, 9
# Known molecules and joins of their fragments are the realistic ones, growth the diverse one
MIX = {"known": 0.15, "join": 0.45, "mutate": 0.30, "grow": 0.10}
ATTEMPTS = 200
_VALENCE = {6: 4, 7: 3, 8: 2, 9: 1, 14: 4, 15: 3, 16: 2, 17: 1, 35: 1, 53: 1}
_GROW = {6: 0.62, 7: 0.13, 8: 0.14, 9: 0.03, 14: 0.01, 15: 0.01, 16: 0.03, 17: 0.02, 35: 0.005, 53: 0.005}
_BONDS = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}


def molecules(count: int, seed: int) -> list[str]:
    """Canonical SMILES of ``count`` different molecules of 3-9 heavy atoms; MMFF has parameters for all."""
    seen: dict[str, None] = {}
    with rdBase.BlockLogs():  # most attempts are no molecule, and RDKit would say so
        _draw(count, seed, seen)
    return list(seen)


def _draw(count: int, seed: int, seen: dict[str, None]) -> None:
    for index in tqdm(range(count), desc="molecules", unit="mol", disable=count < 2000):
        rng = np.random.default_rng([seed, index])
        # The kind is drawn once and retried: a new draw at each failure would end in growth alone
        kinds = [str(rng.choice(list(MIX), p=list(MIX.values()))), "join", "grow"]
        for kind, _ in ((kind, attempt) for kind in kinds for attempt in range(ATTEMPTS)):
            smiles = _accept(_MAKE[kind](rng))
            if smiles and smiles not in seen:
                seen[smiles] = None
                break


def _accept(mol: Chem.Mol | None) -> str | None:
    """Canonical SMILES of what is a neutral closed-shell molecule of the wanted size, else None."""
    if mol is None or not MIN_HEAVY <= mol.GetNumHeavyAtoms() <= MAX_HEAVY:
        return None
    try:
        smiles = Chem.MolToSmiles(mol)
        again = Chem.MolFromSmiles(smiles)
        if again is None or "." in smiles or Chem.GetFormalCharge(again):
            return None
        if any(a.GetNumRadicalElectrons() for a in again.GetAtoms()) or _strained(again):
            return None
        return smiles if AllChem.MMFFHasAllMoleculeParams(Chem.AddHs(again)) else None
    except (RuntimeError, ValueError):  # RDKit's word for 'no such molecule'
        return None


def _strained(mol: Chem.Mol) -> bool:
    """Chains of heteroatoms, and unsaturation where a small ring cannot hold it."""
    for pattern in _STRAINED:
        if mol.HasSubstructMatch(pattern):
            return True
    return False


_STRAINED = [
    Chem.MolFromSmarts(smarts)
    for smarts in (
        "[N,O,S,F,Cl,Br,I;!$([N,S](=O))]~[N,O,S;!$([N,S](=O))]~[N,O,S,F,Cl,Br,I]",  # N-N-O, O-O-O, ...
        "[O,S;X2]-[O,F,Cl,Br,I]",
        "[N;X3;!$(N-C=O)]-[F,Cl,Br,I]",
        "[r3,r4,r5,r6]#[*]",
        "[R]=[R]=[R]",
        "[r3]=[r3]",
        "[R3]",  # cages
        "[Si,P]=,#[C,N,Si,P,S]",
        "[P]#*",
    )
]


@functools.cache
def _known() -> list[str]:
    text = resources.files("symscale.data.sources").joinpath("nci.smi").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@functools.cache
def _small() -> list[str]:
    return [s for s in _known() if Chem.MolFromSmiles(s).GetNumHeavyAtoms() <= MAX_HEAVY]


@functools.cache
def _fragments() -> tuple[list[str], np.ndarray]:
    """Pieces of 1-7 heavy atoms left by cutting one acyclic single bond, and how frequent each is."""
    cut = Chem.MolFromSmarts("[*;!#1]-&!@[*;!#1]")
    counts: dict[str, int] = {}
    for smiles in _known():
        mol = Chem.MolFromSmiles(smiles)
        if mol.GetNumHeavyAtoms() > 11:  # larger ones give the same fragments again
            continue
        for a, b in mol.GetSubstructMatches(cut):
            bond = mol.GetBondBetweenAtoms(a, b).GetIdx()
            pieces = Chem.FragmentOnBonds(mol, [bond], dummyLabels=[(0, 0)])
            for piece in Chem.MolToSmiles(pieces).split("."):
                fragment = Chem.MolFromSmiles(piece)
                if fragment is not None and 2 <= fragment.GetNumAtoms() <= MAX_HEAVY - 1:
                    counts[piece] = counts.get(piece, 0) + 1
    names = sorted(counts)
    weight = np.sqrt([counts[name] for name in names])  # methyl and phenyl must not drown the rest
    return names, np.cumsum(weight) / weight.sum()


@functools.lru_cache(maxsize=4096)
def _parsed(smiles: str) -> Chem.Mol:
    return Chem.MolFromSmiles(smiles)


def _pick_known(rng: np.random.Generator) -> Chem.Mol:
    return _parsed(_small()[rng.integers(len(_small()))])


def _join(rng: np.random.Generator) -> Chem.Mol | None:
    """Two fragments, bonded where they were cut; one side of the new bond is carbon."""
    names, cumulative = _fragments()
    left, right = (_parsed(names[np.searchsorted(cumulative, rng.random())]) for _ in range(2))
    joined = Chem.RWMol(Chem.CombineMols(left, right))
    dummies = [atom for atom in joined.GetAtoms() if atom.GetAtomicNum() == 0]
    ends = [atom.GetNeighbors()[0] for atom in dummies]
    if len(dummies) != 2 or 6 not in (ends[0].GetAtomicNum(), ends[1].GetAtomicNum()):
        return None
    joined.AddBond(ends[0].GetIdx(), ends[1].GetIdx(), Chem.BondType.SINGLE)
    for index in sorted((atom.GetIdx() for atom in dummies), reverse=True):
        joined.RemoveAtom(index)
    return _sanitised(joined)


def _sanitised(mol: Chem.RWMol) -> Chem.Mol | None:
    return mol if Chem.SanitizeMol(mol, catchErrors=True) == Chem.SanitizeFlags.SANITIZE_NONE else None


def _free(mol: Chem.Mol) -> list[int]:
    """Bond orders that each atom could still take from its hydrogens; none where it is charged."""
    return [0 if atom.GetFormalCharge() else atom.GetTotalNumHs() for atom in mol.GetAtoms()]


def _extend(mol: Chem.RWMol, rng: np.random.Generator) -> Chem.Mol | None:
    """One atom more, or one ring bond, in the place of hydrogens."""
    free = _free(mol)
    places = [i for i, n in enumerate(free) if n > 0]
    if not places:
        return None
    first = int(rng.choice(places))
    if rng.random() < 0.15:  # close a ring of five or six
        distances = Chem.GetDistanceMatrix(mol)[first]
        ends = [i for i in places if distances[i] in (4, 5)]
        if not ends:
            return None
        mol.AddBond(first, int(rng.choice(ends)), Chem.BondType.SINGLE)
        return _sanitised(mol)
    element = int(rng.choice(list(_GROW), p=list(_GROW.values())))
    order = int(min(rng.choice([1, 2, 3], p=[0.78, 0.18, 0.04]), free[first], _VALENCE[element]))
    mol.AddBond(first, mol.AddAtom(Chem.Atom(element)), _BONDS[order])
    return _sanitised(mol)


def _grow(rng: np.random.Generator) -> Chem.Mol | None:
    mol = Chem.RWMol(Chem.MolFromSmiles("C"))
    target = int(rng.integers(5, MAX_HEAVY + 1))
    for _ in range(4 * target):
        if mol.GetNumAtoms() >= target:
            break
        mol = Chem.RWMol(_extend(Chem.RWMol(mol), rng) or mol)
    return mol


def _mutate(rng: np.random.Generator) -> Chem.Mol | None:
    """One to three changes to a known molecule: another element, an atom more, or an end atom less."""
    mol = Chem.RWMol(_pick_known(rng))
    for _ in range(rng.integers(1, 4)):
        changed = Chem.RWMol(mol)
        change = rng.integers(3)
        if change == 0:
            atom = changed.GetAtomWithIdx(int(rng.integers(changed.GetNumAtoms())))
            element = int(rng.choice(list(_GROW), p=list(_GROW.values())))
            if atom.GetFormalCharge() or atom.GetTotalValence() - atom.GetTotalNumHs() > _VALENCE[element]:
                continue
            atom.SetAtomicNum(element)
            atom.SetNoImplicit(False)
            atom.SetNumExplicitHs(0)
            changed = _sanitised(changed)
        elif change == 1:
            changed = _extend(changed, rng)
        else:
            ends = [a.GetIdx() for a in changed.GetAtoms() if a.GetDegree() == 1 and not a.GetFormalCharge()]
            if not ends:
                continue
            changed.RemoveAtom(int(rng.choice(ends)))
            changed = _sanitised(changed)
        mol = Chem.RWMol(changed) if changed is not None else mol
    return mol


_MAKE: dict[str, Callable[[np.random.Generator], Chem.Mol | None]] = {
    "known": _pick_known,
    "join": _join,
    "mutate": _mutate,
    "grow": _grow,
}
