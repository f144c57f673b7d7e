"""muP: learning rates and initial sizes by hand, coordinate checks with their control, kappa."""

import dataclasses
import json

import pytest
import torch

from symscale import config as configs
from symscale.__main__ import main
from symscale.cells import CellSpec
from symscale.commands.kappa import count, drift
from symscale.coordcheck import coordinate_check, slopes
from symscale.data.example import example_batch
from symscale.errors import UserError
from symscale.flops import count_flops
from symscale.models import MODELS, build_model
from symscale.mup import parameter_groups

SMALL = {
    "gemnet": {"cutoff": 10.0, "max_neighbors": 50},
    "esen": {"lmax": 1, "hidden_channels": 8},
}
# eSEN's channels are few in practice; the law shows from 16 on, where they outnumber the 8 hidden ones
WIDTHS = {"gemnet": [32, 64, 128], "esen": [16, 32, 64]}
BAND = 0.4  # |slope| under muP; without it the steps of an MPNN grow with a slope near 1
CONFIG = {
    "results": "results/x",
    "dataset": "xtb",
    "datasets": {"xtb": {"source": "xtb", "molecules": 10, "frames": 1, "validation": 0.2, "seed": 0}},
    "architectures": {"mpnn": {"axis": "w", "depth": 2, "base_width": 16, "widths": [8, 16, 32]}},
    "studies": {"main": {"arch": ["mpnn"]}},
}


def spec_of(arch, width=32, base=16, **changes):
    values = {"depth": 2, "lr": 1e-3} | SMALL.get(arch, {}) | changes
    return CellSpec(f"{arch}_x", arch, width, base_width=base, dataset="none", **values)


def rates(model, spec):
    """Learning rate of every parameter by name."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, spec)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(names), "every parameter in exactly one group"
    return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("arch", MODELS)
def test_the_papers_rule_scales_every_rate_and_no_weight(arch):
    """eta(w) = eta* w_base / w for all; weights are as the model draws them."""
    spec = spec_of(arch)
    model = build_model(spec)
    assert set(rates(model, spec).values()) == {1e-3 * 16 / 32}
    torch.manual_seed(spec.seed)
    plain = MODELS[arch].from_spec(spec).state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("arch", MODELS)
def test_all_rules_agree_at_the_base_width(arch):
    """There eta* was tuned: same weights, same rates."""
    models = {mup: spec_of(arch, width=16, mup=mup) for mup in ("width", "parameter", "none")}
    built = {mup: build_model(spec) for mup, spec in models.items()}
    for mup, spec in models.items():
        assert set(rates(built[mup], spec).values()) == {1e-3}
        pairs = zip(built[mup].parameters(), built["width"].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_mpnn_rates_and_sizes_by_hand():
    """Width times 4: hidden and output matrices learn at a quarter, the rest at eta*; only outputs start smaller."""
    spec = spec_of("mpnn", width=64, mup="parameter")
    model = build_model(spec)
    found = rates(model, spec)
    quarter = {"lin_z.weight", "energy_head.weight", "force_head.0.weight", "force_head.2.weight"}
    quarter |= {f"layers.{i}.lin{k}.weight" for i in (0, 1) for k in (1, 2)}
    assert found == {name: 1e-3 / 4 if name in quarter else 1e-3 for name in found}
    plain = dict(build_model(dataclasses.replace(spec, mup="none")).named_parameters())
    for name, parameter in model.named_parameters():
        factor = 0.5 if name in ("energy_head.weight", "force_head.2.weight") else 1.0
        if name.endswith("bias") and name.replace("bias", "weight") in quarter:
            factor = 2.0  # drawn from 1 / sqrt(fan_in), wanted as at w_base
        assert torch.allclose(parameter, factor * plain[name]), name


def test_packed_parameters_of_esen_are_told_apart():
    """Stacked matrices scale with their last axis; norm weights of two axes and embeddings do not."""
    spec = spec_of("esen", width=64, mup="parameter")
    model = build_model(spec)
    found = rates(model, spec)
    for name in ("radial.second_weight", "force_weight", "energy.weight", "layers.0.conv1.m0.weight"):
        assert found[name] == pytest.approx(1e-3 / 4), name
    vectors = ["radial.second_bias", "radial.norm_weight", "norm.weight", "embedding.weight"]
    for name in [*vectors, "radial.source.weight", "layers.0.conv2.m0.weight", "layers.0.grid3.weight"]:
        assert found[name] == 1e-3, name
    assert 1e-3 / 4 < found["radial.first.weight"] < 1e-3  # 136 radial inputs stay, 2 C grow


def test_egnn_mixer_starts_as_appendix_c3_asks():
    """sigma of W_x: w -> E E' is Theta(sqrt(min(w, E E') / w^2)); the first layer has E = 1."""
    spec = spec_of("egnn", width=256, base=16, mup="parameter")
    plain, scaled = build_model(dataclasses.replace(spec, mup="none")), build_model(spec)
    first, second = (
        (b.mix2.weight / a.mix2.weight).mean().item()
        for a, b in zip(plain.layers, scaled.layers, strict=True)
    )
    assert first == pytest.approx((4 / 16) ** 0.5) and second == pytest.approx(
        1.0
    )  # E: 4 -> 16, w: 16 -> 256


def test_building_the_base_shapes_draws_nothing():
    """Groups may be made at any time without moving torch's generator."""
    spec = spec_of("gemnet", mup="parameter")
    model = build_model(spec)
    state = torch.get_rng_state()
    parameter_groups(model, spec)
    assert torch.equal(torch.get_rng_state(), state)


