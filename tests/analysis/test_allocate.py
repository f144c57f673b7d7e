"""Where the frontiers of two groups cross, with and without irreducible losses."""

import json

import numpy as np
import pytest
from scipy.optimize import brentq

from symscale.__main__ import main
from symscale.analysis import paper
from symscale.analysis.allocate import meetings, nearest
from symscale.analysis.closed import Allocation, Cost
from symscale.analysis.simulate_cells import paper_cells, simulate_cell, write_cell

WINDOW = np.log(1e-4), np.log(1e8)


def frontier(arch, E=0.0, **params):
    cost = Cost(3 * paper.KAPPA[arch] / 1e15, 1.0, 0.0, 0.0)
    return Allocation(paper.table7_law(arch) | {"E": E} | params, cost)


def roots(first, second):
    """Every crossing by bracketing on a grid five times as fine."""

    def gap(t):
        return float(first.loss(np.exp(t)) - second.loss(np.exp(t)))

    grid = np.linspace(*WINDOW, 3001)
    values = [gap(t) for t in grid]
    pairs = zip(grid, grid[1:], values, values[1:], strict=False)
    return [brentq(gap, lo, hi) for lo, hi, a, b in pairs if a * b < 0]


@pytest.mark.parametrize(("E", "count"), [(0.0, 1), (0.1, 2), (0.5, 0)])
def test_frontiers_cross_once_twice_or_never(E, count):
    """eSEN falls faster than MPNN. With a floor under eSEN, MPNN comes below it again far out; with a high
    floor eSEN is nowhere better."""
    first, second = frontier("mpnn"), frontier("esen", E)
    found = meetings(first, second, WINDOW)
    assert len(found) == count == len(roots(first, second))
    assert found == pytest.approx(roots(first, second), abs=2e-3)


def test_draws_follow_the_crossing_that_is_asked_for():
    """Of two crossings, each draw's own second one; a draw that does not cross is NaN."""
    first, second = frontier("mpnn"), frontier("esen", 0.1)
    last = roots(first, second)[1]
    many = frontier("esen", np.array([0.1, 0.105, 0.5]))
    plain = Allocation({k: np.full(3, v) for k, v in first.params.items()}, first.cost)
    found = nearest(plain, many, last, WINDOW)
    assert found[0] == pytest.approx(last, abs=2e-3) and 0 < abs(found[1] - last) < 1
    assert np.isnan(found[2])


def test_crossings_are_reported_from_an_analysis_with_free_irreducible_losses(tmp_path, capsys):
    """They used to be left out in silence. The interval holds the truth of the noise-free laws."""
    for spec in paper_cells(["mpnn", "esen"], validations=20):
        if spec.width in (
            128,
            320,
            441,
            607,
            835,
            1150,
            1349,
            1583,
            1857,
            2179,
            2557,
            4,
            8,
            10,
            12,
            16,
            20,
            32,
        ):
            write_cell(spec, simulate_cell(spec), tmp_path / spec.name / "curve.parquet")
    assert main(["analyse", "--results", str(tmp_path), "--bootstraps", "60", "--linf", "free"]) == 0
    capsys.readouterr()
    folder = str(tmp_path / "analysis")
    assert main(["allocate", "--analysis", folder, "--budget", "100", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    row = min(out["crossings"], key=lambda r: abs(np.log(r["budget"] or 1e9)))
    truth = (0.934 / 0.669) ** (1 / (0.1462 - 0.3918))
    assert row["lo"] <= truth <= row["hi"] and row["better_above"] == "esen"
    assert main(["allocate", "--analysis", folder, "--budget", "100"]) == 0
    assert "cross at" in capsys.readouterr().out
