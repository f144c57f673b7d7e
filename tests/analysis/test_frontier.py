"""Frontiers: extraction, censoring, and the published numbers."""

import numpy as np
import pandas as pd
import pytest

from symscale.analysis import intervals as iv
from symscale.analysis import paper
from symscale.analysis.closed import Allocation, fit_cost
from symscale.analysis.frontier import bootstrap_frontier, censor, extract, fit_frontier
from symscale.analysis.intervals import generator
from symscale.analysis.laws import fit
from symscale.analysis.points import after_burn_in, at_fractions, canonical
from symscale.analysis.simulate import NOISE_FREE, paper_truth, simulate
from symscale.errors import UserError


def surface_of(points):
    points = canonical(at_fractions(points))
    return fit("sum", [points["N"].to_numpy(), points["D"].to_numpy()], points["loss"].to_numpy())


def test_frontier_is_the_lowest_loss_reached_within_the_budget():
    """By hand: two runs, budgets 1 to 16; a run that worsens again keeps its best."""
    points = pd.DataFrame(
        {
            "run": ["a", "a", "a", "b", "b"],
            "cell": ["a", "a", "a", "b", "b"],
            "C": [1.0, 2, 8, 4, 16],
            "N": [10.0, 10, 10, 20, 20],
            "D": [1.0, 2, 8, 2, 8],
            "loss": [5.0, 3, 4, 2.5, 1],
        }
    )
    table = extract(points, "C", n_budgets=5, interpolate=False)  # 1, 2, 4, 8, 16
    assert table["loss"].to_numpy() == pytest.approx([5, 3, 2.5, 2.5, 1])
    assert table["cell"].tolist() == ["a", "a", "b", "b", "b"]
    assert table["x_reached"].tolist() == [1, 2, 4, 4, 16]
    again = extract(points.sample(frac=1, random_state=1), "C", n_budgets=5, interpolate=False)
    pd.testing.assert_frame_equal(table, again)


def test_interpolated_frontier_lies_on_a_power_law_between_validations():
    """One run, two validations: log-log interpolation is exact, the plain frontier waits for the second."""
    points = pd.DataFrame(
        {"run": "a", "cell": "a", "C": [1.0, 100], "N": 1.0, "D": [1.0, 100], "loss": [1.0, 0.1]}
    )
    between = extract(points, "C", n_budgets=3)["loss"].to_numpy()
    assert between == pytest.approx([1, 10**-0.5, 0.1])
    assert extract(points, "C", n_budgets=3, interpolate=False)["loss"].tolist() == [1, 1, pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("arch", "gamma", "F"),
    [("mpnn", 0.1435, 0.939), ("egnn", 0.1722, 0.795), ("gemnet", 0.2581, 0.490), ("esen", 0.4019, 0.706)],
)
def test_table_7_reproduces_table_1s_frontier_column(clean_sweep, arch, gamma, F):
    """Noise-free curves of Table 7's law, 2 % burn-in, read among the runs that are still training at a budget: what
    an independent computation gave, to its four digits, and Table 1's frontier column within .0035 and 3 %."""
    found = fit_frontier(extract(after_burn_in(clean_sweep[arch]), finished=False)).params
    assert found["gamma"] == pytest.approx(gamma, abs=2e-4)
    assert found["F"] == pytest.approx(F, abs=1e-3)
    assert found["gamma"] == pytest.approx(paper.TABLE1[arch]["frontier"]["gamma"][0], abs=0.0035)
    assert found["F"] == pytest.approx(paper.TABLE1[arch]["frontier"]["F"][0], rel=0.03)


@pytest.mark.parametrize("arch", list(paper.LADDERS))
def test_finished_runs_matter_to_the_frontier_only_where_the_ladder_has_gaps(clean_sweep, arch):
    """With finished runs kept ("at most that budget") EGNN's gamma is .1769, inside Table 1's interval too; the other
    three move by less than .0004. Against the closed form, both readings are within .004 of Table 1."""
    points = after_burn_in(clean_sweep[arch])
    kept, running = (fit_frontier(extract(points, finished=f)).params["gamma"] for f in (True, False))
    published, low, high = paper.TABLE1[arch]["frontier"]["gamma"]
    assert kept == pytest.approx(published, abs=0.004)
    if arch == "egnn":
        assert kept == pytest.approx(0.1769, abs=2e-4) and kept - running > 0.004
        assert low <= running < kept <= high
    else:
        assert abs(kept - running) < 4e-4


