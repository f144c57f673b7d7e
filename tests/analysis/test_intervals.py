"""Resampling by runs."""

import numpy as np
import pytest

from symscale.analysis import intervals as iv
from symscale.analysis.laws import fit
from symscale.analysis.points import at_fractions, canonical
from symscale.errors import UserError


def law_of(points):
    points = canonical(at_fractions(points))
    return points, fit("sum", [points["N"].to_numpy(), points["D"].to_numpy()], points["loss"].to_numpy())


def test_whole_runs_are_drawn():
    """Points of one run share a weight, and a resample has as many runs as the sweep."""
    runs, N = np.repeat(["a", "b", "c", "d", "e"], 3), np.repeat([1.0, 2, 3, 4, 5], 3)
    weights, _ = iv.run_weights(runs, N, 200, np.random.default_rng(0))
    assert weights.shape == (200, 15)
    per_run = weights.reshape(200, 5, 3)
    assert (per_run == per_run[:, :, :1]).all()
    assert (per_run[:, :, 0].sum(axis=1) == 5).all()


def test_resamples_with_fewer_than_three_sizes_are_refused_and_counted():
    """Five runs of three sizes: no resample has fewer, and the refusals are reported at their expected rate."""
    runs, N = np.array(["a", "b", "c", "d", "e"]), np.array([1.0, 1, 1, 2, 3])
    weights, rejected = iv.run_weights(runs, N, 4000, np.random.default_rng(0))
    assert all(len(np.unique(N[w > 0])) == 3 for w in weights[:300])
    accept = 1 - 2 * 0.8**5 - 0.4**5 + 0.2**5 * 2 + 0.6**5  # inclusion-exclusion over the three sizes
    assert rejected / (4000 + rejected) == pytest.approx(1 - accept, abs=0.02)


def test_run_bootstrap_does_not_depend_on_row_order_and_is_seeded(noisy_sweep):
    """Shuffled rows give the same draws; another seed gives others."""
    points, law = law_of(noisy_sweep["gemnet"])
    again, law_again = law_of(noisy_sweep["gemnet"].sample(frac=1, random_state=4))
    draw = [
        iv.bootstrap_runs(
            fitted, p["run"].to_numpy(str), p["N"].to_numpy(), 40, iv.generator(seed, "x")
        ).params
        for p, fitted, seed in ((points, law, 0), (again, law_again, 0), (points, law, 1))
    ]
    assert np.array_equal(draw[0]["alpha"], draw[1]["alpha"])
    assert not np.array_equal(draw[0]["alpha"], draw[2]["alpha"])


def test_batched_refit_equals_one_fit_at_a_time(noisy_sweep):
    """Weights are repetition: the batch solves what a fit to the repeated points solves."""
    points, law = law_of(noisy_sweep["egnn"])
    runs, N = points["run"].to_numpy(str), points["N"].to_numpy()
    weights, _ = iv.run_weights(runs, N, 5, np.random.default_rng(2))
    batch = iv.refit(law, weights=weights)
    for k, w in enumerate(weights):
        row = np.repeat(np.arange(len(points)), w.astype(int))
        alone = fit("sum", [N[row], points["D"].to_numpy()[row]], points["loss"].to_numpy()[row])
        assert batch["alpha"][k] == pytest.approx(alone.params["alpha"], abs=2e-4)
        assert batch["beta"][k] == pytest.approx(alone.params["beta"], abs=2e-4)


def test_per_point_interval_is_narrower_than_the_run_interval(noisy_sweep):
    """Run-correlated noise: the published kind of interval claims too much."""
    points, law = law_of(noisy_sweep["mpnn"])
    rng = np.random.default_rng(0)
    by_run = iv.bootstrap_runs(law, points["run"].to_numpy(str), points["N"].to_numpy(), 300, rng)
    by_point = iv.bootstrap_points(law, 300, rng)
    assert np.std(by_point.params["alpha"]) < 0.7 * np.std(by_run.params["alpha"])


def test_jackknife_error_of_a_mean_is_its_standard_error():
    """Leave-one-out means give s / sqrt(n) exactly."""
    x = np.random.default_rng(0).standard_normal(9)
    left = np.array([np.delete(x, i).mean() for i in range(9)])
    assert iv.jackknife_error(left) == pytest.approx(x.std(ddof=1) / 3, rel=1e-12)


def test_jackknife_of_two_runs_is_refused(noisy_sweep):
    """Two runs have no jackknife."""
    points = noisy_sweep["esen"]
    two = points[points["width"].isin([4, 32])]
    points, law = law_of(two)
    with pytest.raises(UserError, match="2 runs"):
        iv.jackknife_runs(law, points["run"].to_numpy(str))


def test_basic_interval_mirrors_a_biased_estimate():
    """Draws that sit 1 above their truth move the interval 1 below the estimate."""
    draws = np.linspace(9, 13, 4001)
    low, high = iv.basic(5.0, draws, centre=10.0)
    assert (low + high) / 2 == pytest.approx(4.0, abs=1e-6)
    assert high - low == pytest.approx(0.95 * 4, abs=1e-2)


def test_few_runs_leave_few_degrees_of_freedom_and_three_sizes_none_for_a_free_l_inf(noisy_sweep):
    """Runs less A, alpha and, if free, L_inf; a replicate seed adds a run but no size; along D all runs but one."""
    points = at_fractions(noisy_sweep["esen"])
    three = points[points["width"].isin([4, 12, 32])]
    runs, N, D = three["run"].to_numpy(str), three["N"].to_numpy(), three["D"].to_numpy()
    assert iv.jackknife_df(runs, N, free=False) == 1
    assert iv.jackknife_df(runs, N, free=True) == 0
    assert iv.jackknife_df(runs, D, free=True) == 2
    all_runs, all_n = points["run"].to_numpy(str), points["N"].to_numpy()
    assert (
        iv.jackknife_df(all_runs, all_n, free=False) == 5 and iv.jackknife_df(all_runs, all_n, free=True) == 4
    )
    twice = np.concatenate([runs, np.char.add(runs, "_s1")])
    assert iv.jackknife_df(twice, np.tile(N, 2), free=True) == 3


def test_jackknife_interval_is_students_and_needs_degrees_of_freedom():
    """By hand: error 1, df 1: t = 12.706; factors in logs; L_inf never below 0; nothing without df."""
    left = np.array([9.0, 11.0])  # jackknife error of two values: sqrt(1/2 * 2) = 1
    assert iv.jackknife_error(left) == pytest.approx(1.0)
    assert iv.jackknife_interval("alpha", 10.0, left, 1) == (
        pytest.approx(10 - 12.7062, abs=1e-3),
        pytest.approx(10 + 12.7062, abs=1e-3),
    )
    low, high = iv.jackknife_interval("A", np.e, np.exp(left - 9), 1)
    assert np.log(low * high) == pytest.approx(2.0) and low > 0
    assert iv.jackknife_interval("E", 10.0, left, 1)[0] == 0.0
    assert np.isnan(iv.jackknife_interval("alpha", 10.0, left, 0)).all()
