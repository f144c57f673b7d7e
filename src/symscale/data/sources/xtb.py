"""The built-in data: small organic molecules labelled with GFN2-xTB on the user's own machine.

SMILES -> ETKDGv3 -> MMFF minimum -> MMFF Langevin dynamics (the force distribution of GFN2 dynamics at a tenth of its
cost) -> energy and forces by tblite (GFN2-xTB: Bannwarth, Ehlert and Grimme 2019, doi:10.1021/acs.jctc.8b01176).
Everything is a function of the seed and the molecule's number: smaller sets are part of larger ones and a rerun is
identical to the last bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from symscale.data.chunks import Samples
from symscale.data.sources import Task

HARTREE = 27.211386245988  # eV, CODATA 2018
BOHR = 0.529177210903  # Angstrom
FRAMES = 4
MAX_FORCE = 20.0  # eV/Angstrom
MIN_GAP = 0.5  # eV; below it a single closed-shell determinant means little
TASK_MOLECULES = 40

_STEP = 1.0  # fs
_FRAME_STEPS = 40
_FRICTION = 0.02  # 1/fs
_TEMPERATURES = (200.0, 1500.0)  # K
_KB = 0.0019872041  # kcal/mol/K
_ACCELERATION = 4.184e-4  # (kcal/mol/Angstrom)/u in Angstrom/fs^2


def tasks(entry: dict) -> list[Task]:
    """Ranges of molecules; the molecules themselves are drawn here, as each must differ from those before."""
    from symscale.data.sources.smiles import molecules

    frames = entry.get("frames", FRAMES)
    drawn = molecules(entry["molecules"], entry.get("seed", 0))
    return [
        Task(
            name=f"molecules {first}-{min(first + TASK_MOLECULES, len(drawn)) - 1}",
            samples=len(drawn[first : first + TASK_MOLECULES]) * frames,
            payload=(first, tuple(drawn[first : first + TASK_MOLECULES])),
        )
        for first in range(0, len(drawn), TASK_MOLECULES)
    ]


def read(entry: dict, task: Task) -> Iterator[Samples]:
    """Geometries and labels of a range of molecules, in one block."""
    first, smiles = task.payload
    frames, seed = entry.get("frames", FRAMES), entry.get("seed", 0)
    found, dropped = [], Counter()
    for index, text in enumerate(smiles, first):
        rng = np.random.default_rng([seed, index, 1])
        geometry = dynamics(text, frames, rng)
        if geometry is None:
            dropped["no geometry"] += frames
            continue
        numbers, positions = geometry
        for frame, (pos, label) in enumerate(
            zip(positions, labels(numbers, positions, dropped), strict=True)
        ):
            if label is not None:
                found.append((numbers, pos, label[1], label[0], index * 1000 + frame, index))
    z, pos, forces, energy, row, molecule = zip(*found, strict=True) if found else ([[]],) * 6
    yield Samples(
        z=np.concatenate(z),
        pos=np.concatenate(pos),
        forces=np.concatenate(forces),
        energy=np.array(energy),
        counts=np.array([len(numbers) for numbers in z]) if found else np.zeros(0, np.int64),
        row=np.array(row),
        molecule=np.array(molecule),
        dropped=dict(dropped),
    )


def dynamics(smiles: str, frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """Atomic numbers (n,) and positions (frames, n, 3) in Angstrom, one every 40 fs of MMFF Langevin dynamics."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    parameters = AllChem.ETKDGv3()
    parameters.randomSeed = int(rng.integers(1, 2**31 - 1))
    parameters.maxIterations = 20
    if AllChem.EmbedMolecule(mol, parameters) != 0 or not AllChem.MMFFHasAllMoleculeParams(mol):
        return None
    AllChem.MMFFOptimizeMolecule(mol, maxIters=500)
    field = AllChem.MMFFGetMoleculeForceField(mol, AllChem.MMFFGetMoleculeProperties(mol))
    conformer = mol.GetConformer()

    def acceleration(x):
        conformer.SetPositions(x)
        field.Initialize()  # forget the distances of the last call
        return np.array(field.CalcGrad()).reshape(-1, 3) * (-_ACCELERATION) / mass

    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    mass = np.array([atom.GetMass() for atom in mol.GetAtoms()])[:, None]  # u
    temperature = rng.uniform(*_TEMPERATURES)
    thermal = np.sqrt(_KB * temperature * _ACCELERATION / mass)  # Angstrom/fs
    keep = np.exp(-_FRICTION * _STEP)
    x = conformer.GetPositions()
    v = thermal * rng.normal(size=x.shape)
    a = acceleration(x)
    positions = np.empty((frames, *x.shape))
    for frame in range(frames):
        kicks = np.sqrt(1 - keep**2) * thermal * rng.normal(size=(_FRAME_STEPS, *x.shape))
        for kick in kicks:  # BAOAB (Leimkuhler and Matthews 2013, doi:10.1093/amrx/abs010)
            v = v + 0.5 * _STEP * a
            x = x + 0.5 * _STEP * v
            v = keep * v + kick
            x = x + 0.5 * _STEP * v
            a = acceleration(x)
            v = v + 0.5 * _STEP * a
        positions[frame] = x
    return (numbers, positions) if np.isfinite(positions).all() else None


def labels(
    numbers: np.ndarray,
    positions: np.ndarray,
    dropped: Counter | None = None,
    *,
    charge: int = 0,
    spin: int = 1,
    trusted: bool = True,
) -> list[tuple[float, np.ndarray] | None]:
    """GFN2-xTB energy (eV) and forces (n, 3) in eV/Angstrom of each geometry; None where it failed.

    With ``trusted``, also None where the gap is below 0.5 eV or a force above 20 eV/Angstrom.
    """
    from tblite.interface import Calculator

    found: list[tuple[float, np.ndarray] | None] = []
    calculator, result = None, None
    dropped = Counter() if dropped is None else dropped
    for pos in positions:
        try:
            if calculator is None:
                calculator = Calculator("GFN2-xTB", numbers, pos / BOHR, charge=charge, uhf=spin - 1)
                calculator.set("verbosity", 0)
            else:
                calculator.update(pos / BOHR)
            result = calculator.singlepoint(result)  # the last frame's density is a good start
        except RuntimeError:  # tblite's word for 'not converged'
            dropped["no convergence"] += 1
            calculator, result = None, None
            found.append(None)
            continue
        energy = float(result.get("energy")) * HARTREE
        forces = -np.asarray(result.get("gradient")) * (HARTREE / BOHR)
        levels, filled = result.get("orbital-energies"), result.get("orbital-occupations")
        gap = (
            levels[filled < 1.0].min(initial=np.inf) - levels[filled >= 1.0].max(initial=-np.inf)
        ) * HARTREE
        if trusted and gap <= MIN_GAP:
            dropped["gap below 0.5 eV"] += 1
            found.append(None)
        elif trusted and np.square(forces).sum(1).max() >= MAX_FORCE**2:
            dropped["force above 20 eV/Angstrom"] += 1
            found.append(None)
        else:
            found.append((energy, forces))
    return found