def test_a_finished_run_is_not_read_beyond_its_end_unless_kept():
    """By hand: run a ends at 4 with loss 2; run b, larger, is still above that at 8."""
    points = pd.DataFrame(
        {"run": list("aabb"), "cell": list("aabb"), "C": [1.0, 4, 4, 16], "N": [1.0, 1, 4, 4],
         "D": [1.0, 4, 1, 4], "loss": [4.0, 2, 9, 1]}
    )  # fmt: skip
    kept, running = (extract(points, n_budgets=5, finished=f) for f in (True, False))  # 1, 2, 4, 8, 16
    assert kept["loss"].to_numpy() == pytest.approx([4, 8**0.5, 2, 2, 1])
    assert running["loss"].to_numpy() == pytest.approx([4, 8**0.5, 2, 3, 1])
    assert running["run"].tolist() == ["a", "a", "a", "b", "b"]
    gap = points[points["C"] != 4.0]  # a ends at 1, b starts at 16
    assert extract(gap, n_budgets=5, finished=False)["budget"].to_numpy() == pytest.approx([1, 16])


def test_egnn_frontier_is_biased_by_d_max_and_its_uncensored_window_is_not(clean_sweep):
    """The two columns of Table 1 disagree for EGNN because the data ran out, not because of the data."""
    points = after_burn_in(clean_sweep["egnn"])
    allocation = Allocation(paper.table7_law("egnn"), fit_cost(points))
    table = extract(points)
    marks = censor(table, points, allocation)
    whole = fit_frontier(table).params["gamma"]
    window = fit_frontier(table[marks == "inside"]).params["gamma"]
    assert allocation.gamma - whole > 0.015
    assert abs(allocation.gamma - window) < 0.004
    assert (marks == "D* beyond D_max").mean() > 0.3


def test_esen_is_censored_by_its_ladder_and_not_by_d_max(clean_sweep):
    """Its largest budget of 809 PFLOP stays below the 926 at which D* reaches D_max."""
    points = after_burn_in(clean_sweep["esen"])
    marks = censor(extract(points), points, Allocation(paper.table7_law("esen"), fit_cost(points)))
    assert not (marks == "D* beyond D_max").any()
    assert (marks == "N* below the second-smallest N").any()


def test_noise_free_frontier_has_a_point_for_an_interval(clean_sweep):
    """Without noise there is nothing to be uncertain about; resampling budgets would still claim a width."""
    points = after_burn_in(clean_sweep["gemnet"]).reset_index(drop=True)
    table = extract(points, n_budgets=100)
    law = fit_frontier(table)
    inside = np.ones(len(table), bool)
    draws, centre = bootstrap_frontier(points, surface_of(points), law, x="C", inside=inside, n_bootstrap=50,
                                       rng=np.random.default_rng(0), n_budgets=100)  # fmt: skip
    low, high = iv.basic(law.params["gamma"], draws.params["gamma"], centre["gamma"])
    assert high - low < 1e-6
    per_budget = iv.percentile(iv.bootstrap_points(law, 200, np.random.default_rng(0)).params["gamma"])
    assert per_budget[1] - per_budget[0] > 1e-3


def test_sparse_validations_do_not_bend_the_frontier(clean_sweep):
    """Twelve log-spaced rows and the ten fractions give the dense exponent; a staircase between them does not."""
    rare = after_burn_in(simulate(paper_truth("esen"), generator(0), noise=NOISE_FREE, validations=12))
    dense = fit_frontier(extract(after_burn_in(clean_sweep["esen"]))).params["gamma"]
    smooth, stairs = (fit_frontier(extract(rare, interpolate=i)).params["gamma"] for i in (True, False))
    assert abs(smooth - dense) < 0.004
    assert abs(stairs - dense) > 0.015


def test_frontier_without_positive_budgets_is_refused(clean_sweep):
    """A column of zeros is not a cost."""
    with pytest.raises(UserError, match="column H"):
        extract(clean_sweep["esen"].assign(H=0.0), "H")
