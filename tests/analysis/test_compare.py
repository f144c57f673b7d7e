"""Comparisons between groups, and of a law with itself."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from symscale.analysis import paper
from symscale.analysis.compare import across, exponents, extrapolate, irreducible, parallel_shift, welch
from symscale.analysis.intervals import generator
from symscale.analysis.records import Options
from symscale.analysis.simulate import paper_truth, simulate
from symscale.analysis.sweep import analyse

OPTIONS = Options(bootstraps=150)


def ladder(arch, count):
    """Every other rung, to be quick."""
    return paper_truth(arch).ladder[::2][:count]


@pytest.fixture(scope="module")
def groups():
    """MPNN, MPNN with symmetry loss (same law, M + 1 = 6 times the compute) and eSEN."""
    mpnn = dataclasses.replace(paper_truth("mpnn"), ladder=ladder("mpnn", 8))
    sym = dataclasses.replace(mpnn, kappa=6 * mpnn.kappa, suffix="_sym")
    points = [
        simulate(t, generator(5, t.suffix, t.arch), validations=20) for t in (mpnn, sym, paper_truth("esen"))
    ]
    analyses, _ = analyse(pd.concat(points), OPTIONS)
    return {a.group: a for a in analyses}


def test_architectures_of_different_exponents_are_told_apart(groups):
    """Table 7's MPNN and eSEN: alpha, beta, gamma all differ, and the interval holds the true difference."""
    found = {c.what: c for c in exponents(groups["esen"], groups["mpnn"])}
    truth = {
        name: paper.table7_law("mpnn")[name] - paper.table7_law("esen")[name] for name in ("alpha", "beta")
    }
    for name, difference in truth.items():
        c = found[f"{name} (sum)"]
        assert c.p < 1e-3 and c.lo <= difference <= c.hi
        assert c.estimate == pytest.approx(difference, abs=0.12)
    assert found["gamma (closed_form, C)"].estimate == pytest.approx(0.1462 - 0.3918, abs=0.02)


def test_symmetry_loss_is_a_parallel_shift_of_log10_6(groups):
    """Same slope; horizontally log10 6 = .778, vertically gamma times that = .109 (section 4.4)."""
    c = parallel_shift(groups["mpnn"], groups["mpnn_sym"])
    assert c.numbers["slope_p"] > 0.05 and c.numbers["same_slope"]
    assert c.numbers["horizontal"] == pytest.approx(np.log10(6), abs=0.12)
    assert c.lo <= 0.1462 * np.log10(6) <= c.hi
    assert c.p < 1e-3


def test_different_slopes_are_not_called_parallel(groups):
    """eSEN's frontier against MPNN's."""
    c = parallel_shift(groups["mpnn"], groups["esen"])
    assert c.numbers["slope_p"] < 1e-3 and not c.numbers["same_slope"]


def test_variants_are_compared_with_their_architecture(groups):
    """mpnn_sym with mpnn, architectures with each other, and no variant with another architecture."""
    found = across(list(groups.values()), OPTIONS)
    pairs = {(c.first, c.second) for c in found if c.second}
    assert pairs == {("esen", "mpnn"), ("mpnn", "mpnn_sym")}
    assert {c.kind for c in found} == {"exponent", "shift", "L_inf", "extrapolation"}
    assert all(c.verdict for c in found)


def with_floor(E, seed):
    """An eSEN-like ladder whose losses end on a floor."""
    truth = paper_truth("gemnet")
    points = simulate(
        dataclasses.replace(truth, params=truth.params | {"E": E}), generator(seed, "floor"), validations=5
    )
    return analyse(points, Options(bootstraps=20))[0][0]


def test_an_irreducible_loss_is_found_and_its_absence_not_invented():
    """L_inf = .08 is significant; for none, p is not small in most of four sweeps."""
    found = irreducible(with_floor(0.08, 1), OPTIONS, draws=199)
    assert found.p < 0.02 and found.numbers["E"] == pytest.approx(0.08, abs=0.03)
    none = [irreducible(with_floor(0.0, seed), OPTIONS, draws=99).p for seed in range(2, 6)]
    assert sum(p < 0.05 for p in none) <= 1


def test_extrapolation_error_is_small_for_a_true_law_and_large_for_a_broken_one(groups):
    """The largest models predicted from the small ones; then with their losses stalled."""
    honest = {c.what: c for c in extrapolate(groups["mpnn"], OPTIONS)}
    assert honest["sum, largest by N"].numbers["rms"] < 0.06
    assert honest["sum, largest by C"].numbers["rms"] < 0.06
    points = groups["mpnn"].sum_points.copy()
    largest = points["N"] >= np.unique(points["N"])[-2]
    points.loc[largest, "loss"] *= 1.3
    broken = extrapolate(dataclasses.replace(groups["mpnn"], sum_points=points), OPTIONS)
    assert broken[0].estimate > 0.15


def test_welch_by_hand():
    """Difference 2 with errors 3 and 4 (together 5) and many degrees of freedom: p = P(|z| > 0.4)."""
    low, high, p = welch(2.0, (3.0, 4.0), 10**6)
    assert (low, high) == (
        pytest.approx(2 - 1.959964 * 5, abs=1e-3),
        pytest.approx(2 + 1.959964 * 5, abs=1e-3),
    )
    assert p == pytest.approx(0.68916, abs=1e-4)
    assert np.isnan(welch(1.0, (0.0, 0.0), 4)[2])
