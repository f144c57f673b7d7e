"""Words about fits: which of them flag, and the scatter of replicate seeds."""

import numpy as np
import pandas as pd
import pytest

from symscale.analysis import paper
from symscale.analysis.diagnostics import NOTHING, diagnose, flag, note, replicate_spread, spread_interval
from symscale.analysis.intervals import generator
from symscale.analysis.laws import fit
from symscale.analysis.points import after_burn_in, at_fractions, canonical
from symscale.analysis.records import Options
from symscale.analysis.simulate import NOISE_FREE, Noise, paper_truth, simulate
from symscale.analysis.sweep import analyse


def law_of(points):
    points = canonical(at_fractions(after_burn_in(points)))
    columns = [points["N"].to_numpy(), points["D"].to_numpy()]
    return points, fit("sum", columns, points["loss"].to_numpy())


def test_a_fit_is_flagged_by_what_a_word_is_and_not_by_how_it_reads():
    """A note that speaks of bounds flags nothing, a flag in any words does; flags come first."""
    assert note("inside every bound, not stuck").status == "ok"
    assert (note("a") + flag("b")).status == "flagged"
    assert (note("a") + flag("b")).text == ("b", "a")
    assert NOTHING.status == "ok" and NOTHING.text == ()


def test_a_law_that_misses_its_curves_is_flagged_and_a_good_one_is_not():
    """Curves that bend by 30 % over the ladder; the same curves straight."""
    points = simulate(paper_truth("mpnn"), generator(0))
    _, law = law_of(points)
    assert diagnose(law)[1].status == "ok"
    wave = np.exp(0.15 * np.sin(3 * np.log(points["N"])))
    _, bent = law_of(points.assign(loss=points["loss"] * wave))
    words = diagnose(bent)[1]
    assert words.status == "flagged" and any("misses" in w for w in words.flags)


def test_noisy_curves_are_not_taken_for_a_law_that_misses():
    """8 % noise of every evaluation, as energy curves have it: a note; 8 % between runs and along them: a flag."""
    for noise, flagged in ((Noise(0.0, 0.0, 0.08), False), (Noise(0.06, 0.05, 0.003), True)):
        points, law = law_of(simulate(paper_truth("mpnn"), generator(1), noise=noise))
        words = diagnose(law, points["run"].to_numpy(str))[1]
        assert any("residuals of" in w for w in words.text)
        assert (words.status == "flagged") == flagged, words


def test_correlated_residuals_are_told_and_independent_ones_are_not():
    """The lag-1 correlation along a run is a note: the run bootstrap allows for it."""
    found = []
    for noise in (Noise(0.02, 0.0, 0.001), Noise(0.0, 0.0, 0.02)):
        points, law = law_of(simulate(paper_truth("gemnet"), generator(3), noise=noise))
        numbers, words = diagnose(law, points["run"].to_numpy(str))
        found.append((numbers["autocorrelation"], any("correlated" in w for w in words.notes), words.flags))
    assert found[0][0] > 0.7 and found[0][1] and not found[0][2]
    assert abs(found[1][0]) < 0.3 and not found[1][1]


def test_replicate_seeds_give_the_run_to_run_scatter_with_its_interval():
    """Four seeds a rung with offsets of sd .02: the estimate is near, the interval holds it; without replicates there
    is none. The checkpoints of a run do not count as replicates."""
    truth = paper_truth("gemnet")
    points, law = law_of(simulate(truth, generator(2), noise=Noise(0.02, 0.0, 0.001), seeds=4))
    spread, df = replicate_spread(law, points["N"].to_numpy(), points["run"].to_numpy(str))
    assert df == 3 * len(truth.ladder)
    low, high = spread_interval(spread, df)
    assert spread == pytest.approx(0.02, rel=0.3) and low < 0.02 < high
    points, law = law_of(simulate(truth, generator(2), noise=NOISE_FREE))
    assert replicate_spread(law, points["N"].to_numpy(), points["run"].to_numpy(str))[1] == 0
    assert np.isnan(spread_interval(float("nan"), 0)).all()


def test_spread_interval_covers_and_is_the_chi_square_one():
    """sd 1 of 6 normal numbers (df 5): between .624 and 2.453; over 4000 draws it covers in 95 %."""
    assert spread_interval(1.0, 5) == (pytest.approx(0.6242, abs=1e-4), pytest.approx(2.4526, abs=1e-4))
    rng = np.random.default_rng(0)
    intervals = [spread_interval(float(rng.standard_normal(6).std(ddof=1)), 5) for _ in range(4000)]
    assert np.mean([low <= 1 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda p: p.assign(data_hash=np.where(p["width"] == 8, "old", "new")), "2 packs of data"),
        (lambda p: p.assign(D=np.where(p["width"] == 8, p["D"] / 27, p["D"])), "check the units of C, N and D"),
        (lambda p: p.assign(H=np.where(p["width"] == 8, p["H"] * 3600, p["H"])), "check the units of H"),
    ],
)  # fmt: skip
def test_runs_that_should_not_be_pooled_flag_every_fit_of_their_group(spoil, word):
    """Another pack of data, molecules for atoms, seconds for hours: eSEN's fits say so, MPNN's do not."""
    parts = [simulate(paper_truth(a), generator(0, a), validations=12) for a in ("esen", "mpnn")]
    points = pd.concat([spoil(parts[0]), parts[1].assign(data_hash="new")])
    analyses, words = analyse(points, Options(bootstraps=20))
    assert any(word in w and w.startswith("esen") for w in words)
    for a in analyses:
        for r in a.records:
            if r.law in ("sum", "frontier") and r.status != "not fitted":
                assert any(word in w for w in r.flags) == (a.group == "esen"), r.name
                assert (r.status == "flagged") or a.group == "mpnn"
    assert set(paper.LADDERS) >= {a.group for a in analyses}