def checked(arch, mup, seeds=3):
    widths = WIDTHS.get(arch, [32, 64, 128])
    spec = spec_of(arch, base=widths[0], lr=2e-4)
    batch = example_batch(spec, MODELS[arch].symmetric_edges, 4)
    table = slopes(coordinate_check(spec, widths, mup, batch, seeds, steps=2))
    print(table.pivot(index="quantity", columns="step", values="slope").round(2).to_string())
    return table


@pytest.mark.parametrize("arch", MODELS)
def test_sizes_and_updates_are_flat_in_width_under_mup(arch):
    """No quantity grows, at the start or in two steps; the first step is flat within the band.

    Energies and forces may start as w^-1/2; later energy steps fall where L1 turns its gradient round.
    """
    table = checked(arch, "parameter")
    assert len(table) >= 9 and table["slope"].max() < BAND
    first = table[table["step"] == 1]
    assert first["slope"].min() > -BAND


def test_without_mup_the_updates_of_an_mpnn_grow():
    """Negative control: one rate for every width. The first step of states, forces and energies blows up."""
    table = checked("mpnn", "none")
    first = table[table["step"] == 1]["slope"]
    assert first.min() > 0.7


def test_coordcheck_prints_slopes_and_draws_a_figure(tmp_path, capsys):
    """The command, on a config file of one's own."""
    config, figure = tmp_path / "config.json", tmp_path / "deep/check.svg"
    config.write_text(json.dumps(CONFIG))
    command = [
        "coordcheck",
        "mpnn",
        "--configfile",
        str(config),
        "--mup",
        "parameter",
        "none",
        "--seeds",
        "1",
    ]
    assert main([*command, "--molecules", "2", "--widths", "8", "16", "--out", str(figure)]) == 0
    out = capsys.readouterr()
    assert out.out.count("layers[-1]") == 2 and "generated" not in out.out and "no pack given" in out.err
    assert "mpnn, mup: none" in figure.read_text()
    assert main([*command, "--widths", "8"]) == 1 and "at least two" in capsys.readouterr().err
    assert main(["coordcheck", "nothing", "--configfile", str(config)]) == 1
    assert "unknown architecture 'nothing'" in capsys.readouterr().err


