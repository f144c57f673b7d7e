"""Each kind of question finds a planted answer, and finds none where none was planted."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from symscale import config as configs
from symscale.analysis import repeats, settings, studies
from symscale.analysis.asking import Question, least_difference, mean_interval, run_noise, slope_interval
from symscale.analysis.points import group_of
from symscale.analysis.records import Options
from symscale.analysis.sweep import analyse

D_MAX = 1e6
SHARES = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


def run(cell, N=1e5, law=lambda D: 10 * D**-0.2, factor=1.0, share=1.0, **fields):
    """One curve: `law` of D times `factor`; fields are columns."""
    seen = SHARES * D_MAX * share * fields.get("epochs", 1)
    loss = np.array([law(d) for d in seen]) * factor
    table = pd.DataFrame({"D": seen, "loss": loss, "step": np.arange(1, len(seen) + 1), "fraction": SHARES})
    table = table.assign(cell=cell, run=cell, group=group_of(cell), arch=cell.split("_")[0], N=float(N))
    table = table.assign(
        C=6 * N * table["D"] / 1e15, H=table["D"] * 1e-6, seed=0, width=64, total_steps=len(seen)
    )
    table = table.assign(energy_loss=loss / 3, force_loss=2 * loss / 3, data_fraction=share)
    return table.assign(**fields)


def question(points, sweep=None, **options):
    points = pd.concat(points, ignore_index=True)
    sweep = points if sweep is None else pd.concat(sweep, ignore_index=True)
    return Question("s", points, sweep, {}, [], **options)


def seeds(cell, sd, count=3, rng=None, **fields):
    """Replicates whose log losses have standard deviation `sd`."""
    rng = rng or np.random.default_rng(0)
    names = [cell + (f"_s{k}" if k else "") for k in range(count)]
    return [run(n, factor=np.exp(sd * rng.normal()), seed=k, **fields) for k, n in enumerate(names)]


def test_the_schema_offers_the_kinds_that_there_are():
    """`ask` in the schema and QUESTIONS name the same kinds."""
    study = configs.config_schema()["properties"]["studies"]["additionalProperties"]
    assert set(study["properties"]["ask"]["enum"]) == set(studies.QUESTIONS)


def test_every_kind_can_be_drawn():
    """No kind without a figure."""
    from symscale.figures.answers import DRAWINGS

    assert set(DRAWINGS) == set(studies.QUESTIONS)


def test_intervals_are_students():
    """Mean and slope against their closed forms."""
    value, low, high = mean_interval([1.0, 2.0, 3.0])
    assert value == 2 and high - value == pytest.approx(4.302653 / np.sqrt(3), rel=1e-5) and low == 4 - high
    slope, low, high = slope_interval([0, 1, 2, 3], [0.0, 1.1, 1.9, 3.0])
    assert slope == pytest.approx(0.98) and low < 0.98 < high
    assert np.isnan(mean_interval([1.0])[1]) and np.isnan(slope_interval([0, 1, 2], [0, 1, 2])[1])


def grid_runs(loss):
    return [
        run(f"mpnn_w64_b{b}_lr{lr}", factor=loss(lr, b), lr=lr, batch_size=b)
        for lr in (0.001, 0.004, 0.016)
        for b in (16, 32, 64)
    ]


def test_a_grid_names_its_best_cell_and_whether_that_is_inside():
    """A bowl about (0.004, 32) has its optimum inside; a slope towards small batches has it at the edge."""
    noise = seeds("mpnn_w16", 0.003, 4, width=16, lr=0.004, batch_size=16)
    bowl = grid_runs(lambda lr, b: 1 + 0.2 * abs(np.log2(lr / 0.004)) + 0.1 * abs(np.log2(b / 32)))
    found = settings.grid(question(bowl, bowl + noise, over=("lr", "batch_size")))
    best = found.table[found.table["best"]].iloc[0]
    assert (best["lr"], best["batch_size"]) == (0.004, 32) and found.table["tied"].sum() == 1
    assert "no other within the noise" in found.sentences[0] and "edge" not in found.sentences[0]
    slope = grid_runs(lambda lr, b: 1 + 0.2 * abs(np.log2(lr / 0.004)) + 0.1 * np.log2(b / 16))
    assert (
        "at the edge of the grid in batch_size,"
        in settings.grid(question(slope, slope + noise, over=("lr", "batch_size"))).sentences[0]
    )


def test_a_flat_grid_has_no_winner():
    """Where settings differ by less than seeds do, all are as good."""
    flat = grid_runs(lambda lr, b: 1 + 0.001 * np.sin(1e4 * lr + b))
    noise = seeds("mpnn_w16", 0.02, 4, width=16, lr=0.004, batch_size=16)
    found = settings.grid(question(flat, flat + noise, over=("lr", "batch_size")))
    assert found.table["tied"].all() and "8 more within the noise" in found.sentences[0]


def depth_runs(loss):
    return [
        run(f"egnn_w{64 - d}_depth{d}", factor=loss(d), depth=d, width=64 - d) for d in (1, 2, 4, 8, 12, 16)
    ]


@pytest.mark.parametrize(
    ("loss", "lowest", "saturated", "says"),
    [
        (lambda d: 1 + 1.0 / min(d, 8), 8, 8, "saturated from depth 8 on"),
        (lambda d: 3 * d**-0.3, 16, 16, "no saturation in sight"),
        (lambda d: 1 + 0.05 * d, 1, 1, "at 16 it is"),
    ],
)
def test_saturation_is_found_where_it_was_put(loss, lowest, saturated, says):
    """A plateau from depth 8 on; a loss that falls to the end; one that only rises."""
    noise = seeds("egnn_w9", 0.003, 4, width=9, depth=1)
    runs = depth_runs(loss)
    found = settings.sweep(question(runs, runs + noise, over=("depth",)))
    assert found.numbers["lowest:egnn"][0] == lowest and found.numbers["saturated:egnn"][0] == saturated
    assert says in found.sentences[0]
    assert "the width differs" in " ".join(found.words)  # 63 to 48


def test_vector_channels_of_nought_are_read_as_the_model_does():
    """E = 0 stands for floor(sqrt(w)), so it sorts between 4 and 16."""
    runs = [run(f"egnn_w64_v{e}", factor=1 / (e or 8), vector_channels=e) for e in (1, 4, 0, 16)]
    found = settings.sweep(question(runs, over=("vector_channels",)))
    assert found.table["vector_channels"].tolist() == [1, 4, 8, 16]


def fraction_question(factor, rng):
    full = seeds("mpnn_w64", 0.01, 3, rng)
    part = [
        run(f"mpnn_w64_d{round(100 * r)}_s{s}", share=r, seed=s, factor=factor * np.exp(0.01 * rng.normal()))
        for r in (0.1, 0.3, 0.6)
        for s in (1, 2)
    ]
    return question(part, full + part)


def test_fractions_read_off_agree_or_not():
    """Curves that are a function of D alone agree in 19 of 20 cases; separate runs 10 % better are told apart."""
    rng = np.random.default_rng(1)
    covered = [repeats.fractions(fraction_question(1.0, rng)).numbers["difference:mpnn"] for _ in range(60)]
    assert np.mean([low <= 0 <= high for _, low, high in covered]) >= 0.85
    value, low, high = repeats.fractions(fraction_question(0.9, rng)).numbers["difference:mpnn"]
    assert low < np.log(0.9) < high < 0 and value == pytest.approx(np.log(0.9), abs=0.03)


def test_runs_that_retrace_the_full_run_are_no_evidence():
    """On the first r of the data with the full run's own seed every step is the same: agreement by construction."""
    full = [run("mpnn_w64", width=64, data_fraction=1.0)]
    part = [run("mpnn_w64_d50", share=0.5, width=64, data_fraction=0.5)]
    found = repeats.fractions(question(part, full + part))
    assert found.sentences == () and any("retrace the full run" in w for w in found.words)


