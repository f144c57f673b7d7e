"""torch.compile and lower precision: the same numbers, as near as the arithmetic allows."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from molecules import make_batch, random_molecule

from symscale.models import (
    common,
    egnn_edges,
    esen,
    esen_kernels,
    gemnet_edges,
    gemnet_kernels,
    gemnet_sums,
    mpnn_kernels,
    so2_fast,
)
from symscale.models.egnn import EGNN
from symscale.models.esen import ESEN
from symscale.models.gemnet import GemNetOC
from symscale.models.gemnet_kernels import ResidualChain
from symscale.models.mpnn import MPNN

GEMNET = {"cutoff": 10.0, "max_neighbors": 50, "symmetric": True}
CASES = {
    "gemnet": (lambda: GemNetOC(width=8, depth=1), GEMNET),
    "gemnet with quadruplets": (lambda: GemNetOC(width=8, depth=1, quadruplets=True), GEMNET),
    "egnn": (lambda: EGNN(width=9, depth=2), {}),
    "esen": (lambda: ESEN(width=4, depth=2, lmax=2, hidden_channels=6), {}),
    "mpnn": (lambda: MPNN(width=9, depth=2), {}),
}
KERNELS = (common, esen, esen_kernels, gemnet_edges, gemnet_kernels, gemnet_sums, mpnn_kernels)
CASE = pytest.mark.parametrize("case", CASES)


def some_batch(sizes, **options):
    rng = np.random.default_rng(len(sizes))
    return make_batch([random_molecule(rng, n) for n in sizes], **options)


def results(model, forward, data, positions=None):
    """Energies, forces and every gradient, of positions too where a kernel gives it."""
    model.zero_grad()
    # eSEN's messages have a kernel for constant positions; where they need gradients the plain form runs anyway
    positions = not isinstance(model, ESEN) if positions is None else positions
    if positions:
        data = dataclasses.replace(data, pos=data.pos.clone().requires_grad_())
    energy, forces = forward(data)
    (energy.sum() + forces.square().sum()).backward()
    gradients = [t.grad for t in (data.pos, *model.parameters()) if t.grad is not None]
    return [energy.detach(), forces.detach(), *(g.clone() for g in gradients)]


def difference(found, wanted):
    pairs = zip(found, wanted, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in pairs)


def built(case):
    make, options = CASES[case]
    torch.manual_seed(0)
    return make().double(), options


@CASE
def test_kernels_equal_their_plain_forms(case, monkeypatch):
    """What torch.compile sees computes what runs without it, gradients included."""
    model, options = built(case)
    data = some_batch((14, 6, 9), **options)
    wanted = results(model, model, data)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    error = difference(results(model, model, data), wanted)
    print(f"relative difference {error:.1e}")
    assert 0 < error < 1e-10  # 0: the plain forms were not used


def test_esens_other_kernels_give_gradients_of_positions():
    model, options = built("esen")
    data = some_batch((14, 6, 9), **options)
    found = results(model, model, data, positions=True)
    with common.twice_differentiable():
        wanted = results(model, model, data, positions=True)
    assert 0 < difference(found, wanted) < 1e-10


@CASE
def test_many_blocks_equal_the_plain_form(case, monkeypatch):
    """Every kernel in blocks of a few rows, as large batches and wide models have them, and what a CPU likes: values
    and gradients of the plain form, and of one block; the same to the last bit when repeated.
    """
    model, options = built(case)
    data = some_batch((14, 6, 9, 1), **options)
    one = results(model, model, data)
    used = []

    def few_rows(x, width, least=128):
        used.append(len(x))
        return [slice(i, min(i + 7, len(x))) for i in range(0, max(len(x), 1), 7)]

    for module in KERNELS:
        monkeypatch.setattr(module, "row_blocks", few_rows)
    monkeypatch.setattr(so2_fast, "_block_size", lambda hidden, features: 11)
    monkeypatch.setattr(so2_fast, "GAUSS", 0)
    monkeypatch.setattr(egnn_edges, "_block_size", lambda width: 40)
    many, again = results(model, model, data), results(model, model, data)
    with common.twice_differentiable():
        plain = results(model, model, data)
    assert case == "egnn" or max(used) > 7
    assert all(torch.equal(a, b) for a, b in zip(many, again, strict=True))
    print(
        f"relative difference {difference(many, one):.1e} to one block, {difference(many, plain):.1e} to plain"
    )
    assert 0 < difference(many, plain) < 1e-10 and difference(many, one) < 1e-10


def test_blocks_of_rows_change_nothing(monkeypatch):
    """A chain of residual layers over 1000 rows, in blocks of 256 and at once: the same but for the order of sums."""
    torch.manual_seed(0)
    v = torch.randn(1000, 512, dtype=torch.float64, requires_grad=True)
    weights = [0.05 * torch.randn(512, 512, dtype=torch.float64) for _ in range(4)]
    for weight in weights:
        weight.requires_grad_()
    slices = common.row_blocks(v, 512)
    assert len(slices) == 4 and torch.cat([v[rows] for rows in slices]).equal(v)

    def run(function):
        out = function(v, 0.7, *weights)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [v, *weights])]

    assert difference(run(ResidualChain.apply), run(ResidualChain.plain)) < 1e-12


@pytest.mark.slow
@CASE
def test_compiled_model_equals_eager(case):
    """torch.compile(dynamic=True), as training asks for it, traces all of a model in one graph, forward and backward,
    and the code that it generates computes the same. Two batches of different sizes, float64. About a minute each.
    """
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler, and there is no g++")
    model, options = built(case)
    torch._dynamo.reset()
    compiled = torch.compile(model, dynamic=True, fullgraph=True)
    for sizes in ((5, 9), (4, 7, 6)):
        data = some_batch(sizes, **options)
        error = difference(results(model, compiled, data), results(model, model, data))
        print(f"{sizes}: relative difference {error:.1e}")
        assert error < 1e-9


@CASE
def test_tf32_setting_keeps_float32_results(case):
    """'high' matmul precision is TF32 on GPUs that have it, and on a CPU changes nothing that float32 would show."""
    make, options = CASES[case]
    torch.manual_seed(0)
    model, data = make(), some_batch((14, 6), dtype=torch.float32, **options)
    wanted = results(model, model, data)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        found = results(model, model, data)
    finally:
        torch.set_float32_matmul_precision(before)
    assert difference(found[:2], wanted[:2]) < 5e-3
