"""Molecules and a small pack that the tests share."""

import numpy as np
import pytest
import torch
from molecules import random_molecule

from symscale.data.build import build_pack
from symscale.data.pack import open_pack

torch.set_num_threads(1)


@pytest.fixture
def molecules():
    """Five random molecules of 3 to 14 atoms."""
    rng = np.random.default_rng(7)
    return [random_molecule(rng, n) for n in (3, 14, 6, 9, 5)]


@pytest.fixture(scope="session")
def pack(tmp_path_factory):
    """A real pack: 60 molecules, 3 frames each, GFN2-xTB labels."""
    folder = tmp_path_factory.mktemp("packs") / "xtb"
    entry = {"source": "xtb", "molecules": 60, "frames": 3, "validation": 0.2, "seed": 0}
    build_pack(entry, str(folder), 1)
    return open_pack(str(folder))
