"""Energy and force parts, and group averaging at test time."""

import numpy as np
import pandas as pd
import pytest

from symscale.analysis import paper
from symscale.analysis.components import averaging, data_limit, decompose
from symscale.analysis.intervals import generator
from symscale.analysis.points import after_burn_in
from symscale.analysis.records import Options
from symscale.analysis.simulate import paper_truth, simulate
from symscale.errors import UserError


def averaged(seed=0, noise=0.002):
    """MPNN's ladder at D_max for M = 1 ... 64: A falls by 4 % in all, halving what is left with each doubling."""
    law = paper.table7_law("mpnn")
    limit = data_limit(law, paper.D_MAX)
    rng = np.random.default_rng(seed)
    rows = []
    for width, n in paper.LADDERS["mpnn"]:
        luck = np.exp(noise * rng.standard_normal())
        for m in (1, 2, 4, 8, 16, 32, 64):
            gain = 0.04 * (1 - 1 / m)
            rows.append({"run": f"mpnn_w{width}", "N": n, "M": m,
                         "loss": limit + (1 - gain) * law["A"] * n ** -law["alpha"] * luck})  # fmt: skip
    return pd.DataFrame(rows), limit


def test_data_limit_is_that_of_table_7_and_not_the_texts():
    """Appendix H prints .223; B D_max^-beta of Table 7 is .2548."""
    assert data_limit(paper.table7_law("mpnn"), paper.D_MAX) == pytest.approx(0.2548, abs=2e-4)


def test_group_averaging_keeps_the_exponent_and_lowers_the_factor():
    """alpha comes back at .276 for every M, the paired slopes agree, the shift is log10(1 - .04 (1 - 1/64))."""
    table, limit = averaged()
    found = averaging(table, limit, n_bootstrap=300)
    value, low, high = found.alpha[1]
    assert value == pytest.approx(0.276, abs=0.005)
    assert low - 0.001 <= 0.276 <= high + 0.001 and high - low < 0.02
    assert found.slope_change[0] == pytest.approx(0, abs=1e-6)  # paired by run: luck cancels
    assert found.shift[0] == pytest.approx(np.log10(1 - 0.04 * 63 / 64), abs=1e-6)
    assert found.slope_p == 1.0
    assert found.saturated == 16


def test_equal_exponents_under_independent_noise_are_mostly_not_told_apart():
    """Losses of M = 1 and 64 with noise of their own: the test of equal alpha rejects at most 3 of 30 at 5 %."""
    limit = data_limit(paper.table7_law("mpnn"), paper.D_MAX)
    rejected = 0
    for seed in range(30):
        table, _ = averaged(seed)
        noise = np.exp(0.005 * np.random.default_rng(1000 + seed).standard_normal(len(table)))
        table["loss"] = limit + (table["loss"] - limit) * noise
        rejected += averaging(table, limit, n_bootstrap=100, seed=seed).slope_p < 0.05
    assert rejected <= 3


def test_a_changed_exponent_is_seen():
    """Where averaging helps large models more, the paired slopes differ."""
    table, limit = averaged()
    more = table["loss"].where(table["M"] < 64, limit + (table["loss"] - limit) * (table["N"] / 2e5) ** -0.05)
    found = averaging(table.assign(loss=more), limit, n_bootstrap=300)
    assert found.slope_change[0] == pytest.approx(0.05, abs=1e-4)
    assert found.slope_change[1] > 0 and found.slope_p < 1e-3


def test_losses_below_the_data_limit_and_unpaired_runs_are_refused():
    """A wrong L_D is named, and so is a table that cannot be paired."""
    table, limit = averaged()
    with pytest.raises(UserError, match="not below the loss"):
        averaging(table, limit + 0.5)
    with pytest.raises(UserError, match="not the same runs"):
        averaging(table.drop(table.index[(table["M"] == 8)][:1]), limit)


def test_energy_and_force_have_laws_of_their_own():
    """Parts that are constant shares of the loss have its exponents and add up to it."""
    points = after_burn_in(simulate(paper_truth("esen"), generator(1), validations=30))
    records = {r.name: r for r in decompose(points, "esen", "esen", Options(bootstraps=30))}
    assert set(records) == {f"{law}:esen{x}:{part}" for law, x in (("sum", ""), ("frontier", ":C"))
                            for part in ("energy", "force")}  # fmt: skip
    for part, share in (("energy", 0.2), ("force", 0.8)):
        assert records[f"frontier:esen:C:{part}"].params["gamma"][0] == pytest.approx(0.402, abs=0.03)
        assert records[f"sum:esen:{part}"].params["alpha"][0] == pytest.approx(0.817, abs=0.12)
        assert records[f"frontier:esen:C:{part}"].params["F"][0] == pytest.approx(share * 0.72, rel=0.15)
    noise = {p: records[f"sum:esen:{p}"].numbers["residual_sd"] for p in ("energy", "force")}
    assert noise["energy"] > 1.5 * noise["force"]  # as Figure 14 shows


def test_a_part_that_is_nowhere_measured_has_no_law():
    """Training on forces only leaves no energy loss."""
    points = simulate(paper_truth("esen"), generator(1), validations=5).assign(energy_loss=0.0)
    records = decompose(points, "esen", "esen", Options(bootstraps=20))
    assert {r.variant for r in records} == {"force"}
