"""Fits: recovery, optimality against scipy, and words about fits that cannot be trusted."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize

from symscale.analysis import paper
from symscale.analysis.diagnostics import diagnose
from symscale.analysis.laws import LEAST_SQUARES, fit, search_words
from symscale.analysis.solver import _model, huber, solve
from symscale.errors import UserError


def surface(arch="mpnn", E=0.0, rungs=slice(None)):
    """N, D and loss of Table 7's law on the ladder, at r = 0.1 ... 1.0."""
    n = np.array([rung[1] for rung in paper.LADDERS[arch]], float)[rungs]
    N, D = (v.ravel() for v in np.meshgrid(n, paper.D_MAX * np.arange(1, 11) / 10, indexing="ij"))
    law = paper.table7_law(arch)
    return N, D, E + law["A"] * N ** -law["alpha"] + law["B"] * D ** -law["beta"]


@pytest.mark.parametrize("arch", list(paper.LADDERS))
@pytest.mark.parametrize("E", [0.0, 0.07])
def test_noise_free_surface_is_recovered_to_1e_6(arch, E):
    """All parameters to a relative 1e-6, with L_inf free whether or not there is one."""
    N, D, loss = surface(arch, E)
    found = fit("sum", [N, D], loss, free=True).params
    for name, value in (paper.table7_law(arch) | {"E": E}).items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-7), name


@pytest.mark.parametrize("E", [0.0, 0.3])
def test_noise_free_power_law_is_recovered_to_1e_6(E):
    """Eq. (4), with and without an irreducible loss."""
    C = np.geomspace(1e-2, 1e3, 40)
    found = fit("power", [C], E + 0.9 * C**-0.15, free=True).params
    assert found["F"] == pytest.approx(0.9, rel=1e-6)
    assert found["gamma"] == pytest.approx(0.15, rel=1e-6)
    assert found["E"] == pytest.approx(E, abs=1e-7)


@pytest.mark.parametrize("delta", [1e-4, 1e-3, 1e-2, LEAST_SQUARES])
def test_no_general_optimiser_finds_a_lower_objective(delta):
    """scipy from the fit and from the truth, gradient-free and thorough, gains at most 1e-6 of the objective."""
    N, D, loss = surface("gemnet")
    rng = np.random.default_rng(3)
    y = np.log(loss) + 0.02 * rng.standard_normal(len(N)) + 0.02 * np.repeat(rng.standard_normal(12), 10)
    found = fit("sum", [N, D], np.exp(y), delta=delta)
    x1, x2 = np.log(N) - np.log(N).mean(), np.log(D) - np.log(D).mean()

    def objective(t):
        return huber(np.logaddexp(t[0] - t[1] * x1, t[2] - t[3] * x2) - y, delta).sum()

    assert objective(found.theta) == pytest.approx(found.objective, rel=1e-9)
    start = np.array([np.log(0.1), 0.524, np.log(0.1), 0.499])
    for begin in (found.theta, start):
        other = minimize(objective, begin, method="Nelder-Mead",
                         options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000, "maxfev": 4000})  # fmt: skip
        assert found.objective <= other.fun * (1 + 1e-6)


def test_objective_is_a_sum_so_that_twice_the_points_have_twice_the_objective():
    """A mean would hide the number of points and stop optimisers early."""
    N, D, loss = surface("esen")
    loss = loss * np.exp(0.02 * np.random.default_rng(0).standard_normal(len(N)))
    once, twice = (fit("sum", [np.tile(v, k) for v in (N, D)], np.tile(loss, k)) for k in (1, 2))
    assert twice.objective == pytest.approx(2 * once.objective, rel=1e-8)
    assert twice.params["alpha"] == pytest.approx(once.params["alpha"], rel=1e-6)


def test_units_of_n_and_d_change_the_factors_only():
    """Centred logs: in thousands of parameters and molecules the exponents are the same."""
    N, D, loss = surface("egnn")
    loss = loss * np.exp(0.02 * np.random.default_rng(1).standard_normal(len(N)))
    a, b = fit("sum", [N, D], loss), fit("sum", [N / 1e3, D / 27.0], loss)
    assert b.params["alpha"] == pytest.approx(a.params["alpha"], rel=1e-7)
    assert b.params["A"] == pytest.approx(a.params["A"] * 1e3 ** -a.params["alpha"], rel=1e-6)


