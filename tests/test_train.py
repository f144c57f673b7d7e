"""Training: reproducible, resumable to the last bit, undisturbed by looking, and loud when it fails."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import torch

from symscale import train as training
from symscale.cells import CellSpec, spec_essence, spec_hash
from symscale.checkpoint import EXIT_STOPPED
from symscale.curves import SCHEMA, read_curve
from symscale.errors import UserError
from symscale.evaluate import evaluate
from symscale.models import MODELS, build_model
from symscale.run import FRACTIONS

CPU = torch.device("cpu")
MPNN = CellSpec("mpnn_w8", "mpnn", 8, 2, 8, "xtb", batch_size=8, validations=4)
ESEN = CellSpec("esen_c2", "esen", 2, 1, 2, "xtb", batch_size=16, validations=2, lmax=2, hidden_channels=4)
WALL_CLOCK = ["device_hours"]


def run(spec, pack, folder, **kwargs):
    """Train in a folder; (status, curve without wall-clock columns, metadata)."""
    output = folder / "curve.parquet"
    kwargs = {"device": CPU, "say": lambda line: None} | kwargs
    status = training.train(spec, pack, folder / "checkpoint", output, **kwargs)
    if status:
        return status, None, None
    curve, meta = read_curve(output)
    return status, curve.drop(columns=WALL_CLOCK), meta


def trainer(spec, pack, cell_folder, folder):
    """The command line that trains a spec in a folder, as the workflow calls it."""
    cell = cell_folder / "cell.json"
    cell.write_text(json.dumps({"spec": spec_essence(spec), "hash": spec_hash(spec), "data": pack.folder}))
    command = [sys.executable, "-m", "symscale", "train", "--threads", "1", "--cell", str(cell)]
    return [*command, "--checkpoint", str(folder / "checkpoint"), "--output", str(folder / "curve.parquet")]


def final_weights(folder):
    """The averaged weights that a finished cell leaves."""
    return torch.load(folder / "checkpoint/model.pt", weights_only=True)["model"]


def stop_at(monkeypatch, steps):
    """Ask to stop, by the real signal, when each of these step indices is about to be trained."""
    asked = set(steps)
    step = training.train_step

    def interrupted(setup, data, index):
        if index in asked:
            asked.remove(index)
            os.kill(os.getpid(), signal.SIGUSR2)
        return step(setup, data, index)

    monkeypatch.setattr(training, "train_step", interrupted)


@pytest.mark.parametrize("spec", [MPNN, ESEN], ids=lambda s: s.arch)
def test_two_runs_with_one_seed_give_the_same_curve(spec, pack, tmp_path):
    """On the CPU every column but the clock is equal to the last bit; another seed is another curve."""
    curves = [run(spec, pack, tmp_path / name)[1] for name in ("a", "b")]
    assert curves[0].equals(curves[1])
    other = run(dataclasses.replace(spec, seed=1), pack, tmp_path / "c")[1]
    assert not np.allclose(other["val_loss"], curves[0]["val_loss"], rtol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epochs": 2, "augment": True},
        {"symmetry_samples": 2, "seed": 3, "data_fraction": 0.6},
        {"conservative": True, "symmetry_samples": 1, "augment": True},
        {"equivariant_by": "canonical"},
    ],
    ids=["plain", "epochs and augmentation", "symmetry loss", "conservative", "canonical"],
)
def test_resumed_curve_equals_uninterrupted(changes, pack, tmp_path, monkeypatch):
    """Stopped three times by SIGUSR2 and run again: the same curve and weights, value for value."""
    spec = dataclasses.replace(MPNN, **changes)
    whole = run(spec, pack, tmp_path / "whole")
    stop_at(monkeypatch, [0, 3, 7])
    statuses = []
    while not statuses or statuses[-1] == EXIT_STOPPED:
        status, curve, meta = run(spec, pack, tmp_path / "pieces")
        statuses.append(status)
    assert statuses == [EXIT_STOPPED] * 3 + [0]
    assert curve.equals(whole[1])
    weights, expected = final_weights(tmp_path / "pieces"), final_weights(tmp_path / "whole")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert (meta["restarts"], meta["preemptions"]) == (3, 3)


def test_a_stop_during_validation_loses_no_row(pack, tmp_path, monkeypatch):
    """The validation is given up and made again from the same weights on resuming."""
    whole = run(MPNN, pack, tmp_path / "whole")[1]
    validate = training.validate
    asked = []

    def interrupted(setup, should_stop):
        if len(asked) < 2:
            asked.append(os.kill(os.getpid(), signal.SIGTERM))
        return validate(setup, should_stop)

    monkeypatch.setattr(training, "validate", interrupted)
    statuses = [run(MPNN, pack, tmp_path / "pieces")[0] for _ in range(2)]
    status, curve, _ = run(MPNN, pack, tmp_path / "pieces")
    assert [*statuses, status] == [EXIT_STOPPED, EXIT_STOPPED, 0]
    assert curve.equals(whole)


def test_a_row_that_is_due_on_resuming_delays_no_progress_line(pack, tmp_path, monkeypatch):
    """Resumed at a validation that takes longer than the time between two progress lines."""
    monkeypatch.setattr(training, "LOG_SECONDS", 0.0)
    validate = training.validate
    asked = []

    def interrupted(setup, should_stop):
        if not asked:
            asked.append(os.kill(os.getpid(), signal.SIGUSR2))
        return validate(setup, should_stop)

    monkeypatch.setattr(training, "validate", interrupted)
    assert [run(MPNN, pack, tmp_path)[0] for _ in range(2)] == [EXIT_STOPPED, 0]


def test_a_run_killed_without_warning_resumes_from_its_checkpoint(pack, tmp_path):
    """SIGKILL of the real trainer; what was trained after the last checkpoint is trained again, and equal."""
    spec = dataclasses.replace(MPNN, epochs=6)
    whole = run(spec, pack, tmp_path / "whole")[1]
    command = [*trainer(spec, pack, tmp_path, tmp_path / "k"), "--checkpoint-minutes", "0"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    state = tmp_path / "k/checkpoint/state.pt"
    while not state.exists() and process.poll() is None:
        os.sched_yield()
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "k/curve.parquet").exists()
    status, curve, meta = run(spec, pack, tmp_path / "k")
    assert status == 0 and curve.equals(whole) and meta["restarts"] == 1


def test_looking_does_not_change_training(pack, tmp_path):
    """However often one validates, the weights at the end are the same bits."""
    run(dataclasses.replace(MPNN, validations=0), pack, tmp_path / "seldom")
    run(dataclasses.replace(MPNN, validate_every=1), pack, tmp_path / "often")
    seldom, often = final_weights(tmp_path / "seldom"), final_weights(tmp_path / "often")
    assert all(torch.equal(seldom[name], often[name]) for name in seldom)


def test_validation_judges_the_averaged_weights(pack, tmp_path):
    """The last row is what the saved model scores, and not what the weights under training score."""
    curve = run(MPNN, pack, tmp_path)[1]
    setup = training.set_up(MPNN, pack, CPU)
    model = build_model(MPNN)
    model.load_state_dict(final_weights(tmp_path))
    judged = evaluate(model, setup.validation_batches(), pack.sigma)
    assert judged["val_loss"] == curve["val_loss"].iloc[-1]
    state = torch.load(tmp_path / "checkpoint/state.pt", weights_only=False)["state"]
    model.load_state_dict(state["model"])
    under_training = evaluate(model, setup.validation_batches(), pack.sigma)
    assert abs(under_training["val_loss"] / judged["val_loss"] - 1) > 1e-4


def test_curve_counts_what_was_seen(pack, tmp_path):
    """Atoms, molecules and FLOPs of the last row are those of the whole fraction; r = 0.1 ... 1.0 are there."""
    spec = dataclasses.replace(MPNN, data_fraction=0.5, epochs=2)
    _, curve, meta = run(spec, pack, tmp_path)
    half = pack.train.prefix(0.5)
    assert list(curve.columns) == [name for name in SCHEMA.names if name not in WALL_CLOCK]
    assert curve["molecules"].iloc[-1] == 2 * len(half) and curve["atoms"].iloc[-1] == 2 * half.atoms
    assert curve["flops"].iloc[-1] == pytest.approx(3 * meta["kappa"] * meta["N"] * 2 * half.atoms, rel=1e-12)
    assert {max(1, round(r * meta["total_steps"])) for r in FRACTIONS} <= set(curve["step"])
    assert curve["fraction"].iloc[-1] == 1 and curve["epoch"].iloc[-1] == 2
    assert curve["step"].iloc[0] == 1, "the first validation comes early"


def test_training_learns(pack, tmp_path):
    """Twenty epochs on the built-in data lower the training loss by a third and the validation loss somewhat."""
    spec = dataclasses.replace(MPNN, width=64, base_width=64, lr=5e-3, epochs=20)
    curve = run(spec, pack, tmp_path)[1]
    assert curve["train_loss"].iloc[-1] < 0.67 * curve["train_loss"].iloc[0]
    assert curve["val_loss"].iloc[-1] < 0.95 * curve["val_loss"].iloc[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"equivariant_by": "frames"},
        {"equivariant_by": "canonical"},
        {"conservative": True},
        {"equivariant_by": "canonical", "conservative": True},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_what_stands_around_a_model_is_in_its_curve(changes, pack, tmp_path):
    """It learns; N and FLOPs of the curve are those of the whole, and other cells' columns are its columns."""
    spec = dataclasses.replace(MPNN, width=32, base_width=32, lr=5e-3, epochs=8, **changes)
    _, curve, meta = run(spec, pack, tmp_path)
    assert list(curve.columns) == [name for name in SCHEMA.names if name not in WALL_CLOCK]
    print(f"training loss {curve['train_loss'].iloc[0]:.3f} -> {curve['train_loss'].iloc[-1]:.3f}")
    assert curve["train_loss"].iloc[-1] < curve["train_loss"].iloc[0]
    assert np.isfinite(curve.to_numpy(dtype=float)).all()
    assert meta["N"] == sum(p.numel() for p in build_model(spec).parameters() if p.requires_grad)
    cost = training.measure_cost(training.set_up(spec, pack, CPU))
    assert meta["flops_per_atom"] == cost.training and meta["forward_flops_per_atom"] == cost.forward
    assert {**meta["spec"], **changes} == meta["spec"]


