"""Element references by streaming least squares."""

from __future__ import annotations

import numpy as np
import pytest

from symscale.data.reference import LeastSquares

TRUE = np.zeros(119)
TRUE[[1, 6, 7, 8]] = [-16.0013, -1037.0951, -1490.3891, -2047.6980]  # eV, the size of DFT total energies


def compositions(count, rng, elements=(1, 6, 7, 8)):
    table = np.zeros((count, 119))
    table[:, elements] = rng.integers(0, 12, size=(count, len(elements)))
    table[:, 1] += 1
    return table


def fit_in_blocks(table, energy, block):
    fit = LeastSquares()
    for first in range(0, len(table), block):
        fit.add(table[first : first + block], energy[first : first + block])
    return fit.solve()


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_known_references_are_recovered_from_any_blocks(block):
    """Exact energies give the references to 1e-8 eV although they are of 1e4 eV."""
    table = compositions(300, np.random.default_rng(0))
    found = fit_in_blocks(table, table @ TRUE, block)
    print("largest error, eV:", np.abs(found.values - TRUE).max())
    np.testing.assert_allclose(found.values, TRUE, atol=1e-8)
    assert found.undetermined_elements() == [] and found.rare_elements() == {}


def test_streaming_equals_numpy_least_squares():
    """With noise, where the answer is not known beforehand."""
    rng = np.random.default_rng(1)
    table = compositions(500, rng)
    energy = table @ TRUE + rng.normal(size=500)
    direct = np.linalg.lstsq(table[:, [1, 6, 7, 8]], energy, rcond=None)[0]
    np.testing.assert_allclose(fit_in_blocks(table, energy, 64).values[[1, 6, 7, 8]], direct, atol=1e-8)


def test_one_formula_is_rank_deficient_and_said_so():
    """MD of one molecule: its sum of references is known, no element's is, and other formulas are not."""
    table = np.zeros((50, 119))
    table[:, [1, 6, 8]] = [6, 2, 1]
    found = fit_in_blocks(table, table @ TRUE, 10)
    np.testing.assert_allclose(table @ found.values, table @ TRUE, atol=1e-7)
    assert found.undetermined_elements() == [1, 6, 8]
    other = np.zeros((3, 119))
    other[0, [1, 6, 8]] = [12, 4, 2]  # a multiple: determined
    other[1, [1, 6]] = [4, 1]
    other[2, [1, 6, 8, 7]] = [6, 2, 1, 1]  # an element never seen
    assert found.determined(other).tolist() == [True, False, False]


def test_rare_elements_are_named_with_their_count():
    """Three molecules with bromine among 100."""
    table = compositions(100, np.random.default_rng(2))
    table[:3, 35] = 1
    assert fit_in_blocks(table, table @ TRUE, 20).rare_elements() == {35: 3}


def test_ratio_locked_elements_are_undetermined_others_not():
    """An element that only ever comes with another in one ratio has no reference of its own."""
    table = compositions(80, np.random.default_rng(3), elements=(1, 6, 7))
    table[:, 17] = table[:, 15] = np.arange(80) % 4
    found = fit_in_blocks(table, table @ TRUE, 16)
    assert found.undetermined_elements() == [15, 17]