def test_missing_irreducible_loss_is_told_as_a_bound():
    """Free L_inf on a law without one ends at 0 and says so; with one it does not."""
    N, D, loss = surface("mpnn")
    assert any("bound" in w for w in fit("sum", [N, D], loss * 1.0, free=True).words)
    assert not fit("sum", [N, D], loss + 0.1, free=True).words


def test_exponent_without_information_is_told():
    """A loss that does not depend on D gives beta or B nothing to hold on to: words, not silence."""
    N, D, _ = surface("mpnn")
    found = fit("sum", [N, D], 20 * N**-0.27)
    term = found.params["B"] * D.min() ** -found.params["beta"]
    assert term < 1e-2 or any("bound" in w or "stuck" in w for w in found.words)
    assert found.params["alpha"] == pytest.approx(0.27, abs=0.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -0.2])
def test_losses_without_a_logarithm_are_refused(bad):
    """One bad loss is named, not dropped."""
    N, D, loss = surface("mpnn")
    loss[7] = bad
    with pytest.raises(UserError, match=r"loss are not finite and positive .first at row 7"):
        fit("sum", [N, D], loss)


def test_one_model_size_and_too_few_points_are_refused():
    """One N cannot give alpha; four points cannot give four parameters with anything to spare."""
    N, D, loss = surface("mpnn", rungs=slice(0, 1))
    with pytest.raises(UserError, match="all points have one N"):
        fit("sum", [N, D], loss)
    N, D, loss = (v[::40][:4] for v in surface("mpnn"))
    with pytest.raises(UserError, match="4 points for 4 parameters"):
        fit("sum", [N, D], loss)


def test_a_search_that_did_not_move_or_not_end_is_told():
    """Stuck at start and cut off after one step, each in words; a search that ended well says nothing."""
    N, D, loss = surface("mpnn")
    x = np.log(np.stack([N, D]))
    x, y = x - x.mean(axis=1, keepdims=True), np.log(loss * np.exp(0.01 * np.sin(np.arange(len(N)))))
    start = np.array([[0.0, 1.0, 0.0, 1.0]])
    ended, cut = (solve(x, y, start, max_iterations=m) for m in (400, 1))
    assert search_words("sum", ended, 0, False) == []
    assert any("not converged" in w for w in search_words("sum", cut, 0, False))
    stuck = dataclasses.replace(ended, moved=np.array([False]))
    assert any("stuck at start" in w for w in search_words("sum", stuck, 0, False))


def test_centred_logs_condition_the_fit_a_thousandfold():
    """Published ladders: the condition number of the normal equations is some hundred instead of some million, and
    what a reader would see as alpha and log A remain correlated, which a number says."""
    for arch in paper.LADDERS:
        N, D, loss = surface(arch)
        numbers, words = diagnose(fit("sum", [N, D], loss))
        law = paper.table7_law(arch)
        plain = np.array([[np.log(law["A"]), law["alpha"], np.log(law["B"]), law["beta"]]])
        jac = _model(plain, np.log(np.stack([N, D])))[1][0].T
        assert numbers["condition"] < 1e3 and np.linalg.cond(jac.T @ jac) > 1e3 * numbers["condition"]
        assert numbers["corr(alpha, log A)"] > 0.95 and any("together" in w for w in words.notes)


@pytest.mark.parametrize("name", ["N", "D"])
def test_a_narrow_range_is_flagged(name):
    """Three sizes within a factor 1.6, or the last half of every run: that exponent is weakly determined."""
    N, D, loss = surface("mpnn")
    keep = np.isin(N, [1293284, 1763133, 2422704]) if name == "N" else D > 0.4 * D.max()
    words = diagnose(fit("sum", [N[keep], D[keep]], loss[keep]))[1]
    assert any(w.startswith(f"{name} spans") for w in words.flags)
    assert not any("spans" in w for w in diagnose(fit("sum", [N, D], loss))[1].text)