def test_symmetry_loss_costs_m_plus_1_steps(pack):
    """FLOPs are those of the step as trained: M = 5 makes six passes (section 4.4) and turns the molecules."""
    plain = training.measure_cost(training.set_up(MPNN, pack, CPU))
    symmetric = training.measure_cost(
        training.set_up(dataclasses.replace(MPNN, symmetry_samples=5), pack, CPU)
    )
    assert symmetric.training == pytest.approx(6 * plain.training, rel=2e-3)
    assert symmetric.training > 6 * plain.training
    assert symmetric.forward == plain.forward


def test_mpnn_backward_costs_twice_its_forward(pack):
    """Eq. (3)'s factor 3, up to the layers whose input needs no gradient."""
    wide = dataclasses.replace(MPNN, width=256, depth=5)
    cost = training.measure_cost(training.set_up(wide, pack, CPU))
    assert 2.7 < cost.training / cost.forward <= 3


def test_augmentation_never_reaches_validation(pack):
    """Validation batches of an augmented cell are the pack's own positions."""
    setups = [training.set_up(dataclasses.replace(MPNN, augment=flag), pack, CPU) for flag in (False, True)]
    for plain, augmented in zip(*(s.validation_batches() for s in setups), strict=True):
        assert torch.equal(plain.pos, augmented.pos) and torch.equal(plain.forces, augmented.forces)


