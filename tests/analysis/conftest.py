"""Simulated sweeps that the analysis tests share."""

import pytest

from symscale.analysis import paper
from symscale.analysis.intervals import generator
from symscale.analysis.simulate import NOISE_FREE, paper_truth, simulate


@pytest.fixture(scope="session")
def clean_sweep():
    """arch -> noise-free points of the published ladder, densely validated."""
    return {
        a: simulate(paper_truth(a), generator(0, a), noise=NOISE_FREE, validations=250) for a in paper.LADDERS
    }


@pytest.fixture(scope="session")
def noisy_sweep():
    """arch -> points with run-correlated noise, 30 validations a run."""
    return {a: simulate(paper_truth(a), generator(0, a), validations=30) for a in paper.LADDERS}
