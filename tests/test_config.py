"""Configs are refused by key before any job exists."""

import copy
import dataclasses
from pathlib import Path

import pytest
import yaml

from symscale import config as configs
from symscale.cells import CellSpec
from symscale.errors import UserError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted([ROOT / "config.yaml", *ROOT.glob("config/*.yaml")])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configs_are_valid(path):
    """Every config in the repository passes its own schema and expands."""
    assert configs.load(path)["studies"]


def edited(changes):
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    for path, value in changes.items():
        *parents, key = path.split("/")
        node = config
        for parent in parents:
            node = node[parent]
        if value is None:
            del node[key]
        else:
            node[key] = value
    return config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"colour": 1}, "'colour'"),
        ({"results": None}, "'results' is a required property"),
        ({"architectures/mpnn/widths": []}, "architectures.mpnn.widths"),
        ({"architectures/mpnn/widths": [16, 16]}, "architectures.mpnn.widths"),
        ({"architectures/mpnn/widths": [16, -1]}, "architectures.mpnn.widths.1"),
        ({"architectures/mpnn/widht": 3}, "architectures.mpnn"),
        ({"architectures/mpnn/depth": "five"}, "architectures.mpnn.depth"),
        ({"training/lr": 0}, "training.lr"),
        ({"training/data_fraction": 1.5}, "training.data_fraction"),
        ({"training/precision": "fp8"}, "training.precision"),
        ({"training/epoch": 3}, "training"),
        ({"datasets/xtb/molecules": 1}, "datasets.xtb.molecules"),
        ({"datasets/xtb/molecule": 100}, "datasets.xtb"),
        ({"datasets/xtb/source": "qm9"}, "datasets.xtb.source"),
        ({"dataset": "omol25"}, "'omol25' is not under datasets"),
        ({"studies": {}}, "studies"),
        ({"studies/main/arch": ["painn"]}, "studies.main: unknown architecture 'painn'"),
        ({"studies/main": {"title": "nothing"}}, "studies.main: no cells"),
        ({"studies/main": {"cells": ["mpnn_x3"]}}, "studies.main: 'mpnn_x3'"),
        ({"studies/main/sweep": {"foo": [1]}}, "studies.main.sweep"),
        ({"studies/main/sweep": {"seed": ["x"]}}, "studies.main.sweep.seed.0"),
        ({"studies/main/sweep": {"augment": ["no"]}}, "studies.main.sweep.augment.0"),
        ({"studies/main/widths": {"mpn": [5]}}, "studies.main.widths: mpn is not under 'arch'"),
        ({"studies/main/ask": "magic"}, "studies.main.ask"),
        ({"studies/main/ask": "grid"}, "studies.main.over: a study that asks for 'grid' takes 2 cell fields"),
        (
            {"studies/main/over": ["lr"]},
            "studies.main.over: a study that asks for 'exponents' takes no 'over'",
        ),
        (
            {"studies/main/ask": "sweep", "studies/main/over": ["rate"]},
            "studies.main.over: 'rate' is none of",
        ),
        (
            {"studies/main/ask": "sweep", "studies/main/over": ["equivariant_by"]},
            "studies.main.over: 'sweep' goes along a number",
        ),
        (
            {"studies/main/ask": "sweep", "studies/main/over": ["seed"]},
            "studies.main.over: 'seed' is the same in all of its cells",
        ),
        ({"studies/main/samples": [4]}, "studies.main.samples: only 'ask: group_average'"),
        ({"analysis/bootstraps": 0}, "analysis.bootstraps"),
        ({"analysis/linf": 3}, "analysis.linf"),
    ],
)
def test_a_wrong_config_is_refused_with_the_keys_path(changes, says):
    """Unknown keys, wrong types, empty ladders and bad ranges are named."""
    with pytest.raises(UserError) as refused:
        configs.check(edited(changes))
    assert says in str(refused.value)


def test_the_schema_knows_every_field_of_a_cell():
    """A field that the schema left out could not be set; one that it invents would crash later."""
    settable = set(configs.config_schema()["properties"]["training"]["properties"])
    assert settable == {f.name for f in dataclasses.fields(CellSpec)} - {"name", "arch", "width"}


def test_checking_changes_nothing():
    """A valid config comes back as it was."""
    config = edited({})
    assert configs.check(copy.deepcopy(config)) == config


@pytest.mark.parametrize("text", ["[1, 2]", "a: [1", "", "\x00"])
def test_a_file_that_is_no_config_is_named(tmp_path, text):
    """Broken YAML and other files are reported by path."""
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml"):
        configs.load(path)


def test_a_config_may_lie_over_another(tmp_path, monkeypatch):
    """Keys are replaced one by one, null takes one away, and the base's own base counts."""
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "a.yaml": (ROOT / "config.yaml").read_text(),
        "b.yaml": "base: a.yaml\nresults: results/b\ntraining: {batch_size: 4}\narchitectures: {esen: null}\n"
        "studies: {main: {arch: [mpnn]}}\n",
        "c.yaml": "base: b.yaml\nresults: results/c\n",
    }.items():
        (tmp_path / name).write_text(text)
    plain, laid = configs.load("a.yaml"), configs.load("c.yaml")
    assert laid["results"] == "results/c" and "base" not in laid and list(laid["studies"]) == ["main"]
    assert laid["training"] == plain["training"] | {"batch_size": 4} and laid["datasets"] == plain["datasets"]
    assert list(laid["architectures"]) == ["mpnn", "egnn", "gemnet"]
    assert laid["studies"]["main"] == plain["studies"]["main"] | {"arch": ["mpnn"]}


def test_a_base_that_is_not_there_or_goes_in_a_circle_is_refused(tmp_path, monkeypatch):
    """By name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("base: nowhere.yaml\n")
    with pytest.raises(UserError, match=r"a\.yaml: nowhere\.yaml: no such config"):
        configs.load("a.yaml")
    (tmp_path / "b.yaml").write_text("base: c.yaml\n")
    (tmp_path / "c.yaml").write_text("base: b.yaml\n")
    with pytest.raises(UserError, match="in a circle"):
        configs.load("b.yaml")
