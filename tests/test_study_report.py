"""Studies from config to report, on simulated curves: every kind of question is answered, drawn and printed."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from symscale import config as configs
from symscale.__main__ import main
from symscale.analysis import studies as questions
from symscale.cells import cell_document, parse_name
from symscale.workflow import Sweep

ROOT = Path(__file__).parents[1]

CONFIG = """
dataset: xtb
datasets: {xtb: {source: xtb, molecules: 10}}
architectures:
  mpnn: {axis: w, depth: 5, base_width: 256, widths: [128, 320, 835], absolute: false}
  egnn: {axis: w, depth: 12, base_width: 102, widths: [32, 64, 120], vector_channels: 0}
  transformer: {axis: w, depth: 5, base_width: 128, widths: [128, 320]}
training: {validations: 12}
studies:
  plain: {arch: [mpnn, egnn]}
  absolute: {title: Absolute <coordinates>, arch: [mpnn], sweep: {absolute: [false, true]}}
  counted: {ask: kappa, arch: [mpnn, egnn]}
  rates:
    {ask: grid, over: [lr, batch_size], arch: [egnn], widths: [64],
     sweep: {lr: [1.0e-3, 1.0e-2], batch_size: [8, 64]}}
  depths: {ask: sweep, over: [depth], cells: [mpnn_w128_depth2, mpnn_w128, mpnn_w128_depth9]}
  repeats: {ask: epochs, arch: [mpnn], set: {data_fraction: 0.01, epochs: 100}, sweep: {augment: [false, true]}}
  turned: {ask: group_average, samples: [1, 4], arch: [mpnn]}
  late: {ask: learning, arch: [mpnn, transformer]}
  shares: {ask: fractions, arch: [mpnn], widths: [320], sweep: {data_fraction: [0.2, 0.5], seed: [1, 2]}}
  luck: {ask: replicates, arch: [mpnn], widths: [128, 320], sweep: {seed: [0, 1, 2]}}
analysis: {bootstraps: 20}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of the config above; averaging lowers each loss by 2 % at M = 1 and 4 % at M = 4."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "config.yaml").write_text(f"results: {folder}\n" + CONFIG)
    sweep = Sweep.from_config(configs.load(folder / "config.yaml"))
    assert main(["simulate", "--configfile", str(folder / "config.yaml")]) == 0
    (folder / "studies.json").write_text(sweep.studies_json())
    for name in sweep.studies["turned"]:
        loss = pd.read_parquet(folder / name / "curve.parquet")["val_loss"].iloc[-1]
        size = {"mpnn_w128": 222404, "mpnn_w320": 1293284, "mpnn_w835": 8535023}[name]
        rows = [(name, "mpnn", size, m, loss * f) for m, f in ((0, 1.0), (1, 0.98), (4, 0.96))]
        table = pd.DataFrame(rows, columns=["cell", "arch", "N", "M", "val_loss"])
        table.to_parquet(folder / name / "averaging.parquet")
    command = [
        "analyse",
        *sweep.curves(),
        "--studies",
        str(folder / "studies.json"),
        "--out",
        f"{folder}/analysis",
    ]
    averaging = ["--averaging", *sweep.averages()]
    assert main([*command, "--config", str(folder / "config.yaml"), *averaging]) == 0
    command = ["figures", "--analysis", f"{folder}/analysis", "--out", f"{folder}/figures"]
    assert main([*command, "--studies", str(folder / "studies.json")]) == 0
    assert main(["report", "--results", str(folder)]) == 0
    return folder


def test_every_study_is_answered_with_numbers(folder):
    """One answer a study, of the kind that it asks; each has sentences."""
    entries = yaml.safe_load(CONFIG)["studies"]
    answers = questions.read(folder / "analysis")
    assert {s: a["kind"] for s, a in answers.items()} == {
        s: e.get("ask", "exponents") for s, e in entries.items()
    }
    assert {e["kind"] for e in answers.values()} == set(questions.QUESTIONS)
    for answer in answers.values():
        assert answer["sentences"] and re.search(r"\d", " ".join(answer["sentences"]))
    assert answers["turned"]["numbers"]["gain:mpnn"][0] == pytest.approx(0.0408, abs=1e-4)


