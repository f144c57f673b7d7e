"""Figures show what the analysis holds: its lines, its censoring, its reservations."""

import colorsys
import dataclasses
import json
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from simulated_sweep import make_sweep, shared_sweep

from symscale.__main__ import main
from symscale.analysis.laws import evaluate
from symscale.figures import FIGURES, curves, exponents, frontiers, laws, studies, style
from symscale.figures.inputs import load, log_band, ordered, title

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return shared_sweep(tmp_path_factory)


@pytest.fixture
def analysis(sweep):
    with mpl.rc_context(style.theme()):
        yield load(sweep / "analysis", sweep / "studies.json")


def artists(drawing, gid):
    """Lines of a figure with this id."""
    return [line for ax in drawing.figure.axes for line in ax.lines if line.get_gid() == gid]


def words(drawing):
    """Every text of a figure, in one string on one line."""
    texts = drawing.figure.findobj(mpl.text.Text)
    return " ".join(" ".join(t.get_text().split()) for t in texts)


def test_every_figure_is_svg_with_caption_and_alternative(sweep):
    """The index names whole SVG files, each with a sentence and a text for those who cannot see it."""
    index = json.loads((sweep / "figures" / "figures.json").read_text())
    assert [e["file"] for e in index] == [*(f"{n}.svg" for n in FIGURES), "study-symmetry.svg"]
    for entry in index:
        root = ET.parse(sweep / "figures" / entry["file"]).getroot()
        assert root.tag == f"{SVG}svg" and root.findall(f".//{SVG}text")
        assert entry["title"] and entry["caption"].endswith(".") and entry["alt"].endswith(".")


def test_equal_input_gives_equal_files(sweep, tmp_path):
    """Neither dates nor random ids nor leftovers: drawn again into a used folder, every byte is the same."""
    (tmp_path / "study-old.svg").write_text("<svg/>")
    command = ["figures", "--analysis", str(sweep / "analysis"), "--studies", str(sweep / "studies.json")]
    assert main([*command, "--out", str(tmp_path)]) == 0
    for path in sorted((sweep / "figures").iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    assert len(list(tmp_path.iterdir())) == len(list((sweep / "figures").iterdir()))


def test_line_and_legend_are_the_fit_of_the_analysis(analysis):
    """Figure 1 draws the law that fits.json holds; with another exponent there, another line and legend."""
    fit = analysis.fit("frontier", "esen", "C")
    (line,) = artists(drawing := frontiers.frontiers(analysis), "fit:esen:C")
    expected = evaluate({n: p["value"] for n, p in fit["params"].items()}, line.get_xdata())
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-12)
    assert f"eSEN: γ = {fit['params']['gamma']['value']:.3f} [" in words(drawing)
    changed = fit["params"]["gamma"] | {"value": 0.777}
    params = fit["params"] | {"gamma": changed}
    other = dataclasses.replace(analysis, fits=analysis.fits | {fit["name"]: fit | {"params": params}})
    drawing = frontiers.frontiers(other)
    assert "eSEN: γ = 0.777 [" in words(drawing)
    (line,) = artists(drawing, "fit:esen:C")
    slope = np.diff(np.log(line.get_ydata())) / np.diff(np.log(line.get_xdata()))
    np.testing.assert_allclose(slope, -0.777, rtol=1e-6)


def test_censored_budgets_are_hollow(analysis):
    """Markers are filled inside the window only, and both kinds come from the analysis' own column."""
    table = analysis.frontier.copy()
    table["censored"] = table["budget"] < table["budget"].median()
    drawing = frontiers.frontiers(dataclasses.replace(analysis, frontier=table))
    (hollow,) = artists(drawing, "frontier:mpnn:C:censored")
    (filled,) = artists(drawing, "frontier:mpnn:C:inside")
    assert hollow.get_markerfacecolor() == "white" and filled.get_markerfacecolor() != "white"
    assert max(hollow.get_xdata()) < min(filled.get_xdata())


