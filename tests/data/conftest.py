"""Real labelled molecules, and packs of them, for the tests of data."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from symscale.data.build import build_pack
from symscale.data.pack import open_pack
from symscale.data.sources import xtb

SMILES = [
    "CCO",
    "CC(=O)N",
    "c1ccccc1",
    "CCN",
    "OCC=O",
    "C#CCO",
    "NCC(=O)O",
    "CC(C)=O",
    "CNC=O",
    "COC",
    "CC#N",
    "O=CC=O",
]


@pytest.fixture(scope="session")
def molecules():
    """36 geometries of 12 molecules with GFN2-xTB labels: z (n,), pos (n, 3), energy eV, forces (n, 3) eV/A, id."""
    found = []
    for index, smiles in enumerate(SMILES):
        z, positions = xtb.dynamics(smiles, 3, np.random.default_rng(index))
        for pos, (energy, forces) in zip(positions, xtb.labels(z, positions), strict=True):
            found.append(SimpleNamespace(z=z, pos=pos, energy=energy, forces=forces, molecule=index))
    return found


@pytest.fixture(scope="session")
def ase_atoms(molecules):
    """The same as ASE Atoms with energy and forces, as an OMol25 row has them."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    found = []
    for m in molecules:
        atoms = Atoms(m.z, m.pos)
        atoms.calc = SinglePointCalculator(atoms, energy=m.energy, forces=m.forces)
        found.append(atoms)
    return found


@pytest.fixture(scope="session")
def write_shard():
    """Write Atoms as an OMol25 shard: by ase-db-backends, with charge, spin, data_id and source under ``data``."""
    from ase_db_backends.aselmdb import LMDBDatabase

    def write(path, atoms_list, data=None):
        with LMDBDatabase(str(path)) as database:
            for index, atoms in enumerate(atoms_list):
                extra = {"charge": 0, "spin": 1, "data_id": "spice", "source": f"toy/{index}"}
                database.write(atoms, data=extra | (data[index] if data else {}))
        return path

    return write


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory, ase_atoms, write_shard):
    """Three toy shards with 12 molecules each."""
    folder = tmp_path_factory.mktemp("neutral_train")
    for shard in range(3):
        write_shard(folder / f"data{shard:04d}.aselmdb", ase_atoms[shard::3])
    return folder


@pytest.fixture(scope="session")
def toy_entry(shard_folder):
    return {"source": "omol25", "train": str(shard_folder), "validation": 6, "check": "off"}


@pytest.fixture(scope="session")
def toy_folder(toy_entry, tmp_path_factory):
    """A pack of the toy shards."""
    out = tmp_path_factory.mktemp("pack") / "toy"
    build_pack(toy_entry, str(out), 1)
    return str(out)


@pytest.fixture
def toy_pack(toy_folder):
    return open_pack(toy_folder)


@pytest.fixture
def run_symscale():
    """Run the command line in a process of its own, with one thread."""

    def run(*arguments, **options):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "symscale", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, **options)

    return run


@pytest.fixture
def open_folder():
    """A folder that everyone may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def ordinary_user():
    """A context in which this process has no more rights than anyone: root may read what nobody may."""

    @contextlib.contextmanager
    def drop():
        if os.geteuid() != 0:
            yield
            return
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return drop
