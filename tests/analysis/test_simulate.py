"""Simulated curves: their law, their noise, and the cell folders they fill."""

import json
from pathlib import Path

import numpy as np
import pytest

from symscale import cells
from symscale import config as configs
from symscale.__main__ import main
from symscale.analysis import paper
from symscale.analysis.intervals import generator
from symscale.analysis.laws import evaluate
from symscale.analysis.simulate import NOISE_FREE, Noise, noise_along, paper_sweep, paper_truth, simulate
from symscale.analysis.simulate_cells import PIVOT, parameters, simulate_cell, tilted
from symscale.curves import read_curve

CONFIG = Path(__file__).parents[2] / "config" / "simulated-paper.yaml"


def test_noise_free_curves_are_the_law():
    """L(N, D) of Table 7 and C = 3 kappa N D, at every row."""
    points = simulate(paper_truth("egnn"), generator(0), noise=NOISE_FREE)
    assert np.allclose(
        points["loss"], evaluate(paper.table7_law("egnn"), points["N"], points["D"]), rtol=1e-12
    )
    assert np.allclose(points["C"], 3 * 28.0 * points["N"] * points["D"] / 1e15, rtol=1e-12)
    assert points["D"].max() == pytest.approx(paper.D_MAX)


def test_noise_has_its_stated_size_and_memory():
    """Standard deviation sqrt(.01^2 + .01^2 + .003^2); neighbours a memory apart keep 1/e of the drifting part."""
    rng = np.random.default_rng(0)
    log_d = np.arange(0, 7, 0.7)
    rows = np.array([noise_along(log_d, Noise(), rng) for _ in range(4000)])
    assert rows.std() == pytest.approx(np.sqrt(2e-4 + 9e-6), rel=0.03)
    drifting = np.array([noise_along(log_d, Noise(0.0, 0.01, 0.0), rng) for _ in range(4000)])
    assert np.corrcoef(drifting[:, 3], drifting[:, 4])[0, 1] == pytest.approx(np.exp(-1), abs=0.05)


def test_the_papers_sweep_has_its_48_runs_and_is_seeded():
    """15 + 14 + 12 + 7; the same seed gives the same table, another does not."""
    first, again, other = (paper_sweep(seed, validations=5) for seed in (0, 0, 1))
    assert first["run"].nunique() == 48
    assert first.equals(again) and not first["loss"].equals(other["loss"])


def test_a_cells_curve_depends_on_nothing_but_its_spec_and_the_seed():
    """Neither on the other cells nor on their order."""
    config = configs.load(CONFIG)
    spec = cells.parse_name(config, "gemnet_w64")
    assert simulate_cell(spec, seed=3).equals(simulate_cell(spec, seed=3))
    assert not simulate_cell(spec, seed=3)["loss"].equals(simulate_cell(spec, seed=4)["loss"])


def test_studies_change_what_they_should():
    """Symmetry loss: six times the compute. Repeats: worse than fresh data, augmentation mends it. lmax 2: slower."""
    config = configs.load(CONFIG)

    def last(name):
        return simulate_cell(cells.parse_name(config, name), noise=NOISE_FREE).iloc[-1]

    plain = last("mpnn_w441")
    sym = last("mpnn_w441_sym")
    assert sym["C"] == pytest.approx(6 * plain["C"]) and sym["loss"] == pytest.approx(plain["loss"])
    repeats, augmented = last("mpnn_w441_d1_e100"), last("mpnn_w441_d1_e100_aug")
    assert repeats["D"] == pytest.approx(plain["D"]) and repeats["loss"] > 1.1 * plain["loss"]
    assert augmented["loss"] == pytest.approx(plain["loss"])
    assert last("esen_c32_l2")["loss"] > last("esen_c32_l3")["loss"] > last("esen_c32")["loss"]


def test_tilting_keeps_the_loss_at_the_pivot():
    """Only the slopes change there."""
    law = paper.table7_law("esen")
    assert evaluate(tilted(law, 0.7), *PIVOT) == pytest.approx(evaluate(law, *PIVOT))


def test_parameters_off_the_ladder_lie_between_their_neighbours():
    """Published widths are exact; others grow monotonously, about as the square of the width."""
    assert parameters("mpnn", 441) == 2422704
    assert parameters("mpnn", 375) < parameters("mpnn", 400) < parameters("mpnn", 441)
    assert parameters("egnn", 1600) == pytest.approx(4 * parameters("egnn", 800), rel=0.1)


