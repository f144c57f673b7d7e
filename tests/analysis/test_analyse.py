"""From curve files to the tables that figures and report read."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from symscale.__main__ import main
from symscale.analysis import paper, tables
from symscale.analysis.intervals import generator
from symscale.analysis.records import Options
from symscale.analysis.simulate import paper_truth, simulate
from symscale.analysis.simulate_cells import paper_cells, simulate_cell, write_cell
from symscale.analysis.sweep import analyse


def write_sweep(folder, names, validations=12, seed=0):
    """Curves of some of the paper's cells."""
    for spec in paper_cells(list(paper.LADDERS), validations=validations):
        if spec.name in names:
            write_cell(spec, simulate_cell(spec, seed=seed), folder / spec.name / "curve.parquet")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Three widths of two architectures, some 20 rows each: what a laptop makes."""
    names = ("mpnn_w128", "mpnn_w441", "mpnn_w1583", "esen_c4", "esen_c12", "esen_c32")
    folder = write_sweep(tmp_path_factory.mktemp("tiny"), names)
    assert main(["analyse", "--results", str(folder), "--bootstraps", "50"]) == 0
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All 48 cells of the paper, simulated with noise."""
    folder = write_sweep(
        tmp_path_factory.mktemp("whole"), {s.name for s in paper_cells(list(paper.LADDERS))}, validations=100
    )
    assert main(["analyse", "--results", str(folder), "--bootstraps", "200"]) == 0
    return tables.read(folder / "analysis")


def values(results, law, group, parameter, x="", variant=""):
    f = results["fits"]
    row = f[
        (f.law == law) & (f.group == group) & (f.parameter == parameter) & (f.x == x) & (f.variant == variant)
    ]
    assert len(row) == 1
    return row.iloc[0]


@pytest.mark.parametrize("arch", list(paper.LADDERS))
def test_simulated_paper_sweep_gives_back_table_7_within_its_intervals(whole, arch):
    """alpha and beta inside the run intervals, and the estimates inside or near Table 7's own."""
    for name in ("alpha", "beta"):
        truth = paper.TABLE7[arch][name][0]
        row = values(whole, "sum", arch, name)
        assert row.lo <= truth <= row.hi
        assert row.value == pytest.approx(truth, rel=0.12)
    row = values(whole, "closed_form", arch, "gamma", "C")
    assert (
        row.lo <= paper.TABLE1[arch]["sum"]["gamma"][0] + 6e-4
        and row.hi >= paper.TABLE1[arch]["sum"]["gamma"][0] - 6e-4
    )
    assert values(whole, "kappa", arch, "kappa", "C").value == pytest.approx(paper.KAPPA[arch])


def test_simulated_egnn_shows_the_censoring_bias(whole):
    """The whole frontier's gamma lies below the closed form's, beyond its interval; the reader is told."""
    frontier = values(whole, "frontier", "egnn", "gamma", "C")
    truth = values(whole, "closed_form", "egnn", "gamma", "C")
    assert truth.value - frontier.value > 0.012 and frontier.hi < 0.1952
    entry = next(f for f in whole["document"]["fits"] if f["name"] == "frontier:egnn:C")
    assert any("censored" in w and "D* beyond D_max" in w for w in entry["diagnostics"])
    assert entry["status"] == "flagged" and any(
        "off that of the uncensored window" in w for w in entry["flags"]
    )
    plain = next(f for f in whole["document"]["fits"] if f["name"] == "frontier:mpnn:C")
    assert plain["status"] == "ok" and any("censored" in w for w in plain["diagnostics"])


def test_naive_intervals_stand_beside_as_published(whole):
    """Narrower than the run's for alpha in every architecture: Table 7's column compares with these."""
    for arch in paper.LADDERS:
        row = values(whole, "sum", arch, "alpha")
        assert row.naive_hi - row.naive_lo < row.hi - row.lo


def test_schema_is_the_documented_one(whole):
    """Columns of every table, and names that join them."""
    assert {
        "cell",
        "group",
        "arch",
        "N",
        "D",
        "C",
        "H",
        "step",
        "total_steps",
        "loss",
        "kept",
        "in_sum_fit",
    } <= set(whole["points"])
    assert list(whole["frontier"]) == ["group", "arch", "x", "budget", "loss", "cell", "run", "N", "D", "x_reached",
                                       "censored", "where"]  # fmt: skip
    assert list(whole["fits"]) == ["fit", "law", "group", "arch", "x", "variant", "parameter", "value", "lo", "hi",
                                   "naive_lo", "naive_hi", "interval", "status", "n_points", "n_bootstrap",
                                   "seed"]  # fmt: skip
    assert list(whole["sensitivity"]) == ["group", "law", "x", "setting", "value", "parameter", "estimate"]
    assert set(whole["draws"]["fit"]) <= set(whole["fits"]["fit"])
    assert {f["name"] for f in whole["document"]["fits"]} == set(whole["fits"]["fit"])
    assert set(whole["comparisons"][0]) == {"kind", "what", "first", "second", "estimate", "lo", "hi", "p", "verdict",
                                            "numbers"}  # fmt: skip
    frontier = whole["frontier"]
    for _, rows in frontier.groupby(["group", "x"]):
        assert (np.diff(rows["loss"]) <= 0).all()


