"""Conservative forces: what they are is in contract.py; here what they are not, what is trained, what it costs."""

import dataclasses

import pytest
import torch
from contract import CHECKS, batch_of, distance, model_of, objective, small_spec, some_molecules
from torch import nn

from symscale.cells import CellSpec
from symscale.commands.kappa import count
from symscale.flops import count_flops, count_parameters, step_cost
from symscale.loss import training_loss
from symscale.models import MODELS, build_model
from symscale.models.common import apply_function, graph_sum, scatter_sum, twice_differentiable
from symscale.models.conservative import Conservative
from symscale.mup import parameter_groups

SYMMETRIES = ("permutation", "translation", "batch_independence", "degenerate_molecules", "no_host_sync")


def conservative_spec(arch, **changes):
    return small_spec(arch, conservative=True, **changes)


@pytest.mark.parametrize("check", [*SYMMETRIES, "single_precision", "every_parameter_learns"])
@pytest.mark.parametrize("arch", MODELS)
def test_conservative_models_keep_the_contract(arch, check, monkeypatch):
    """As direct ones do; and no parameter idles, as those of direct heads are frozen."""
    monkeypatch.setattr("contract.WITHOUT_GRADIENT", {})
    CHECKS[check](conservative_spec(arch))


@pytest.mark.parametrize("arch", MODELS)
def test_conservative_forces_turn_as_well_as_the_energy_is_invariant(arch, monkeypatch):
    """To rounding, but for eSEN: the gradient shows the aliasing of its sphere grid more than a direct head does."""
    monkeypatch.setitem(CHECKS["rotations"].__globals__["ROTATION_TOLERANCE"], "esen", 6e-2)
    CHECKS["rotations"](conservative_spec(arch))


def asymmetry(model, data):
    """|u J v - v J u| / |v J u| for J = d forces / d pos and random u, v, by finite differences; 0 without curl."""
    rng, step = torch.Generator().manual_seed(1), 1e-5
    u, v = torch.randn(2, *data.pos.shape, generator=rng, dtype=data.pos.dtype)

    def along(direction):
        ends = (dataclasses.replace(data, pos=data.pos + s * step * direction) for s in (1, -1))
        with torch.no_grad():
            there, back = (model(end)[1] for end in ends)
        return (there - back) / (2 * step)

    one, other = (u * along(v)).sum(), (v * along(u)).sum()
    return (abs(one - other) / max(abs(one), abs(other))).item()


@pytest.mark.parametrize("arch", MODELS)
def test_conservative_forces_have_no_curl_and_direct_ones_do(arch):
    """Their Jacobian is symmetric: work does not depend on the path. Negative control: the direct heads."""
    data = batch_of(small_spec(arch), some_molecules())
    conservative, direct = (asymmetry(model_of(f(arch)), data) for f in (conservative_spec, small_spec))
    print(f"{arch}: asymmetry of the Jacobian {conservative:.1e}, with direct forces {direct:.1e}")
    assert conservative < 1e-6
    assert direct > 1e-2


@pytest.mark.parametrize("arch", [arch for arch in MODELS if MODELS[arch].translation_invariant])
def test_forces_of_a_molecule_add_up_to_nothing(arch):
    """Newton's third law follows from translation invariance; direct heads do not know it."""
    data = batch_of(small_spec(arch), some_molecules())
    total = graph_sum(model_of(conservative_spec(arch))(data)[1], data)
    print(f"{arch}: sum of forces {total.abs().max():.1e}")
    assert total.abs().max() < 1e-10
    if arch == "mpnn":
        assert graph_sum(model_of(small_spec(arch))(data)[1], data).abs().max() > 1e-2


FROZEN = {
    "mpnn": {"force_head"},
    "transformer": {"force_head"},
    "egnn": {"force_head", "layers.2.mix1", "layers.2.mix2"},  # the last layer's vectors are for forces alone
    "gemnet": {"force_mix", "force_layers", "force_head"}
    | {f"outputs.{i}.{part}" for i in range(3) for part in ("forces", "radial")},
    "esen": {"force_weight", "force_bias"},
}


@pytest.mark.parametrize("arch", MODELS)
def test_n_counts_what_is_trained(arch):
    """Direct-force heads are frozen by name, not counted, in no optimiser group, and nothing else is."""
    spec, direct = conservative_spec(arch), build_model(small_spec(arch))
    model = build_model(spec)
    names = {name.removeprefix("model.") for name, p in model.named_parameters() if not p.requires_grad}
    wanted = {n for n, _ in direct.named_parameters() if any(n.startswith(part) for part in FROZEN[arch])}
    assert names == wanted
    heads = sum(p.numel() for n, p in direct.named_parameters() if n in wanted)
    assert count_parameters(model) == count_parameters(direct) - heads
    with torch.device("meta"):
        assert count_parameters(build_model(spec)) == count_parameters(model)
    for mup in ("width", "parameter", "none"):
        groups = parameter_groups(model, dataclasses.replace(spec, mup=mup))
        assert sum(p.numel() for g in groups for p in g["params"]) == count_parameters(model)