def test_seeds_give_back_their_spread():
    """A planted sd lies in the interval in 19 of 20 cases, and its pooled value is right on average."""
    rng, inside, values = np.random.default_rng(2), [], []
    for _ in range(60):
        runs = [r for w in (16, 32, 64) for r in seeds(f"mpnn_w{w}", 0.03, 3, rng, width=w, N=w**2)]
        value, low, high = repeats.replicates(question(runs)).numbers["sd:mpnn"]
        inside.append(low <= 0.03 <= high)
        values.append(value)
    assert np.mean(inside) >= 0.85 and np.mean(values) == pytest.approx(0.03, rel=0.15)
    assert (
        run_noise(pd.concat(runs), "egnn")[1] == 6
    )  # pooled over architectures where one has too few replicates
    few = pd.concat([*runs, *seeds("egnn_w8", 0.03, 2, rng, width=8)])
    assert run_noise(few, "egnn")[1] == run_noise(few)[1] == 7 and run_noise(few, "mpnn")[1] == 6
    assert repeats.replicates(question([run("mpnn_w16")])).words == ("no two runs of one size",)


def epoch_question(breaks_at=None, augmented=None, widths=(16, 32, 64, 128, 256)):
    """Runs of 20 epochs on 5 % of the data that leave the fresh ones as (e / e0)^0.5 after epoch e0."""
    rng = np.random.default_rng(3)
    one, many = [], []
    for w in widths:
        size = {"width": w, "N": 50.0 * w**2}

        def fresh(D, n=size["N"]):
            return 4 * n**-0.25 + 6 * D**-0.25

        one += seeds(f"mpnn_w{w}", 0.005, 2, rng, law=fresh, epochs=1, augment=False, **size)
        for suffix, at in (("", breaks_at), ("_aug", augmented)):

            def repeated(D, at=at or np.inf, fresh=fresh):
                return fresh(D) * max(D / (0.05 * D_MAX) / at, 1) ** 0.5

            many.append(run(f"mpnn_w{w}_d5_e20{suffix}", law=repeated, share=0.05, epochs=20, augment=bool(suffix),
                            factor=np.exp(0.005 * rng.normal()), **size))  # fmt: skip
    return question(many, one + many, options=Options(burn_in=0.02))


