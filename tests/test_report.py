"""The report: one file that hides nothing and needs nothing."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from simulated_sweep import shared_sweep

from symscale.__main__ import main
from symscale.curves import META_KEY, read_curve, write_curve
from symscale.report import example, gather, inline_svg, render


class Page(HTMLParser):
    """Tags, ids, addresses and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.addresses, self.hrefs, self.text, self._skip = [], [], [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.hrefs += [attrs[k] for k in ("href", "xlink:href") if k in attrs]
        self.addresses += [attrs[k] for k in ("src", "href", "xlink:href", "action", "data") if k in attrs]
        self._skip += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._skip -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._skip:
            self.text.append(data)

    def __contains__(self, words):
        return words in " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return shared_sweep(tmp_path_factory)


@pytest.fixture(scope="module")
def html(sweep):
    return render(sweep)


@pytest.fixture
def copy(sweep, tmp_path):
    """A results folder of one's own to damage."""
    return shutil.copytree(sweep, tmp_path / "results")


def rows_of(html, table):
    """Rows of a table as text."""
    body = re.search(rf'<table id="{table}">.*?</table>', html, re.DOTALL).group()
    return [" ".join(re.sub("<[^>]+>", " ", row).split()) for row in body.split("<tr")[1:]]


def test_page_needs_no_network(html):
    """No address leaves the page: no scripts, styles, fonts, images from elsewhere."""
    page = Page(html)
    assert page.addresses and all(a.startswith("#") for a in page.addresses)
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed", "base"}
    assert "@import" not in html and "@font-face" not in html
    assert all(u.startswith("#") for u in re.findall(r"url\(([^)]*)\)", html))


def test_ids_are_unique_and_links_lead_somewhere(html):
    """Nine inlined figures share no id, and every reference on the page has its target."""
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    targets = set(page.ids)
    assert {h[1:] for h in page.hrefs} <= targets
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= targets


def test_every_figure_has_a_label_and_caption(html):
    """Each <figure> holds a labelled image and a caption."""
    figures = re.findall(r"<figure.*?</figure>", html, re.DOTALL)
    assert len(figures) == 9
    for figure in figures:
        assert re.search(r'<svg role="img" aria-label="[^"]{20,}"', figure)
        assert re.search(r"<figcaption><strong>.+</strong> .{20,}</figcaption>", figure)


def test_flag_stands_in_the_row_of_its_number(html):
    """'3 runs only' is read beside gamma, not in an appendix."""
    rows = rows_of(html, "table-1")
    (first,) = [r for r in rows if "MPNN γ_c frontier, eq. (4)" in r]
    assert "flagged: " in first and "3 runs only: the interval is indicative" in first
    assert any("not fitted: " in r or "uncensored" in r for r in rows)


def test_published_values_stand_beside_and_are_marked(html):
    """Table 1 and Table 7 carry the paper's numbers under OMol25, for the architectures and not for variants."""
    rows = rows_of(html, "table-1")
    assert "Paper, OMol25" in rows[0]
    assert any("MPNN γ_c frontier, eq. (4)" in r and "0.142 [0.141, 0.143]" in r for r in rows)
    assert any("eSEN α" in r and "0.817 [0.706, 0.918]" in r for r in rows_of(html, "table-7"))
    assert "OMol25" not in rows_of(html, "table-1-studies")[0]


def test_embedded_data_is_the_table(html, sweep):
    """The JSON on the page holds every cell with the numbers of its curve."""
    text = re.search(
        r'<script type="application/json" id="report-data">(.*?)</script>', html, re.DOTALL
    ).group(1)
    cells = {c["name"]: c for c in json.loads(text)["cells"]}
    rows, meta = read_curve(sweep / "esen_c10" / "curve.parquet")
    assert len(cells) == 9 and cells["esen_c10"]["N"] == meta["N"] == 1100746
    assert cells["esen_c10"]["loss"] == rows["val_loss"].iloc[-1]


def test_every_state_of_a_cell_is_listed(copy):
    """Missing, unreadable, cut short, not finite: each stands in the table and in the warning, none is dropped."""
    (copy / "mpnn_w128" / "curve.parquet").unlink()
    (copy / "mpnn_w320" / "curve.parquet").write_bytes(b"not parquet")
    for cell, change in (("esen_c4", "short"), ("esen_c10", "nan")):
        path = copy / cell / "curve.parquet"
        rows, meta = read_curve(path)
        if change == "short":
            rows = rows.iloc[:-2]
        else:
            rows.loc[rows.index[-1], "val_loss"] = float("nan")
        write_curve(path, rows.to_dict("records"), meta)
    html = render(copy)
    states = {r.split("> ")[-1].split()[0]: r for r in rows_of(html, "table-cells")}
    assert "curve missing" in states["mpnn_w128"] and "unreadable" in states["mpnn_w320"]
    assert "ended early" in states["esen_c4"] and "loss not finite" in states["esen_c10"]
    assert " done " in states["esen_c32"]
    assert "4 of 9 cells are not done" in Page(html)


def test_cell_trained_with_another_spec_is_marked(copy):
    """A curve whose spec hash differs from cell.json's is not passed off as this cell."""
    path = copy / "esen_c4" / "cell.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hash": "0" * 16}))
    assert "trained with another spec" in Page(render(copy))