class Diverging(MODELS["mpnn"]):
    """An MPNN whose energies blow up after some steps."""

    calls = 0

    def forward(self, data):
        energy, forces = super().forward(data)
        type(self).calls += self.training
        return energy * (float("nan") if self.calls > 8 else 1.0), forces


def test_a_loss_that_is_no_number_names_the_cell_and_writes_nothing(pack, tmp_path, monkeypatch):
    """The checkpoint before stays, no curve appears, and no NaN is saved."""
    monkeypatch.setitem(MODELS, "mpnn", Diverging)
    with pytest.raises(UserError, match="mpnn_w8: the training loss became nan between steps"):
        run(MPNN, pack, tmp_path, checkpoint_minutes=0)
    assert not (tmp_path / "curve.parquet").exists()
    state = torch.load(tmp_path / "checkpoint/state.pt", weights_only=False)["state"]
    assert all(torch.isfinite(v).all() for v in state["model"].values())
    assert np.isfinite(state["counters"].loss_sum)


def test_weights_that_are_no_numbers_are_never_saved(pack, tmp_path, monkeypatch):
    """A finite loss may leave NaN in the weights; the checkpoint before stays, and so no resume inherits them."""
    step = training.train_step

    def poisoned(setup, data, index):
        loss = step(setup, data, index)
        if index == 5:
            with torch.no_grad():
                setup.model.embed.weight[0, 0] = float("nan")  # of no atom: the loss stays finite
        return loss

    monkeypatch.setattr(training, "train_step", poisoned)
    with pytest.raises(UserError, match="mpnn_w8: the next loss became nan"):
        run(MPNN, pack, tmp_path, checkpoint_minutes=0)
    state = torch.load(tmp_path / "checkpoint/state.pt", weights_only=False)["state"]
    assert state["counters"].step == 5 and all(torch.isfinite(v).all() for v in state["model"].values())