def test_weights_are_those_of_the_direct_model():
    """The same seed draws the same, so that a pair differs in its forces alone."""
    direct, model = (
        build_model(spec).state_dict() for spec in (small_spec("egnn"), conservative_spec("egnn"))
    )
    assert all(torch.equal(value, model[f"model.{name}"]) for name, value in direct.items())


class Gated(nn.Module):
    """A pair energy times a weight that starts at 0: no value tells that it is trained."""

    rotation_equivariant = translation_invariant = symmetric_edges = False

    def __init__(self):
        super().__init__()
        self.gate, self.pair, self.head = (nn.Parameter(torch.tensor(x)) for x in (0.0, 1.0, 2.0))

    def forward(self, data):
        src, dst = data.edge_index
        square = (data.pos[src] - data.pos[dst]).square().sum(1) * self.pair
        energy = self.gate * scatter_sum(square, data.batch[dst], data.num_graphs)
        return energy, self.head * data.pos


def test_a_weight_that_starts_at_nothing_is_not_frozen():
    """The graph of the energy decides, not its values."""
    model = Conservative(Gated())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"model.gate", "model.pair"}


def test_evaluation_keeps_no_graph():
    """Under no_grad the numbers are those of training, and constants."""
    model, data = model_of(conservative_spec("mpnn")), batch_of(small_spec("mpnn"), some_molecules())
    with torch.no_grad():
        evaluated = model(data)
    trained = model(data)
    assert distance(evaluated, trained) < 1e-13
    assert not any(t.requires_grad for t in evaluated) and all(t.requires_grad for t in trained)
    assert not data.pos.requires_grad


@pytest.mark.parametrize("arch", ["egnn", "gemnet"])
def test_hand_written_backward_passes_refuse_to_be_differentiated(arch):
    """Negative control: outside of the wrapper their second derivative would be wrong, not missing."""
    model, data = model_of(small_spec(arch)), batch_of(small_spec(arch), some_molecules())
    pos = data.pos.clone().requires_grad_()
    energy = model(dataclasses.replace(data, pos=pos))[0].sum()
    (forces,) = torch.autograd.grad(energy, pos, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        forces.sum().backward()


class Cube(torch.autograd.Function):
    """x^3, written without autograd."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.mul(x * x, x, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x.detach() ** 2

    @staticmethod
    def plain(x):
        return x**3


def test_a_kernel_that_autograd_cannot_record_says_it_plainly():
    """Its ``plain`` is used where second derivatives are wanted, and only there."""
    x = torch.tensor([2.0], requires_grad=True)
    with twice_differentiable():
        (slope,) = torch.autograd.grad(apply_function(Cube, x).sum(), x, create_graph=True)
    assert slope.item() == 12 and torch.autograd.grad(slope, x)[0].item() == 12
    assert "CubeBackward" in type(apply_function(Cube, x).grad_fn).__name__


@pytest.mark.parametrize("arch", MODELS)
def test_flops_include_both_backward_passes(arch):
    """Evaluation counts its backward pass, training the one through it: both cost more than with direct forces."""
    data = [batch_of(small_spec(arch), some_molecules(), torch.float32)]
    costs = []
    for spec in (small_spec(arch), conservative_spec(arch)):
        model = build_model(spec)
        costs.append(step_cost(model, data, lambda d, m=model: training_loss(m, d, torch.Generator())))
        assert all(p.grad is None for p in model.parameters())
    direct, conservative = costs
    print(
        f"{arch}: training x {conservative.training / direct.training:.2f}, "
        f"evaluation x {conservative.forward / direct.forward:.2f}"
    )
    assert conservative.training > 1.3 * direct.training and conservative.forward > 1.3 * direct.forward


def test_flops_of_an_mpnn_by_hand():
    """Evaluated: every product runs once, and once back where positions come in. The unused head runs forward too."""
    spec = conservative_spec("mpnn", width=64)
    model, data = build_model(spec), batch_of(spec, some_molecules(), torch.float32)
    atoms, edges, w, radial = data.z.shape[0], data.edge_index.shape[1], 64, 136
    both_ways = atoms * (2 * 2 * w * w + w) + edges * (3 + radial) * w // 2
    forward_only = atoms * (w * w + w * w + 3 * w)  # species and direct head
    with torch.no_grad():
        assert count_flops(lambda: model(data)) == 2 * (2 * both_ways + forward_only)


def test_kappa_and_symmetry_loss_take_conservative_models():
    """kappa counts the trained N; eq. (2) runs M + 1 such steps."""
    spec = conservative_spec("mpnn", width=32)
    plain, symmetric = count(spec, 2), count(dataclasses.replace(spec, symmetry_samples=2), 2)
    assert plain["N"] == count_parameters(build_model(spec))
    assert symmetric["kappa"] == pytest.approx(3 * plain["kappa"], rel=0.01)


def test_bfloat16_autocast_trains():
    """Gradients are finite and near those in single precision."""
    spec: CellSpec = conservative_spec("mpnn", width=32)
    data = batch_of(spec, some_molecules(), torch.float32)
    found = []
    for enabled in (False, True):
        model = build_model(spec)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            objective(model, data).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    error = ((found[1] - found[0]).norm() / found[0].norm()).item()
    print(f"bfloat16: gradients differ by {error:.1e}")
    assert error < 0.1
