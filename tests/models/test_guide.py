"""docs/architecture.md: the example on the page is a model that keeps the contract, trains and is counted."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from contract import CHECKS, batch_of, small_spec, some_molecules

from symscale import config as configs
from symscale.cells import parse_name
from symscale.commands.kappa import count
from symscale.coordcheck import coordinates
from symscale.loss import training_loss
from symscale.models import MODELS, build_model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()


def block(language):
    """The one code block of a language."""
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return text


@pytest.fixture
def radial(tmp_path, monkeypatch):
    """The page's file and line: the model registered as 'radial'."""
    (tmp_path / "radial_of_the_guide.py").write_text(block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "radial_of_the_guide", raising=False)
    import radial_of_the_guide

    monkeypatch.setitem(MODELS, "radial", radial_of_the_guide.Radial)


@pytest.fixture
def config():
    """config.yaml with the page's entry."""
    default = configs.load(ROOT / "config.yaml")
    entry = yaml.safe_load(block("yaml"))["architectures"]
    studies = {"main": {"arch": ["mpnn", "radial"]}}
    return configs.check(default | {"architectures": default["architectures"] | entry, "studies": studies})


@pytest.mark.parametrize("check", CHECKS)
def test_the_example_keeps_the_contract(radial, check):
    """All checks that the page promises, on the page's own code."""
    CHECKS[check](small_spec("radial"))


def test_the_page_lists_every_check():
    """The table names what contract.py runs, no more and no less."""
    table = PAGE[PAGE.index("| check |") :]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(CHECKS)


def test_the_examples_entry_makes_cells_that_can_be_counted(radial, config):
    """Names, options, parameter count and kappa work without more code."""
    spec = parse_name(config, "radial_w16")
    assert build_model(spec).rbf.centres.shape == (16,)
    assert count(spec, 2)["kappa"] > 1


def test_the_example_trains_under_every_rule(radial, config):
    """A few steps lower its loss; muP finds its matrices; the coordinate check watches its layers."""
    spec = dataclasses.replace(parse_name(config, "radial_w16"), mup="parameter", lr=3e-3)
    data = batch_of(small_spec("radial"), some_molecules(), torch.float32)
    watched = coordinates(spec, data, steps=1)
    assert {"layers[-1]", "forces", "energy / atom"} == set(watched["quantity"])
    model = build_model(spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = training_loss(model, data, torch.Generator())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
