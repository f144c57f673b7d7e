"""Comparisons between groups, and of a law with itself."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from symscale.analysis import paper
from symscale.analysis.compare import across, exponents, extrapolate, irreducible, parallel_shift, welch
from symscale.analysis.intervals import generator
from symscale.analysis.records import Options, Record
from symscale.analysis.simulate import paper_truth, simulate
from symscale.analysis.sweep import GroupAnalysis, analyse

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
    assert c.numbers["horizontal_lo"] <= np.log10(6) <= c.numbers["horizontal_hi"]
    assert c.lo <= 0.1462 * np.log10(6) <= c.hi
    assert c.p < 1e-3


def by_hand(group, F, gamma, budgets, spread):
    """A group with nothing but a frontier F C^-gamma on some budgets, whose draws scatter in gamma only, about the
    middle of its budgets."""
    budget = np.geomspace(*budgets, 50)
    table = pd.DataFrame({"x": "C", "budget": budget, "censored": False})
    slopes = gamma + spread * np.random.default_rng(ord(group)).standard_normal(4000)
    middle = np.log(budget).mean()
    draws = {"gamma": slopes, "F": np.exp(np.log(F) + (slopes - gamma) * middle)}
    params = {"F": (F, 0.0, 0.0, 0.0, 0.0), "gamma": (gamma, 0.0, 0.0, 0.0, 0.0)}
    record = Record("frontier", group, "mpnn", "C", "", "ok", (), params, draws=draws, n_bootstrap=4000)
    runs = pd.DataFrame({"run": [f"{group}{i}" for i in range(12)]})
    return GroupAnalysis(group, "mpnn", runs, runs, None, [record], table)


def test_the_shift_is_taken_under_one_slope_where_slopes_are_not_told_apart():
    """By hand: gamma .20 on budgets 1 to 100 (level L(10) = F 10^-.2) and .22 on 100 to 10^4, errors .02 each: the
    common slope is .21, and the second's level at 1000 is carried to 10 along it. Its interval holds the share
    log10(100) sd(gamma) of the slope's uncertainty."""
    a, b = by_hand("a", 1.0, 0.20, (1, 100), 0.02), by_hand("b", 1.2, 0.22, (100, 1e4), 0.02)
    c = parallel_shift(a, b)
    assert c.numbers["same_slope"] == 1 and c.numbers["common_gamma"] == pytest.approx(0.21, abs=2e-4)
    levels = np.log10(1.0 * 10**-0.20), np.log10(1.2 * 1000**-0.22)
    assert c.estimate == pytest.approx(levels[1] - levels[0] + 2 * 0.21, abs=1e-3)
    assert c.numbers["horizontal"] == pytest.approx(c.estimate / 0.21, rel=1e-3)
    error = 2 * 0.02 / np.sqrt(2)  # two decades times the error of the common slope
    assert c.hi - c.estimate == pytest.approx(2.074 * error, rel=0.05)  # t of 22 degrees of freedom
    assert c.numbers["own_slopes"] == pytest.approx(np.log10(1.2) - 0.02 * 2, abs=1e-6)  # they meet at 100


def test_the_shift_is_taken_by_own_slopes_where_they_differ():
    """The same with errors of .001: not parallel, and compared at the middle of the common budgets, 100."""
    a, b = by_hand("a", 1.0, 0.20, (1, 100), 0.001), by_hand("b", 1.2, 0.22, (100, 1e4), 0.001)
    c = parallel_shift(a, b)
    assert c.numbers["same_slope"] == 0 and c.numbers["middle"] == pytest.approx(100)
    assert c.estimate == pytest.approx(np.log10(1.2) - 0.02 * 2, abs=1e-6)
    assert "not parallel" in c.verdict


def test_groups_of_other_data_are_compared_with_a_warning(groups):
    """Another pack has another sigma: the sentence says so; equal packs and unknown ones say nothing."""
    mpnn, esen = (
        dataclasses.replace(groups[g], points=groups[g].points.assign(data_hash=g)) for g in ("mpnn", "esen")
    )
    told = [c for c in across([mpnn, esen], OPTIONS) if c.kind == "exponent"]
    assert told and all("different packs" in c.verdict for c in told)
    plain = [c for c in across([groups["mpnn"], groups["esen"]], OPTIONS) if c.kind == "exponent"]
    assert [c.p for c in plain] == [c.p for c in told] and not any("packs" in c.verdict for c in plain)


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