def test_command_fills_ordinary_cell_folders(tmp_path, capsys):
    """cell.json that training would read, and curve.parquet with every column and key of a trained one."""
    assert main(["simulate", "--out", str(tmp_path), "--arch", "esen"]) == 0
    assert "7 cells" in capsys.readouterr().out
    spec, _ = cells.read_cell(tmp_path / "esen_c4" / "cell.json")
    rows, meta = read_curve(tmp_path / "esen_c4" / "curve.parquet")
    assert spec.name == "esen_c4" and meta["spec_hash"] == cells.spec_hash(spec)
    assert meta["N"] == 441778 and meta["kappa"] == pytest.approx(78.8)
    assert np.isfinite(rows.to_numpy(float)).all()
    assert rows["step"].is_monotonic_increasing and rows["step"].iloc[-1] == meta["total_steps"]


def test_command_fills_in_resolved_cells_and_takes_laws(tmp_path):
    """As the workflow calls it: cell.json in, curve beside it; a law of one's own replaces the paper's."""
    document = cells.cell_document(configs.load(CONFIG), cells.parse_name(configs.load(CONFIG), "mpnn_w128"))
    path = tmp_path / "mpnn_w128" / "cell.json"
    path.parent.mkdir()
    path.write_text(document)
    laws = tmp_path / "laws.json"
    laws.write_text(json.dumps({"mpnn": {"A": 0.0, "B": 0.0, "E": 0.5}}))
    assert main(["simulate", str(path), "--laws", str(laws), "--noise", "0", "0", "0"]) == 0
    rows, _ = read_curve(path.with_name("curve.parquet"))
    assert np.allclose(rows["val_loss"], 0.5)


def test_any_law_on_any_ladder(tmp_path, capsys):
    """An architecture of one's own: five sizes, its law, and the analysis that gives the law back."""
    law = {"A": 20.0, "alpha": 0.3, "B": 300.0, "beta": 0.35, "E": 0.0, "kappa": 5.0}
    ladder = [[8, 10_000], [16, 40_000], [32, 160_000], [64, 640_000], [128, 2_560_000]]
    (tmp_path / "laws.json").write_text(json.dumps({"mine": law | {"ladder": ladder}}))
    out = tmp_path / "cells"
    arguments = ["--laws", str(tmp_path / "laws.json"), "--arch", "mine", "--out", str(out)]
    assert main(["simulate", *arguments, "--noise", "0", "0", "0", "--atoms", "1e8"]) == 0
    curves = sorted(out.glob("*/curve.parquet"))
    assert [c.parent.name for c in curves] == sorted(f"mine_w{w}" for w, _ in ladder)
    assert read_curve(out / "mine_w32" / "curve.parquet")[1]["N"] == 160_000
    assert main(["analyse", "--results", str(out), "--bootstraps", "10"]) == 0
    fits = {f["name"]: f for f in json.loads((out / "analysis" / "fits.json").read_text())["fits"]}
    for name in ("A", "alpha", "B", "beta"):
        assert fits["sum:mine"]["params"][name]["value"] == pytest.approx(law[name], rel=1e-4)
    assert fits["kappa:mine:C"]["params"]["kappa"]["value"] == pytest.approx(5.0)


@pytest.mark.parametrize(
    "ladder", [[], [[8, 100]], [[8, 100], [4, 200]], [[8, 100], [16, 50]], [[8, 1.5], [16, 50]], "w", [8, 16]]
)
def test_a_ladder_that_is_none_is_refused(ladder, tmp_path, capsys):
    """Rungs are [width, N], rising."""
    (tmp_path / "laws.json").write_text(json.dumps({"mpnn": {"ladder": ladder}}))
    assert main(["simulate", "--laws", str(tmp_path / "laws.json"), "--out", str(tmp_path / "x")]) == 1
    assert "law of mpnn: ladder" in capsys.readouterr().err and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "resnet"], "resnet: the paper has"),
        (["--atoms", "-1"], "--atoms above 0"),
        (["--laws", "nowhere.json"], "nowhere.json"),
    ],
)
def test_impossible_simulations_are_refused(arguments, message, tmp_path, capsys):
    """One line, exit status 1, nothing written."""
    assert main(["simulate", "--out", str(tmp_path / "x"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_trained_curve_is_never_simulated_over(tmp_path, capsys):
    """Only curves that were simulated before are replaced."""
    import json

    import pyarrow.parquet as pq

    from symscale.__main__ import main
    from symscale.curves import META_KEY

    arguments = ["simulate", "--arch", "esen", "--out", str(tmp_path)]
    assert main(arguments) == 0 and main(arguments) == 0
    curve = tmp_path / "esen_c32/curve.parquet"
    table = pq.read_table(curve)
    meta = json.loads(table.schema.metadata[META_KEY]) | {"device": "NVIDIA A100"}
    pq.write_table(table.replace_schema_metadata({META_KEY: json.dumps(meta).encode()}), curve)
    before = curve.read_bytes()
    assert main(arguments) == 1 and "a trained curve" in capsys.readouterr().err
    assert curve.read_bytes() == before