def test_simulated_curves_are_announced_and_real_ones_not(copy):
    """The banner depends on the curves' own metadata."""
    assert "no model was trained" in Page(render(copy))
    for path in copy.glob("*/curve.parquet"):
        rows, meta = read_curve(path)
        write_curve(path, rows.to_dict("records"), meta | {"device": "A CPU", "git_commit": "abc+"})
    page = Page(render(copy))
    assert "no model was trained" not in page and "A CPU" in page
    assert "9 cells were made from a checkout with uncommitted changes" in page


def test_text_from_files_is_escaped(copy):
    """Markup in a study's title or a cell's name stays text, in the page and in the embedded JSON."""
    studies = json.loads((copy / "studies.json").read_text())
    studies["main"]["title"] = "</script><script>alert(1)</script>"
    studies["main"]["cells"].append("</script><script>alert(2)")
    (copy / "studies.json").write_text(json.dumps(studies))
    html = render(copy)
    assert "alert(1)" in html and "alert(2)" in html
    assert [attrs for tag, attrs in Page(html).tags if tag == "script"] == [
        {"type": "application/json", "id": "report-data"}
    ]


def test_page_is_equal_for_equal_input(html, sweep, copy):
    """No time, no order of a directory listing."""
    assert render(sweep) == html
    assert render(copy).replace(str(copy), str(sweep)) == html


def test_report_without_figures_says_so(copy):
    """Tables stand alone; an index that names a lost figure is an error with the fix."""
    shutil.rmtree(copy / "figures")
    assert "No figures in this results folder" in Page(render(copy))


def test_rerun_never_names_a_results_folder_as_checkpoint(sweep):
    """Where the sweep lies outside the project its checkpoints are unknown, and the page does not guess."""
    records = gather.cells(sweep, {})
    assert example(sweep, records)["checkpoint"] is None
    assert example(Path("results/paper"), records)["checkpoint"] == f"checkpoints/paper/{records[0]['name']}"


def test_lost_figure_is_named(copy, capsys):
    """An index that names a file which is gone: one line, nothing written."""
    (copy / "figures" / "exponents.svg").unlink()
    out = copy / "report.html"
    assert main(["report", "--results", str(copy), "--out", str(out)]) == 1
    assert "exponents.svg" in capsys.readouterr().err and not out.exists()


def test_results_without_analysis_are_refused(tmp_path, capsys):
    """One line that names the missing file."""
    assert main(["report", "--results", str(tmp_path)]) == 1
    assert "symscale analyse" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_pack_is_described_and_another_pack_is_noticed(copy, pack):
    """Counts and hash of the real pack are shown; curves of another content hash are announced."""
    manifest_folder = copy / "pack"
    manifest_folder.mkdir()
    (manifest_folder / "manifest.json").write_text(json.dumps(pack.manifest))
    records = [{"data": str(manifest_folder), "meta": {"data_hash": pack.content_hash}}]
    shown, words = gather.packs(records)
    assert shown[0]["hash"] == pack.content_hash and not words
    assert f"train: {len(pack.train)} molecules" in shown[0]["lines"][0]
    _, words = gather.packs([{"data": str(manifest_folder), "meta": {"data_hash": "other"}}])
    assert "another content hash" in words[0]


def test_inlined_svg_keeps_its_references():
    """Ids get the figure's prefix wherever they are used; text that looks like one does not change."""
    svg = '<?xml version="1.0"?><svg width="72pt" height="36pt"><g id="a" clip-path="url(#a)"/><use href="#a"/></svg>'
    out = inline_svg(svg, "fig", 'a "quoted" label')
    assert 'id="fig.a"' in out and "url(#fig.a)" in out and 'href="#fig.a"' in out
    assert (
        "<?xml" not in out
        and "&quot;quoted&quot;" in out
        and "max-width: 96px" in out
        and "pt" not in out.split(">")[0]
    )


def test_report_reads_metadata_as_curves_hold_it(sweep):
    """The keys that the cells table needs are those that a curve's metadata has."""
    meta = json.loads(pq.read_schema(sweep / "esen_c4" / "curve.parquet").metadata[META_KEY])
    (record,) = [r for r in gather.cells(sweep, gather.read_studies(sweep)) if r["name"] == "esen_c4"]
    assert record["N"] == meta["N"] and record["total_steps"] == meta["total_steps"]
    assert record["status"] == "done" and record["studies"] == ["main"]
