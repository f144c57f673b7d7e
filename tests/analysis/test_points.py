"""The points table: reading, cleaning, burn-in, smoothing."""

import numpy as np
import pandas as pd
import pytest

from symscale.analysis.intervals import generator
from symscale.analysis.laws import fit
from symscale.analysis.points import (
    after_burn_in,
    at_fractions,
    canonical,
    ema,
    group_of,
    load_points,
    usable,
)
from symscale.analysis.simulate import NOISE_FREE, Noise, paper_truth, simulate
from symscale.analysis.simulate_cells import paper_cells, simulate_cell, write_cell
from symscale.errors import UserError


@pytest.mark.parametrize(
    ("cell", "group"),
    [("esen_c16", "esen"), ("mpnn_w128_sym_s2", "mpnn_sym"), ("esen_c8_l2", "esen_l2"), ("other", "other")],
)
def test_a_group_is_a_name_without_width_and_seed(cell, group):
    """Cells of one group differ in size and seed only."""
    assert group_of(cell) == group


def test_points_of_curve_files_are_those_that_were_written(tmp_path):
    """Round trip through the curve format: N from the metadata, C in PFLOP, varying spec fields as columns."""
    cells = paper_cells(["esen"], validations=5)[:3]
    for spec in cells:
        write_cell(spec, simulate_cell(spec, seed=1), tmp_path / spec.name / "curve.parquet")
    points = load_points(sorted(tmp_path.glob("*/curve.parquet")))
    expected = canonical(pd.concat([simulate_cell(s, seed=1) for s in cells]))
    for column in ("cell", "group", "N", "C", "H", "loss", "energy_loss", "step", "total_steps"):
        if points[column].dtype.kind == "f":
            assert np.allclose(points[column], expected[column], rtol=1e-12)
        else:
            assert points[column].tolist() == expected[column].tolist()
    assert "depth" not in points


def test_no_curves_and_a_file_that_is_none_are_refused(tmp_path):
    """The message names the file."""
    with pytest.raises(UserError, match="no curves"):
        load_points([])
    broken = tmp_path / "curve.parquet"
    broken.write_bytes(b"PAR1 half a file")
    with pytest.raises(UserError, match=str(broken)):
        load_points([broken])


def test_bad_and_duplicate_rows_are_left_out_and_told(clean_sweep):
    """A diverged run costs its own rows only, by name."""
    points = clean_sweep["esen"].copy()
    diverged = points.index[points["cell"] == "esen_c8"][-3:]
    points.loc[diverged, "loss"] = [np.nan, np.inf, -1.0]
    points = pd.concat([points, points.iloc[[0, 5]]])
    kept, words = usable(points)
    assert len(kept) == len(clean_sweep["esen"]) - 3
    assert any("esen_c8: 3 rows" in w for w in words)
    assert any("2 duplicate" in w for w in words)


def test_curves_of_different_units_are_refused(clean_sweep):
    """One curve in FLOP among others in PFLOP; one in molecules among atoms is doubted."""
    points = clean_sweep["esen"].copy()
    rows = points["cell"] == "esen_c8"
    with pytest.raises(UserError, match=r"esen_c8.*different units"):
        usable(points.assign(C=points["C"].where(~rows, points["C"] * 1e15)))
    _, words = usable(points.assign(D=points["D"].where(~rows, points["D"] / 27)))
    assert any("check the units" in w for w in words)


def test_burn_in_drops_steps_and_fractions_pick_the_papers_rows(clean_sweep):
    """2 % of steps go; ten rows a run stay, at r D_max."""
    points = clean_sweep["mpnn"]
    assert after_burn_in(points, 0.02)["fraction"].min() >= 0.02
    rows = at_fractions(points)
    assert (rows.groupby("run").size() == 10).all()
    assert np.allclose(np.sort(rows["fraction"].unique()), np.arange(1, 11) / 10, rtol=0.01)


def test_a_table_without_those_fractions_keeps_all_rows():
    """Somebody else's curve has its own steps."""
    points = pd.DataFrame({"run": "a", "fraction": [0.01, 0.03, 0.33, 0.55], "loss": 1.0})
    assert len(at_fractions(points)) == 4


def test_lag_matched_smoothing_leaves_a_power_law_and_plain_smoothing_bends_it():
    """Noise-free GemNet: EMA 0.9 biases beta upward unless log D is filtered alike."""
    points = simulate(paper_truth("gemnet"), generator(0), noise=NOISE_FREE, validations=400)
    points = after_burn_in(points, 0.02)

    def beta(p):
        p = canonical(at_fractions(p))
        return fit("sum", [p["N"].to_numpy(), p["D"].to_numpy()], p["loss"].to_numpy()).params["beta"]

    plain, matched = beta(ema(points, 0.9, lag_matched=False)) - 0.499, beta(ema(points, 0.9)) - 0.499
    assert plain > 0.004
    assert abs(matched) < plain / 5


def test_smoothing_reduces_evaluation_noise():
    """EMA 0.9 divides white noise by sqrt(19)."""
    noise = Noise(0, 0, 0.05)
    truth = paper_truth("gemnet")
    rough = simulate(truth, generator(0), noise=noise, validations=400)
    clean = simulate(truth, generator(0), noise=NOISE_FREE, validations=400)
    late = rough["fraction"] > 0.1
    before = np.std(np.log(rough["loss"] / clean["loss"])[late])
    smooth, base = ema(rough, 0.9), ema(clean, 0.9)
    assert np.std(np.log(smooth["loss"] / base["loss"])[late]) < before / 3


def test_energy_and_force_terms_are_smoothed_with_the_loss():
    """Constant shares of a smoothed loss stay those shares, row by row; a term that is 0 stays 0."""
    points = simulate(paper_truth("gemnet"), generator(0), noise=Noise(0, 0, 0.05), validations=60)
    points = points.assign(energy_loss=0.2 * points["loss"], force_loss=0.8 * points["loss"])
    smooth = ema(points, 0.9)
    assert not np.allclose(smooth["loss"], points["loss"], rtol=1e-3)
    assert np.allclose(smooth["energy_loss"], 0.2 * smooth["loss"], rtol=1e-12)
    assert np.allclose(smooth["force_loss"], 0.8 * smooth["loss"], rtol=1e-12)
    assert (ema(points.assign(energy_loss=0.0), 0.9)["energy_loss"] == 0).all()


@pytest.mark.parametrize("factor", [1.0, -0.1])
def test_impossible_smoothing_is_refused(clean_sweep, factor):
    """A factor of one never moves."""
    with pytest.raises(UserError, match="ema factor"):
        ema(clean_sweep["esen"], factor)