def test_sensitivity_covers_burn_in_delta_smoothing_and_rows(whole):
    """{1, 2, 5, 10} % of steps, three deltas; a true law moves little with them."""
    s = whole["sensitivity"]
    assert set(s[s.setting == "burn_in"].value) == {"0.01", "0.02", "0.05", "0.1"}
    assert set(s[s.setting == "delta"].value) == {"0.0001", "0.001", "0.01"}
    assert {"linf", "rows", "ema", "frontier"} <= set(s.setting)
    assert set(s[s.setting == "frontier"].value) == {"steps", "running"}
    mine = s[(s.group == "mpnn") & (s.law == "sum") & (s.setting == "delta") & (s.parameter == "alpha")]
    assert mine.estimate.std() < 0.02


def test_allocation_of_a_budget_and_crossings(whole, tmp_path_factory, capsys):
    """N*, D* and loss by the closed form of the fit; MPNN and eSEN cross where their true frontiers do."""
    folder = next(tmp_path_factory.getbasetemp().glob("whole*/analysis"))
    assert main(["allocate", "--analysis", str(folder), "--budget", "100", "--budget", "1e5", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    row = next(r for r in out["allocations"] if r["group"] == "esen" and r["budget"] == 100)
    assert 3 * 78.8 * row["N"] * row["D"] / 1e15 == pytest.approx(100)
    assert row["loss_lo"] < 0.669 * 100**-0.392 * 1.03 and row["loss_hi"] > 0.669 * 100**-0.392 * 0.97
    told = {r["group"]: any("7 runs only" in w for w in r["words"]) for r in out["allocations"]}
    assert told == {"egnn": False, "esen": True, "gemnet": False, "mpnn": False}
    assert any("extrapolated" in w for r in out["allocations"] if r["budget"] == 1e5 for w in r["words"])
    cross = next(c for c in out["crossings"] if {c["first"], c["second"]} == {"esen", "mpnn"})
    truth = (0.934 / 0.669) ** (1 / (0.1462 - 0.3918))
    assert cross["lo"] <= truth <= cross["hi"] and cross["better_above"] == "esen"
    assert main(["allocate", "--analysis", str(folder), "--budget", "10", "--x", "H"]) == 0
    assert "device-hours" in capsys.readouterr().out


def test_three_widths_give_flagged_numbers(tiny, capsys):
    """Every law is there, marked, with a jackknife's width and in words; nothing is silently sharp."""
    results = tables.read(tiny / "analysis")
    for entry in results["document"]["fits"]:
        if entry["law"] in ("sum", "closed_form", "frontier") and entry["status"] != "not fitted":
            assert entry["status"] == "flagged" and any("3 runs only" in w for w in entry["diagnostics"]), (
                entry["name"]
            )
    assert main(["allocate", "--analysis", str(tiny / "analysis"), "--budget", "10"]) == 0
    assert "too few runs for an interval" in capsys.readouterr().out
    row = values(results, "sum", "mpnn", "alpha")
    assert row.interval == "run jackknife, t" and row.lo < 0.276 < row.hi


def test_results_do_not_depend_on_the_order_of_curves_or_on_threads(tiny):
    """Files named in another order, in another process with two BLAS threads: the same bytes of numbers."""
    curves = sorted(map(str, tiny.glob("*/curve.parquet")), reverse=True)
    command = [
        sys.executable,
        "-m",
        "symscale",
        "analyse",
        *curves,
        "--out",
        str(tiny / "again"),
        "--bootstraps",
        "50",
    ]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OPENBLAS_NUM_THREADS": "2"})
    first, second = (json.loads((tiny / f / "fits.json").read_text()) for f in ("analysis", "again"))
    assert first == second


def test_a_group_alone_gives_what_it_gives_among_others_and_rows_may_come_in_any_order():
    """Every fit has a random stream of its own: however groups are spread over processes, and rows over a table, the
    same values, intervals and draws come out to the last bit."""
    points = pd.concat([simulate(paper_truth(a), generator(0, a), validations=8) for a in ("esen", "gemnet")])
    options = Options(bootstraps=20)
    together, _ = analyse(points.sample(frac=1, random_state=3), options)
    for arch in ("esen", "gemnet"):
        (alone,), _ = analyse(points[points["arch"] == arch], options)
        (among,) = (a for a in together if a.group == arch)
        for one, other in zip(alone.records, among.records, strict=True):
            assert tables.plain(tables.fit_object(one)) == tables.plain(tables.fit_object(other))
            assert all(np.array_equal(one.draws[k], other.draws[k], equal_nan=True) for k in one.draws)
    (other,), _ = analyse(points[points["arch"] == "esen"], Options(bootstraps=20, seed=1))
    assert not np.array_equal(other.records[0].draws["alpha"], together[0].records[0].draws["alpha"])


def test_one_run_one_width_and_a_diverged_cell_do_not_stop_the_others(tmp_path):
    """A lone cell is 'not fitted' with the reason; a cell of NaN is left out by name; MPNN is fitted."""
    write_sweep(tmp_path, ("mpnn_w128", "mpnn_w256", "mpnn_w441", "mpnn_w835", "egnn_w32", "esen_c4"))
    spec = next(s for s in paper_cells(["esen"], validations=5) if s.name == "esen_c4")
    write_cell(spec, simulate_cell(spec).assign(loss=np.nan), tmp_path / "esen_c4" / "curve.parquet")
    assert main(["analyse", "--results", str(tmp_path), "--bootstraps", "20"]) == 0
    results = tables.read(tmp_path / "analysis")
    entries = {f["name"]: f for f in results["document"]["fits"]}
    assert (
        entries["sum:egnn"]["status"] == "not fitted"
        and "1 model size" in entries["sum:egnn"]["diagnostics"][0]
    )
    assert "sum:esen" not in entries and any("esen_c4" in w for w in results["document"]["words"])
    assert entries["sum:mpnn"]["status"] in ("ok", "flagged") and entries["sum:mpnn"]["params"]


def test_losses_that_rise_with_size_are_told_and_not_optimised(tmp_path, capsys):
    """Undertrained ladders do this: no closed form, no allocation, no crash, and the frontier still stands."""
    for k, spec in enumerate(
        s for s in paper_cells(["esen"], validations=8) if s.width in (4, 8, 12, 20, 32)
    ):
        points = simulate_cell(spec)
        rising = points.assign(loss=(0.5 + 0.1 * k) * (points["D"] / 1e9) ** -0.05)
        write_cell(spec, rising, tmp_path / spec.name / "curve.parquet")
    assert main(["analyse", "--results", str(tmp_path), "--bootstraps", "20"]) == 0
    results = tables.read(tmp_path / "analysis")
    entries = {f["name"]: f for f in results["document"]["fits"]}
    assert entries["sum:esen"]["status"] == "flagged"
    assert any("bound" in w for w in entries["sum:esen"]["diagnostics"])
    assert entries["closed_form:esen:C"]["status"] == "not fitted" and entries["frontier:esen:C"]["params"]
    assert main(["allocate", "--analysis", str(tmp_path / "analysis"), "--budget", "1"]) == 1
    assert "nothing can be allocated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results", "nowhere"], "nowhere"),
        (["--options", "{oops"], "not JSON"),
        (["--options", '{"speed": 1}'], "unknown option speed"),
        (["--bootstraps", "2"], "at least 10"),
    ],
)
def test_what_cannot_be_analysed_is_refused(arguments, message, tiny, capsys):
    """One line each."""
    assert main(["analyse", "--results", str(tiny), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_analysis_imports_no_torch():
    """The library stands alone: numpy, scipy, pandas, pyarrow."""
    modules = (
        "compare",
        "components",
        "allocate",
        "sensitivity",
        "simulate_cells",
        "sweep",
        "table_fit",
        "tables",
    )
    code = "import sys; import symscale.curves\n"
    code += "\n".join(f"import symscale.analysis.{m}" for m in modules)
    code += "\nprint([m for m in ('torch', 'snakemake', 'matplotlib', 'seaborn') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"


def test_points_table_is_marked_with_what_was_used(tiny):
    """Burn-in rows are there for the figures, and marked."""
    points = pd.read_parquet(tiny / "analysis" / "points.parquet")
    assert not points.loc[points["fraction"] < 0.019, "kept"].any()
    assert points.loc[points["fraction"] > 0.021, "kept"].all()
    assert points["in_sum_fit"].sum() == 6 * 10
