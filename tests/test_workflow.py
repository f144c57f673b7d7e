"""What Snakemake makes of a config: the DAG of dry-runs, targets, and refusals, with the real snakemake."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from symscale import cells
from symscale import config as configs
from symscale.workflow import Sweep

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path):
    """The files Snakemake needs, in a folder of their own."""
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("workflow", "profiles", "config"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def snakemake(folder, *args):
    """Run the real snakemake in a folder; (exit status, stdout and stderr together)."""
    command = [sys.executable, "-m", "snakemake", *args]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return done.returncode, done.stdout + done.stderr


def jobs(text):
    """Job counts by rule from the table that a dry-run prints."""
    table = text.split("Job stats:")[1].split("\ntotal")[0].splitlines()
    return {row.split()[0]: int(row.split()[1]) for row in table if row[-1:].isdigit()}


def test_dry_run_of_the_paper_lists_every_cell_without_data(checkout):
    """All of them with their studies, two packs, the averaging of the MPNNs, although no OMol25 is here."""
    status, text = snakemake(checkout, "-n", "--configfile", "config/paper.yaml")
    assert status == 0, text
    sweep = Sweep.from_config(configs.load(ROOT / "config/paper.yaml"))
    expected = {
        "train": len(sweep.cells),
        "cell": len(sweep.cells),
        "pack": 2,
        "group_average": 15,
        "kappa": 1,
    }
    assert jobs(text) | expected == jobs(text)
    lines = text.splitlines()
    assert all(
        f"{name}\t{', '.join(s for s, n in sweep.studies.items() if name in n)}" in lines
        for name in sweep.cells
    )
    assert sweep.summary() in lines


def test_only_studies_that_ask_for_it_measure_more_than_curves(checkout):
    """config.yaml asks for exponents alone: no averaging, no count of FLOPs, and no list for a single cell."""
    status, text = snakemake(checkout, "-n")
    assert status == 0 and not {"group_average", "kappa"} & set(jobs(text)), text
    status, text = snakemake(checkout, "-n", "results/mpnn_w32/curve.parquet")
    assert status == 0 and "are shared" not in text


def test_averaging_takes_the_samples_of_the_studies_that_ask(checkout):
    """Their union and the model as it is; the analysis gets one file a cell."""
    config = configs.load(checkout / "config/studies.yaml")
    config["studies"]["more"] = {"ask": "group_average", "samples": [3], "cells": ["mpnn_w16"]}
    sweep = Sweep.from_config(config)
    cell = type("Wildcards", (), {"cell": "mpnn_w16"})
    assert sweep.samples(cell) == "0 1 2 3 4 8 16 32 64"
    assert sweep.averages() == [
        f"results/studies/mpnn_w{w}/averaging.parquet" for w in (16, 32, 64, 128, 256, 512)
    ]
    assert sweep.measured().startswith("--averaging results/studies/mpnn_w16/")
    assert sweep.measured().endswith("--kappa results/studies/kappa.parquet")


def test_one_cell_off_the_ladder_is_one_training_run(checkout):
    """Any name of the grammar is a target."""
    status, text = snakemake(checkout, "-n", "results/esen_c5_l1_m1_s3/curve.parquet")
    assert status == 0, text
    assert jobs(text) == {"train": 1, "cell": 1, "pack": 1}


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("results/painn_w3/curve.parquet", "unknown architecture 'painn'"),
        ("results/mpnn_w3_zz/curve.parquet", "'_zz' says nothing about mpnn"),
        ("results/paper/mpnn_w128/curve.parquet", "choose another sweep with --configfile"),
    ],
)
def test_a_wrong_target_gets_one_line(checkout, target, says):
    """What is allowed, and no traceback."""
    status, text = snakemake(checkout, "-n", target)
    complaints = [
        line for line in text.splitlines() if not line.startswith("Using workflow specific profile")
    ]
    assert status != 0 and len(complaints) == 1 and says in complaints[0]


def test_a_real_run_without_its_data_stops_before_the_first_job(checkout):
    """It says where to get the data; no job has run, nothing is left."""
    config = yaml.safe_load((checkout / "config/paper.yaml").read_text())
    config["datasets"]["omol25"]["train"] = str(checkout / "nowhere")
    (checkout / "x.yaml").write_text(yaml.safe_dump(config))
    status, text = snakemake(checkout, "results/paper/mpnn_w128/curve.parquet", "--configfile", "x.yaml")
    assert status != 0 and "nowhere" in text and "neutral_train.tar.gz" in text
    assert not (checkout / "results").exists() and not (checkout / "data").exists()


def test_an_invalid_config_is_one_line_before_the_dag(checkout):
    """The key's path, from Snakemake as from the command line."""
    config = yaml.safe_load((checkout / "config.yaml").read_text())
    config["training"]["lr"] = "fast"
    (checkout / "config.yaml").write_text(yaml.safe_dump(config))
    status, text = snakemake(checkout, "-n")
    assert status != 0 and "config: training.lr" in text and "Traceback" not in text