def test_every_answer_has_its_figure_and_its_sentences_on_the_page(folder):
    """All but the exponents of the plain architectures, which the main figures show; titles are escaped."""
    index = json.loads((folder / "figures/figures.json").read_text())
    drawn = {entry["study"]: entry for entry in index if entry["study"]}
    answers = questions.read(folder / "analysis")
    assert set(drawn) == set(answers) - {"plain"}
    page = (folder / "report.html").read_text()
    for study in drawn:
        assert f'id="figure-study-{study}"' in page
    said = ("rotations changes the loss by", "late slope of Transformer", "differ by their seed alone",
            "at equal width", "that of fresh data", "ends lowest at depth", "Counted in training only")  # fmt: skip
    assert [words for words in said if words not in page.replace("At equal width", "at equal width")] == []
    assert "Absolute &lt;coordinates&gt;" in page and "<coordinates>" not in page


def test_the_main_figures_show_the_architectures_that_a_study_of_exponents_asks_for(folder):
    """Not the transformer, of which only its late slope was asked."""
    from symscale.figures.inputs import load

    assert load(folder / "analysis", folder / "studies.json").plain == ["mpnn", "egnn"]
    assert load(folder / "analysis").plain == ["mpnn", "egnn", "transformer"]


def test_settings_of_one_size_do_not_drown_the_report(folder):
    """They are counted in one word, and no fit of theirs is reported as impossible."""
    document = json.loads((folder / "analysis/fits.json").read_text())
    assert not [f for f in document["fits"] if "model size" in " ".join(f["diagnostics"])]
    assert sum("of one model size" in w for w in document["words"]) == 1
    assert "egnn_b8" not in set(pd.read_parquet(folder / "analysis/sensitivity.parquet")["group"])


def test_a_measurement_that_is_no_table_is_named(folder, tmp_path, capsys):
    """The file and the way out."""
    (tmp_path / "averaging.parquet").write_text("no")
    command = [
        "analyse",
        str(folder / "mpnn_w128/curve.parquet"),
        "--averaging",
        str(tmp_path / "averaging.parquet"),
    ]
    assert main(command) != 0
    assert "averaging.parquet: not readable as Parquet" in capsys.readouterr().err


def test_averaging_a_cell_without_its_model_says_what_to_do(tmp_path, capsys):
    """Checkpoints may have been removed after training."""
    command = [
        "group-average",
        "--checkpoint",
        str(tmp_path),
        "--data",
        "x",
        "--out",
        str(tmp_path / "a.parquet"),
    ]
    assert main(command) != 0
    assert re.search(r"model\.pt: no such file.*train the cell again", capsys.readouterr().err)


def test_kappa_of_resolved_cells_is_counted_on_their_own_pack(pack, tmp_path):
    """`--cells` reads spec and pack from each cell.json, and writes what the analysis reads."""
    config = configs.load(ROOT / "config.yaml")
    document = json.loads(cell_document(config, parse_name(config, "mpnn_w32"))) | {"data": pack.folder}
    (tmp_path / "cell.json").write_text(json.dumps(document))
    command = ["kappa", "--cells", str(tmp_path / "cell.json"), "--molecules", "2", "4"]
    assert main([*command, "--out", str(tmp_path / "kappa.parquet")]) == 0
    table = pd.read_parquet(tmp_path / "kappa.parquet")
    assert table["cell"].tolist() == ["mpnn_w32"] * 2 and table["atoms"].is_monotonic_increasing
    assert (table["kappa"] > 1).all()
    assert main([*command, "--data", "x"]) != 0
