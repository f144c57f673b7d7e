"""eSEN: equivariant to rounding but for its sphere grid, whose error falls as the grid is refined."""

import pytest
import torch
from molecules import make_batch, moved, rotation
from torch.utils.flop_counter import FlopCounterMode

from symscale.flops import IN_PLACE
from symscale.models import so3
from symscale.models.esen import ESEN, Layer


def build(lmax, rings=None, depth=2):
    torch.manual_seed(0)
    return ESEN(width=4, depth=depth, lmax=lmax, mmax=2, hidden_channels=6, grid_rings=rings).double()


def rotation_error(model, data):
    """Relative error of energies and forces under one rotation."""
    turn = rotation(3)
    with torch.no_grad():
        energy, forces = model(data)
        energy2, forces2 = model(moved(data, turn))
    return max(
        ((energy2 - energy).abs().max() / energy.abs().max()).item(),
        ((forces2 - forces @ turn.T).abs().max() / forces.abs().max()).item(),
    )


def gated_instead_of_grid(self, h, grid):
    """A point-wise MLP that is exactly equivariant: channels mixed, gated by scalars."""
    mixed = self.grid3(self.grid2(self.grid1(h)))
    return mixed * torch.sigmoid(self.grid3(self.grid2(self.grid1(h[:, :1]))))


@pytest.mark.parametrize("lmax", [2, 3, 4])
def test_everything_but_the_sphere_grid_is_exactly_equivariant(lmax, molecules, monkeypatch):
    """With an exact MLP in the grid's place, rotations change results by rounding only."""
    monkeypatch.setattr(Layer, "on_grid", gated_instead_of_grid)
    error = rotation_error(build(lmax), make_batch(molecules))
    print(f"lmax {lmax}: {error:.1e}")
    assert error < 1e-10


@pytest.mark.parametrize("lmax", [2, 3, 4])
def test_the_grids_error_falls_as_it_is_refined(lmax, molecules):
    """Aliasing of the point-wise SiLU: small at the default resolution, and gone on a fine grid."""
    data = make_batch(molecules)
    errors = [rotation_error(build(lmax, rings), data) for rings in (lmax + 2, 2 * lmax + 4, 6 * lmax)]
    print(f"lmax {lmax}: " + " > ".join(f"{e:.1e}" for e in errors))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert 1e-12 < errors[0] < 0.05


@pytest.mark.parametrize("lmax", [2, 4])
def test_the_roll_of_an_edges_frame_does_not_matter(lmax, molecules, monkeypatch):
    """Other frames that also point along y give the same energies and forces."""
    data = make_batch(molecules)
    model = build(lmax)
    with torch.no_grad():
        before = model(data)
        frames = so3.edge_frames

        def rolled(r_uv, d):
            angle = torch.rand(len(d), generator=torch.Generator().manual_seed(1), dtype=d.dtype) * 6.28
            zero, one = torch.zeros_like(angle), torch.ones_like(angle)
            c, s = angle.cos(), angle.sin()
            roll = torch.stack([c, zero, s, zero, one, zero, -s, zero, c], 1).view(-1, 3, 3)
            return roll @ frames(r_uv, d)

        monkeypatch.setattr(so3, "edge_frames", rolled)
        after = model(data)
    assert max((a - b).abs().max().item() for a, b in zip(after, before, strict=True)) < 1e-10


@pytest.mark.parametrize("products", [3, 4])
def test_the_fast_kernel_equals_the_plain_one(products, molecules, monkeypatch):
    """Values and gradients of every parameter, with the plain message passing in its place; complex numbers are
    multiplied in three real products or in four.
    """
    from symscale.models import so2, so2_fast

    monkeypatch.setattr(so2_fast, "GAUSS", 0 if products == 3 else 10**9)

    def gradients():
        model = build(4)
        energy, forces = model(make_batch(molecules))
        (energy.square().sum() + forces.square().sum()).backward()
        return [energy, forces, *(p.grad for p in model.parameters() if p.grad is not None)]

    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as executed:
        fast = gradients()
    monkeypatch.setattr(so2_fast, "message", so2.message)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as of_plain:
        plain = gradients()
    assert (executed.get_total_flops() < 0.96 * of_plain.get_total_flops()) == (products == 3)
    assert len(fast) == len(plain)
    for a, b in zip(fast, plain, strict=True):
        assert (a - b).abs().max() <= 1e-9 * (1 + b.abs().max())


def test_the_fast_kernels_products_are_counted(molecules, monkeypatch):
    """A step costs the plain one's FLOPs and, for what the backward pass computes again, a little more."""
    from symscale.flops import count_flops
    from symscale.models import so2, so2_fast

    model, data = build(4), make_batch(molecules)

    def step():
        energy, forces = model(data)
        (energy.square().sum() + forces.square().sum()).backward()

    fast = count_flops(step)
    monkeypatch.setattr(so2_fast, "message", so2.message)
    plain = count_flops(step)
    print(f"fast / plain {fast / plain:.3f}")
    assert 1 <= fast / plain < 1.05


def test_bfloat16_autocast_tells_distances_apart():
    """Only products are rounded: 0.01 Angstrom is a third of bfloat16's step at 5 Angstrom, and can still be seen."""
    model = build(2).float()
    d = torch.arange(4.0, 6.0, 0.01)
    ends = torch.zeros(len(d), dtype=torch.int64)
    z = torch.tensor([6])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = model.radial(d, z, ends, ends)  # (stack, E, C + 1)
    exact = model.radial(d, z, ends, ends)
    error = (seen - exact)[..., :-1].std() / (exact - exact.mean(1, keepdim=True))[..., :-1].std()
    print(f"error {error:.3f} of the variation")
    assert len(seen.transpose(0, 1).flatten(1).unique(dim=0)) > 0.95 * len(d) and error < 0.05


def test_bfloat16_autocast_stays_near(molecules):
    """A forward and backward pass under autocast is finite and within bfloat16's few digits of float32."""
    model, data = build(4).float(), make_batch(molecules, dtype=torch.float32)
    energy, forces = model(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        energy2, forces2 = model(data)
        (energy2.square().sum() + forces2.square().sum()).backward()
    error = max(((a - b).norm() / b.norm()).item() for a, b in ((energy2, energy), (forces2, forces)))
    print(f"bfloat16 error {error:.1e}")
    assert 1e-6 < error < 0.1
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