def beyond_early(found, group):
    """Held-out error of the early law, less that of fresh data, which a short ladder has too."""
    return found.numbers[f"early_law:{group}"][0] - found.numbers[f"early_law_fresh:{group}"][0]


def test_a_broken_power_law_is_found_at_its_epoch_and_augmentation_mends_it():
    """Planted break at epoch 8 without, none with augmentation."""
    found = repeats.epochs(epoch_question(breaks_at=8))
    assert 8 <= found.numbers["break:mpnn_d5_e20"][0] <= 12
    assert found.numbers["final:mpnn_d5_e20"][0] == pytest.approx(0.5 * np.log(20 / 8), abs=0.02)
    assert np.isnan(found.numbers["break:mpnn_d5_e20_aug"][0])
    assert any("it mends the break" in s for s in found.sentences)
    assert beyond_early(found, "mpnn_d5_e20") > 0.05 and abs(beyond_early(found, "mpnn_d5_e20_aug")) < 0.03


def test_repeats_that_are_worth_fresh_data_break_nothing():
    """Without a planted break none is found, and nothing is said to be mended."""
    found = repeats.epochs(epoch_question())
    assert np.isnan(found.numbers["break:mpnn_d5_e20"][0])
    assert abs(beyond_early(found, "mpnn_d5_e20")) < 0.03
    assert any("there was nothing to mend" in s for s in found.sentences)


def test_augmentation_that_does_not_help_is_not_praised():
    """The same break with and without."""
    found = repeats.epochs(epoch_question(breaks_at=5, augmented=5))
    assert any("no mending is told from the noise" in s for s in found.sentences)


def test_one_width_shows_no_mending_either_way():
    """A single difference has no interval: the sentence gives the share and claims nothing."""
    found = repeats.epochs(epoch_question(breaks_at=5, augmented=8, widths=(64,)))
    assert any("without an interval" in s for s in found.sentences)
    assert not any("no mending" in s or "mends" in s for s in found.sentences)