def test_kappa_of_a_wide_mpnn_is_that_of_dense_layers():
    """At most 2.3 at w >= 512 on molecules of about 17 atoms; narrow ones pay for the radial functions."""
    row = count(spec_of("mpnn", width=512, depth=5), 3)
    print(row)
    assert 12 < row["atoms"] / row["molecules"] < 25 and 10 < row["edges_per_atom"] < 20
    assert 2 < row["kappa"] < 2.3
    assert count(spec_of("mpnn", width=32, depth=5), 3)["kappa"] > 3


def test_products_in_place_count():
    """addmm_ and baddbmm_, which torch's own table leaves out, cost what mm and bmm cost."""
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert count_flops(lambda: torch.ones(3, 7).addmm_(a, b)) == count_flops(lambda: a @ b) == 2 * 3 * 5 * 7
    batched = torch.ones(2, 3, 7)
    assert count_flops(lambda: batched.baddbmm_(a.expand(2, 3, 5), b.expand(2, 5, 7))) == 2 * 2 * 3 * 5 * 7


def test_kappa_orders_the_architectures_as_figure_2():
    """MPNN < EGNN < eSEN at comparable sizes, and training costs at most three forward passes."""
    specs = [
        spec_of("mpnn", width=128, depth=5),
        spec_of("egnn", width=32, depth=12),
        spec_of("esen", width=4, lmax=4, depth=4, hidden_channels=32),
    ]
    rows = [count(spec, 2) for spec in specs]
    print([(row["arch"], row["N"], round(row["kappa"], 1)) for row in rows])
    assert rows[0]["kappa"] < rows[1]["kappa"] < rows[2]["kappa"]
    assert all(row["kappa"] <= row["kappa_forward"] for row in rows)


@pytest.mark.parametrize("arch", MODELS)
def test_kappa_does_not_depend_on_the_amount_of_data(arch, monkeypatch):
    """The same molecule once and four times: the same FLOPs per atom, to rounding.

    eSEN multiplies its tables of 100 elements once a batch: a fixed cost, lost in a batch of 64 molecules.
    """
    from symscale.data import example

    one = example.example_molecules(1)[0]
    monkeypatch.setattr(example, "example_molecules", lambda n, seed=0: (one,) * n)
    spec = spec_of(arch, width=16)
    four, once = count(spec, 4)["kappa"], count(spec, 1)["kappa"]
    assert four == pytest.approx(once, rel=0.02 if arch == "esen" else 1e-9) and four <= once * (1 + 1e-9)


def test_drift_recovers_known_slopes():
    """kappa = 3 N^-0.1 D^0.05, exactly."""
    rows = [
        {"arch": "x", "N": n, "atoms": d, "kappa": 3 * n**-0.1 * d**0.05}
        for n in (100, 1000, 10000)
        for d in (10, 30)
    ]
    found = drift(rows, "x")
    assert found["slope_N"] == pytest.approx(-0.1) and found["slope_D"] == pytest.approx(0.05)
    assert drift(rows[:2], "x")["slope_N"] is None, "one size says nothing about N"


def test_kappa_command_prints_a_table_and_json(tmp_path, capsys):
    """Whole ladders by default; --json is machine-readable."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    assert main(["kappa", "--configfile", str(config), "--molecules", "1", "2"]) == 0
    out = capsys.readouterr()
    assert [name in out.out for name in ("mpnn_w8", "mpnn_w16", "mpnn_w32")] == [True] * 3
    assert "molecules generated" in out.err
    assert main(["kappa", "mpnn_w8", "--configfile", str(config), "--molecules", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cells"][0]["cell"] == "mpnn_w8" and found["architectures"]["mpnn"]["slope_N"] is None


def test_an_architecture_without_a_model_is_named(tmp_path):
    """A config may name one before its file exists."""
    config = CONFIG | {"architectures": {"nomodel": CONFIG["architectures"]["mpnn"]}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | {"studies": {"main": {"arch": ["nomodel"]}}}))
    assert configs.load(path)
    with pytest.raises(UserError, match="no model for architecture 'nomodel'"):
        build_model(spec_of("nomodel"))