def test_changing_one_width_trains_that_cell_alone(checkout):
    """cell.json carries the spec: other cells, and keys that a cell does not see, train nothing again."""
    sweep = Sweep.from_config(configs.load(checkout / "config.yaml"))
    names = list(sweep.cells)
    status, text = snakemake(checkout, "results/studies.json", *[f"results/{n}/cell.json" for n in names])
    assert status == 0, text
    fakes = [f"{cells.data_folder(sweep.config, 'xtb')}/manifest.json", *sweep.curves()]
    for path in fakes:
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text("{}")
    snakemake(checkout, "--cleanup-metadata", *fakes)
    status, text = snakemake(checkout, "-n", *sweep.curves())
    assert "Nothing to be done" in text, text

    config = yaml.safe_load((checkout / "config.yaml").read_text())
    config["architectures"]["mpnn"]["widths"][0] += 1
    config["analysis"]["bootstraps"] = 77
    (checkout / "config.yaml").write_text(yaml.safe_dump(config))
    changed = Sweep.from_config(configs.load(checkout / "config.yaml"))
    status, text = snakemake(checkout, "-n", *changed.curves())
    assert jobs(text) == {"cell": 1, "train": 1}, text


def test_cell_json_is_the_resolved_spec(checkout):
    """The rule writes what the library says, hash included."""
    status, text = snakemake(checkout, "results/mpnn_w32_s2/cell.json")
    assert status == 0, text
    config = configs.load(checkout / "config.yaml")
    spec = cells.parse_name(config, "mpnn_w32_s2")
    written = json.loads((checkout / "results/mpnn_w32_s2/cell.json").read_text())
    assert written == json.loads(cells.cell_document(config, spec))
    assert cells.read_cell(checkout / "results/mpnn_w32_s2/cell.json")[0] == spec


def test_scheduler_leaves_no_timers_behind(checkout):
    """One timer a round, each starting another round, would have Snakemake burn a core on a sweep of hundreds of
    cells; a limit that was asked for keeps them."""
    (checkout / "Watched").write_text(
        'include: "Snakefile"\n\n\nonsuccess:\n    import threading\n\n'
        "    print('timers', sum(isinstance(t, threading.Timer) for t in threading.enumerate()))\n"
    )
    cells = [f"results/{name}/cell.json" for name in ("mpnn_w32", "mpnn_w64", "egnn_w8", "esen_c4")]
    status, text = snakemake(checkout, "-s", "Watched", *cells)
    assert status == 0 and "timers 0" in text, text
    status, text = snakemake(
        checkout, "-s", "Watched", *cells, "--forceall", "--max-jobs-per-timespan", "50/1s"
    )
    assert status == 0 and "timers 0" not in text and "timers " in text, text


def test_a_simulated_config_lies_under_another_one(checkout):
    """`simulation` counts wherever it stands: taken over from a base it simulates, taken away it trains."""
    head = "base: config/simulated-paper.yaml\nresults: results/mine\n"
    (checkout / "mine.yaml").write_text(head)
    status, text = snakemake(checkout, "-n", "--configfile", "mine.yaml")
    assert status == 0 and jobs(text)["simulate"] == 1 and "train" not in jobs(text), text
    (checkout / "mine.yaml").write_text(head + "simulation: null\n")
    status, text = snakemake(checkout, "-n", "--configfile", "mine.yaml")
    assert status == 0 and "simulate" not in jobs(text) and jobs(text)["train"] > 48, text