def test_an_architecture_that_stalls_is_told_from_one_that_learns():
    """Late slopes -0.2 and 0."""
    rng = np.random.default_rng(4)
    slopes = {f"{arch}_w{w}": slope + 0.01 * rng.normal() for arch, slope in (("mpnn", 0.2), ("transformer", 0.0))
              for w in (16, 32, 64, 128)}  # fmt: skip
    runs = [run(cell, law=lambda D, k=k: 5 * (D / D_MAX) ** -k) for cell, k in slopes.items()]
    found = settings.learning(question(runs))
    assert (
        found.numbers["slope:mpnn"][2] < 0
        and found.numbers["slope:transformer"][1] < 0 < found.numbers["slope:transformer"][2]
    )
    text = " ".join(found.sentences)
    assert (
        "mpnn: over the last 70%" in text
        and "no learning is told from the noise" in text
        and "differs from" in text
    )


def test_kappa_is_one_constant_or_drifts():
    """A planted kappa of 2 and one that goes with N^-0.5."""
    rows = [
        {"cell": f"{arch}_w{w}", "arch": arch, "N": float(w**2), "atoms": float(a),
         "kappa": 2.0 if arch == "mpnn" else 100 * w**-1.0}
        for arch in ("mpnn", "egnn") for w in (16, 32, 64, 128) for a in (100, 200, 400)
    ]  # fmt: skip
    points = [run(f"{arch}_w{w}", N=w**2, width=w) for arch in ("mpnn", "egnn") for w in (16, 32, 64, 128)]
    found = settings.kappa(question(points, kappa=pd.DataFrame(rows)))
    assert found.numbers["kappa:mpnn"][0] == pytest.approx(2) and found.numbers["drift_D:mpnn"][
        0
    ] == pytest.approx(0)
    assert found.numbers["drift_N:egnn"][0] == pytest.approx(-0.5)
    assert ["one constant to" in s for s in sorted(found.sentences)] == [False, True]
    assert "nothing is said about D" in settings.kappa(question(points)).words[0]


def averaging_question(gain, exponent=0.3):
    """Models with L = 0.5 + 20 N^-0.3 whose loss averaging multiplies by 1 - gain (1 - 1/M)."""
    widths = (16, 32, 64, 128, 256)
    law = {w: 0.2 + 20 * (50.0 * w**2) ** -0.3 for w in widths}
    points = [run(f"mpnn_w{w}", N=50.0 * w**2, width=w, law=lambda D, w=w: law[w] - 0.2 + 0.2 * (D / D_MAX) ** -0.3)
              for w in widths]  # fmt: skip
    rows = [
        {"cell": f"mpnn_w{w}", "arch": "mpnn", "N": 50.0 * w**2, "M": m,
         "val_loss": 0.2 + (law[w] - 0.2) * (1 - gain * (1 - 1 / max(m, 1)))}
        for w in widths for m in (0, 1, 2, 4, 8, 16, 32, 64)
    ]  # fmt: skip
    analyses, _ = analyse(pd.concat(points), Options(bootstraps=50))
    asked = question(points, averaging=pd.DataFrame(rows), options=Options(bootstraps=200))
    return Question(**vars(asked) | {"analyses": {a.group: a for a in analyses}})


def test_averaging_saturates_where_it_was_told_to_and_keeps_the_exponent():
    """Nine tenths of a gain that goes as 1 - 1/M are there by M = 16; a common factor leaves alpha alone."""
    found = studies.group_average(averaging_question(0.2))
    assert found.numbers["saturated:mpnn"][0] in (8, 16) and found.numbers["gain:mpnn"][0] > 0.05
    assert abs(found.numbers["slope_change:mpnn"][0]) < 0.02
    assert found.numbers["shift:mpnn"][0] == pytest.approx(np.log10(0.8), abs=0.02)
    nothing = studies.group_average(averaging_question(0.0))
    assert nothing.numbers["gain:mpnn"][0] == pytest.approx(0) and nothing.numbers["shift:mpnn"][
        0
    ] == pytest.approx(0)


def test_averaging_of_three_sizes_claims_no_difference():
    """Resamples of three sizes out of three are all alike: an interval of them would be of no width."""
    asked = averaging_question(0.2)
    few = asked.averaging[asked.averaging["N"] > 1e5]
    found = studies.group_average(Question(**vars(asked) | {"averaging": few}))
    assert np.isnan(found.numbers["slope_change:mpnn"][1]) and "too few sizes" in " ".join(found.sentences)