def test_larger_models_are_darker(analysis):
    """Lightness of a learning curve falls with N."""
    drawing = curves.learning_curves(analysis)
    lightness = []
    for cell in ("mpnn_w128", "mpnn_w320", "mpnn_w2557"):
        (line,) = artists(drawing, f"curve:{cell}:C:loss")
        lightness.append(colorsys.rgb_to_hls(*mpl.colors.to_rgb(line.get_color()))[1])
    assert lightness[0] > lightness[1] > lightness[2]


def test_flags_show_beside_numbers_and_in_captions(analysis):
    """A flagged fit has a star in the legend, a hollow dot, and its first reason in the sentence."""
    fit = analysis.fit("frontier", "mpnn", "C")
    assert fit["status"] == "flagged"
    drawing = frontiers.frontiers(analysis)
    assert "] *" in words(drawing) and f"(flagged: {fit['diagnostics'][0].split(';')[0]})" in drawing.caption
    assert "Flagged (hollow): MPNN, eSEN" in exponents.exponents(analysis).caption


def test_missing_fits_are_said_in_words(analysis):
    """Without any fit every figure is drawn, and says what is missing instead of a line."""
    fits = {
        name: fit | {"status": "not fitted", "params": {}, "diagnostics": ["too few points for a law"]}
        for name, fit in analysis.fits.items()
    }
    bare = dataclasses.replace(analysis, fits=fits, comparisons=[])
    assert "too few points for a law" in words(frontiers.frontiers(bare))
    assert "too few points for a law" in words(laws.sum_law(bare))
    assert "could not be fitted" in words(laws.allocation(bare))
    assert "κ not fitted" in words(laws.kappa(bare))
    assert "γ could not be fitted" in words(exponents.exponents(bare))
    assert "no frontier fit" in words(curves.learning_curves(bare))
    assert exponents.comparisons(bare) is None
    assert "it needs two groups" in words(studies.study(bare, "symmetry"))


def test_one_run_is_drawn_without_a_law(tmp_path):
    """A sweep of a single cell gives figures, and none of them claims an alpha."""
    folder = make_sweep(tmp_path, ["esen_c10"])
    assert main(["figures", "--analysis", str(folder / "analysis"), "--out", str(folder / "figures")]) == 0
    index = {e["file"]: e for e in json.loads((folder / "figures" / "figures.json").read_text())}
    assert "not fitted" in index["fig05-sum-law.svg"]["caption"]
    assert "comparisons.svg" not in index


def test_folder_without_analysis_is_refused(tmp_path, capsys):
    """One line that names the folder and the command that writes it."""
    assert main(["figures", "--analysis", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path) in error and "symscale analyse" in error and error.count("\n") == 1


def test_basic_band_reflects_the_draws():
    """Draws that lie above their median in one direction pull the basic band the other way; percentiles do not."""
    logs = np.concatenate([np.zeros((500, 1)), np.full((480, 1), 0.5), np.full((20, 1), -0.1)])
    low, high = log_band(logs, np.array([2.0]), basic=True)
    median, top = np.quantile(logs, 0.5), np.quantile(logs, 0.975)
    np.testing.assert_allclose(np.log(low), 2.0 - (top - median))
    np.testing.assert_allclose(np.log(log_band(logs, np.array([2.0]), basic=False)[1]), 0.5)
    assert np.log(high) >= 2.0


def test_groups_have_titles_in_the_papers_order(analysis):
    """Unconstrained to high order, variants after their architecture, names in words."""
    assert ordered(["esen_l2", "gemnet", "mpnn_sym", "esen", "mpnn", "zz"]) == [
        "mpnn", "mpnn_sym", "gemnet", "esen", "esen_l2", "zz"]  # fmt: skip
    assert title("esen_l2") == "eSEN, lmax 2"
    assert title("mpnn_d1_e100_aug") == "MPNN, augment, data fraction 1 %, epochs 100"
    assert title("mpnn_sym") == "MPNN, symmetry samples 5"
    assert title("mpnn_lr0.0005_b128") == "MPNN, batch size 128, lr 0.0005"
    assert title("mpnn", ["mpnn", "mpnn_sym"], analysis.points) == "MPNN, default"
    assert title("mpnn") == "MPNN"
