"""Losses and rotations: eqs. (1) and (2), Haar measure, and what augmentation may touch."""

import dataclasses

import pytest
import torch
from molecules import make_batch
from scipy import stats

from symscale.loss import task_loss, training_loss
from symscale.symmetry import random_rotations, rotate


def test_task_loss_is_eq_1(molecules):
    """Against eq. (1) written as a loop over molecules and atoms."""
    data = make_batch(molecules)
    rng = torch.Generator().manual_seed(1)
    energy = torch.randn(data.num_graphs, generator=rng, dtype=torch.float64)
    forces = torch.randn(data.z.shape[0], 3, generator=rng, dtype=torch.float64)
    got = task_loss(energy, forces, data, lambda_energy=2.0, lambda_forces=3.0).total
    for g in range(data.num_graphs):
        atoms = (data.batch == g).nonzero()[:, 0].tolist()
        n = len(atoms)
        by_hand = 2.0 * abs(energy[g] - data.energy[g]) / n
        by_hand += 3.0 * sum(((forces[i] - data.forces[i]) ** 2).sum().sqrt() for i in atoms) / n
        assert got[g].item() == pytest.approx(by_hand.item(), abs=1e-12)


def test_gradient_is_finite_where_the_forces_are_exact(molecules):
    """The norm of a zero difference must not give NaN."""
    data = make_batch(molecules)
    forces = data.forces.clone().requires_grad_()
    task_loss(data.energy, forces, data).total.sum().backward()
    assert torch.equal(forces.grad, torch.zeros_like(forces))


def test_random_rotations_are_proper_and_haar():
    """det +1, orthogonal; angles follow (1 - cos t) / pi and axes are uniform (Kolmogorov-Smirnov)."""
    turns = random_rotations(4000, torch.Generator().manual_seed(0))
    identity = torch.eye(3, dtype=torch.float64)
    assert (turns @ turns.transpose(1, 2) - identity).abs().max() < 1e-12
    assert (torch.linalg.det(turns) - 1).abs().max() < 1e-12
    angle = torch.acos(((turns.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)).numpy()
    haar = stats.kstest(angle, lambda t: (t - torch.sin(torch.as_tensor(t)).numpy()) / torch.pi)
    image = turns[
        :, :, 2
    ]  # the z axis goes to a uniform point of the sphere: each coordinate uniform on [-1, 1]
    uniform = [stats.kstest(image[:, i].numpy(), "uniform", args=(-1, 2)).pvalue for i in range(3)]
    assert haar.pvalue > 0.01 and min(uniform) > 0.01
    # negative control: uniform angles are not Haar
    assert (
        stats.kstest(
            torch.rand(4000).numpy() * torch.pi,
            lambda t: (t - torch.sin(torch.as_tensor(t)).numpy()) / torch.pi,
        ).pvalue
        < 1e-6
    )


def test_rotation_turns_positions_and_forces_alike_and_nothing_else(molecules):
    """Molecule by molecule; energies, species and edges stay."""
    data = make_batch(molecules)
    turns = random_rotations(data.num_graphs, torch.Generator().manual_seed(3))
    turned = rotate(data, turns)
    for g, turn in enumerate(turns):
        mine = data.batch == g
        assert torch.allclose(turned.pos[mine], data.pos[mine] @ turn.T, atol=1e-12)
        assert torch.allclose(turned.forces[mine], data.forces[mine] @ turn.T, atol=1e-12)
    unchanged = {f.name for f in dataclasses.fields(data)} - {"pos", "forces"}
    assert all(getattr(turned, name) is getattr(data, name) for name in unchanged)


def test_autocast_does_not_round_what_is_rotated(molecules):
    """bfloat16 keeps three digits, of positions of several Angstrom and of the labels."""
    data = make_batch(molecules, dtype=torch.float32)
    turns = random_rotations(data.num_graphs, torch.Generator().manual_seed(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = rotate(data, turns)
    plain = rotate(data, turns)
    assert torch.equal(rounded.pos, plain.pos) and torch.equal(rounded.forces, plain.forces)


class Linear(torch.nn.Module):
    """Not equivariant: forces are a matrix times positions."""

    def __init__(self):
        super().__init__()
        self.matrix = torch.nn.Parameter(
            torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, data):
        return data.energy * 0, data.pos @ self.matrix


def test_no_symmetry_samples_is_the_plain_loss_bit_for_bit(molecules):
    """M = 0 draws nothing and adds nothing."""
    data = make_batch(molecules)
    rng = torch.Generator().manual_seed(0)
    before = rng.get_state()
    model = Linear()
    plain = task_loss(*model(data), data).total.mean()
    assert torch.equal(training_loss(model, data, rng), plain)
    assert torch.equal(rng.get_state(), before)


def test_symmetry_loss_is_eq_2(molecules):
    """L_obj + lambda times the mean of the task loss over M rotated copies."""
    data = make_batch(molecules)
    model = Linear()
    got = training_loss(
        model, data, torch.Generator().manual_seed(5), symmetry_samples=3, symmetry_weight=0.7
    )
    rng = torch.Generator().manual_seed(5)
    copies = [rotate(data, random_rotations(data.num_graphs, rng)) for _ in range(3)]
    by_hand = task_loss(*model(data), data).total.mean()
    by_hand = by_hand + 0.7 * sum(task_loss(*model(c), c).total.mean() for c in copies) / 3
    assert got.item() == pytest.approx(by_hand.item(), abs=1e-12)
    assert got > 1.2 * task_loss(*model(data), data).total.mean()