def test_epochs_beyond_the_fresh_data_are_left_out_in_words():
    """8 epochs of a quarter see twice what there is."""
    one = [run(f"mpnn_w{w}", width=w, epochs=1) for w in (16, 32)]
    many = [run(f"mpnn_w{w}_d25_e8", width=w, share=0.25, epochs=8) for w in (16, 32)]
    found = repeats.epochs(question(many, one + many))
    assert found.table["epoch"].max() <= 4 * 1.02
    assert any("no fresh data at the D of" in w for w in found.words)


def test_a_change_at_equal_width_is_measured_pair_by_pair():
    """Absolute coordinates that cost 10 % at every width lie in the interval, no trend in N is seen; a group on other
    data is not compared."""
    rng, widths, inside = np.random.default_rng(5), (16, 32, 64, 128), []
    for _ in range(40):
        runs = [
            run(
                f"mpnn_w{w}{suffix}",
                N=w**2,
                width=w,
                factor=np.exp(change + 0.01 * rng.normal()),
                dataset=data,
            )
            for suffix, change, data in (("", 0, "a"), ("_abs", 0.1, "a"), ("_on-b", 1.0, "b"))
            for w in widths
        ]
        (row,) = studies.paired(pd.concat(runs)).to_dict("records")
        assert (row["first"], row["second"], row["n"]) == ("mpnn", "mpnn_abs", 4)
        inside.append([row["lo"] < 0.1 < row["hi"], row["trend_lo"] < 0 < row["trend_hi"], row["lo"] < 0])
    change, trend, nought = np.mean(inside, axis=0)
    assert change >= 0.85 and trend >= 0.85 and nought < 0.2
    assert row["compute"] == pytest.approx(1)


def test_variants_of_one_size_are_quiet_and_ladders_are_not(tmp_path):
    """Nine grid cells give one word and no record; a ladder with the same suffix is fitted."""
    ladder = [
        run(f"mpnn_w{w}", N=50.0 * w**2, width=w, law=lambda D, w=w: w**-0.5 + 10 * D**-0.2)
        for w in (16, 32, 64)
    ]
    analyses, words = analyse(pd.concat([*ladder, *grid_runs(lambda lr, b: 1.0)]), Options(bootstraps=20))
    assert [a.group for a in analyses if a.records] == ["mpnn"]
    assert [w for w in words if "one model size" in w] == [
        "9 variants are of one model size each and have no law, only the answers of studies"
    ]


def test_answers_are_written_and_read_back(tmp_path):
    """NaN becomes null; the table comes back as one; studies without curves have no answer."""
    runs = pd.concat(depth_runs(lambda d: 1 / d))
    entries = {"depths": {"ask": "sweep", "over": ["depth"], "cells": list(runs["cell"].unique())},
               "later": {"cells": ["mpnn_w9"]}}  # fmt: skip
    found = studies.answer(entries, runs, [], [], Options())
    studies.write(tmp_path, found)
    json.loads((tmp_path / studies.FILE).read_text())
    back = studies.read(tmp_path)
    assert list(back) == ["depths"] and len(back["depths"]["table"]) == 6
    assert back["depths"]["numbers"]["lowest:egnn"] == [16, None, None]


def test_without_replicates_two_per_cent_stand_for_the_noise():
    """And the answer says so."""
    runs = depth_runs(lambda d: 1 / d)
    assert least_difference(pd.concat(runs), "egnn") == 0.02
    assert "no replicate seeds" in " ".join(settings.sweep(question(runs, over=("depth",))).words)


def test_no_kind_knows_a_study():
    """The names of the shipped studies stand in no code."""
    from pathlib import Path

    root = Path(studies.__file__).parents[1]
    names = set()
    for name in ("studies", "paper"):
        names |= set(yaml.safe_load((root.parents[1] / "config" / f"{name}.yaml").read_text())["studies"])
    code = "\n".join(p.read_text() for p in root.rglob("*.py"))
    distinct = {n for n in names if n not in studies.QUESTIONS}
    assert not [n for n in distinct if f'studies["{n}"]' in code or f'== "{n}"' in code]