def test_a_checkpoint_of_another_spec_is_refused_with_both_hashes(pack, tmp_path):
    """Otherwise a changed cell would go on from weights that it never had."""
    run(MPNN, pack, tmp_path)
    changed = dataclasses.replace(MPNN, weight_decay=0.1)
    with pytest.raises(UserError) as refused:
        run(changed, pack, tmp_path)
    assert spec_hash(MPNN) in str(refused.value) and spec_hash(changed) in str(refused.value)


def test_a_finished_cell_writes_its_curve_again_without_training(pack, tmp_path, monkeypatch):
    """Snakemake deletes declared outputs before a rerun; the checkpoint still holds the curve."""
    curve = run(MPNN, pack, tmp_path)[1]
    (tmp_path / "curve.parquet").unlink()
    monkeypatch.setattr(training, "train_step", None)
    assert run(MPNN, pack, tmp_path)[1].equals(curve)


def test_a_full_disk_is_reported_by_path(pack, tmp_path):
    """A limit on file size stands in for a disk without room: one line, no half-written curve."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = subprocess.run(
        trainer(MPNN, pack, tmp_path, tmp_path), capture_output=True, text=True, preexec_fn=limit
    )
    assert done.returncode == 1 and "state.pt" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "curve.parquet").exists()


def test_symmetry_loss_without_samples_is_the_plain_run_bit_for_bit(pack, tmp_path):
    """M = 0 whatever its weight: the same curve and weights; M = 1 is another run."""
    plain = run(MPNN, pack, tmp_path / "plain")[1]
    nothing = run(dataclasses.replace(MPNN, symmetry_weight=7.0), pack, tmp_path / "nothing")[1]
    assert nothing.equals(plain)
    weights, expected = final_weights(tmp_path / "nothing"), final_weights(tmp_path / "plain")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    one = run(dataclasses.replace(MPNN, symmetry_samples=1), pack, tmp_path / "one")[1]
    assert one["val_loss"].iloc[-1] != plain["val_loss"].iloc[-1]


def test_augmented_steps_see_the_molecules_under_proper_rotations(pack, monkeypatch):
    """Positions and forces of every molecule are turned by one rotation of determinant +1: the best proper rotation
    leaves nothing over, while a mirror image is not reached by one."""
    setup = training.set_up(dataclasses.replace(MPNN, augment=True), pack, CPU)
    data = next(setup.train_batches(0))
    seen = []

    def spy(batch):
        seen.append(batch)
        return setup.model(batch)

    setup.loss(spy, data, 0)
    (turned,) = seen
    spatial = 0
    for g in range(data.num_graphs):
        mine = data.batch == g
        before, after = (torch.cat([d.pos[mine], d.forces[mine]]) for d in (data, turned))
        assert not torch.allclose(before, after, atol=1e-2)
        assert left_over(before, after) < 1e-3
        spatial += left_over(before, -after) > 1e-2
    assert spatial == data.num_graphs


def left_over(a, b):
    """Largest distance of the rows of b from R a, over the proper rotation R that fits best (Kabsch)."""
    u, _, v = torch.linalg.svd(a.double().T @ b.double())
    u = u * torch.tensor([1.0, 1.0, torch.sign(torch.linalg.det(u @ v))])
    return float((a.double() @ u @ v - b.double()).abs().max())


def test_training_on_r_alone_retraces_the_whole_run_and_another_seed_does_not(pack, tmp_path):
    """No schedule looks ahead: half of the data of seed 0 gives the row at r = 0.5, which is why studies of fractions
    need other seeds."""
    whole = run(MPNN, pack, tmp_path / "whole")[1]
    half = run(dataclasses.replace(MPNN, data_fraction=0.5), pack, tmp_path / "half")[1]
    other = run(dataclasses.replace(MPNN, data_fraction=0.5, seed=1), pack, tmp_path / "other")[1]
    at = whole[whole["step"] == half["step"].iloc[-1]].iloc[0]
    assert at["fraction"] == pytest.approx(0.5, abs=0.05) and at["atoms"] == half["atoms"].iloc[-1]
    assert half["val_loss"].iloc[-1] == at["val_loss"] != other["val_loss"].iloc[-1]


def test_order_of_epochs_differs_and_stays_inside_the_fraction(pack):
    """Multi-epoch training reshuffles what the fraction holds and nothing else."""
    setup = training.set_up(dataclasses.replace(MPNN, data_fraction=0.3, epochs=2), pack, CPU)
    plan = setup.plan
    epochs = [
        np.concatenate([plan[s] for s in range(e * plan.steps_per_epoch, (e + 1) * plan.steps_per_epoch)])
        for e in (0, 1)
    ]
    assert not np.array_equal(*epochs)
    assert all(sorted(epoch) == list(range(len(plan.split))) for epoch in epochs)
    first = next(islice(setup.train_batches(0), 1))
    assert first.num_graphs == 8


def test_an_atom_budget_bounds_every_step(pack):
    """Molecules much larger than the mean must not blow memory; every molecule is still seen once."""
    setup = training.set_up(dataclasses.replace(MPNN, batch_size=16, max_atoms=80), pack, CPU)
    sizes = [(data.z.shape[0], data.num_graphs) for data in setup.train_batches(0)]
    assert all(atoms <= 80 or graphs == 1 for atoms, graphs in sizes)
    assert sum(graphs for _, graphs in sizes) == len(pack.train)
    unbounded = training.set_up(dataclasses.replace(MPNN, batch_size=16), pack, CPU)
    assert max(data.z.shape[0] for data in unbounded.train_batches(0)) > 80
