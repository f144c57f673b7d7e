"""Closed forms against numerical optima and the published table."""

import numpy as np
import pytest

from symscale.analysis import paper
from symscale.analysis.closed import Allocation, Cost, crossing, fit_cost
from symscale.analysis.laws import evaluate


@pytest.mark.parametrize("p", [1.0, 0.8])
def test_closed_form_is_the_constrained_minimum(p):
    """A fine scan along X = xi N^p D finds no lower loss, and the same N*."""
    params = paper.table7_law("egnn") | {"E": 0.02}
    allocation = Allocation(params, Cost(8.4e-14, p, 0.0, 0.0))
    for budget in (1.0, 300.0):
        n = np.geomspace(1e3, 1e10, 400_001)
        losses = evaluate(params, n, budget / (allocation.cost.xi * n**p))
        assert allocation.loss(budget) == pytest.approx(losses.min(), rel=1e-9)
        assert allocation.optimum(budget)[0] == pytest.approx(n[losses.argmin()], rel=1e-3)
        star = allocation.optimum(budget)
        assert allocation.cost.xi * star[0] ** p * star[1] == pytest.approx(budget)


@pytest.mark.parametrize("arch", list(paper.LADDERS))
def test_table_7_and_kappa_give_table_1s_sum_column(arch):
    """gamma and F_c (C in PFLOP) to the printed digits; a and b add up to one."""
    allocation = Allocation(paper.table7_law(arch), Cost(3 * paper.KAPPA[arch] / 1e15, 1.0, 0.0, 0.0))
    assert allocation.gamma == pytest.approx(paper.TABLE1[arch]["sum"]["gamma"][0], abs=6e-4)
    assert allocation.F == pytest.approx(paper.TABLE1[arch]["sum"]["F"][0], rel=2e-3)
    assert allocation.a + allocation.b == pytest.approx(1)


def test_kappa_is_regressed_and_its_drift_reported():
    """kappa N^0.1: the drift is seen; without it kappa comes back whatever the length of the runs."""
    import pandas as pd

    n = np.repeat([1e5, 1e6, 1e7], [3, 10, 5])
    d = np.geomspace(1e6, 1e9, 18)
    points = pd.DataFrame({"run": n.astype(str), "N": n, "D": d, "C": 3 * 28.0 * n * d / 1e15})
    assert fit_cost(points).kappa == pytest.approx(28)
    assert fit_cost(points).drift == pytest.approx(0, abs=1e-9)
    drifting = fit_cost(points.assign(C=points["C"] * n**0.1))
    assert drifting.drift == pytest.approx(0.1)
    assert fit_cost(points.assign(C=points["C"] * n**0.1), fixed_p=None).p == pytest.approx(1.1)


def test_crossing_is_where_both_frontiers_agree():
    """F1 C^-g1 = F2 C^-g2."""
    at = float(np.exp(crossing((0.934, 0.146), (0.669, 0.392))))
    assert 0.934 * at**-0.146 == pytest.approx(0.669 * at**-0.392)
    assert np.isnan(crossing((0.9, 0.2), (0.7, 0.2)))
