"""Group averaging: its formula, what it does to models with and without symmetry, what it costs."""

import numpy as np
import pandas as pd
import pytest
import torch
from molecules import make_batch, moved, rotation

from symscale import train as training
from symscale.__main__ import main
from symscale.cells import CellSpec
from symscale.flops import count_flops
from symscale.models.egnn import EGNN
from symscale.models.esen import ESEN
from symscale.models.gemnet import GemNetOC
from symscale.models.mpnn import MPNN
from symscale.symmetry import GroupAverage, random_rotations, rotate


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def seeded(cls, **options):
    torch.manual_seed(0)
    return cls(**options).double()


def test_group_average_is_eq_23(molecules):
    """By hand: one model call a rotation, forces rotated back by its inverse."""
    data, model = make_batch(molecules), seeded(MPNN, width=8, depth=2)
    energy, forces = GroupAverage(model, 3, seed=4)(data)
    generator = torch.Generator().manual_seed(4)
    by_hand_energy, by_hand_forces = torch.zeros_like(energy), torch.zeros_like(forces)
    for _ in range(3):
        turns = random_rotations(data.num_graphs, generator)
        e, f = model(rotate(data, turns))
        by_hand_energy += e / 3
        for g, matrix in enumerate(turns):
            mine = data.batch == g
            by_hand_forces[mine] += f[mine] @ torch.linalg.inv(matrix).T / 3
    assert torch.allclose(energy, by_hand_energy, atol=1e-12)
    assert torch.allclose(forces, by_hand_forces, atol=1e-12)


@pytest.mark.parametrize("cls", [EGNN, GemNetOC])
def test_averaging_an_equivariant_model_changes_nothing(molecules, cls):
    """To rounding, whatever M; the MPNN is the control."""
    data = make_batch(molecules, symmetric=cls.symmetric_edges)
    model = seeded(cls, width=9, depth=2)
    plain, average = model(data), GroupAverage(model, 5)(data)
    error = max(relative(a, b) for a, b in zip(average, plain, strict=True))
    print(f"{cls.__name__}: {error:.1e}")
    assert error < 1e-10
    mpnn = seeded(MPNN, width=8, depth=2)
    assert relative(GroupAverage(mpnn, 5)(data)[1], mpnn(data)[1]) > 1e-2


def test_averaging_esen_changes_no_more_than_its_grid(molecules):
    """Aliasing on the sphere grid, hence less on a finer grid."""
    data, errors = make_batch(molecules), []
    for rings in (4, 12):
        model = seeded(ESEN, width=4, depth=2, lmax=2, hidden_channels=4, grid_rings=rings)
        errors.append(relative(GroupAverage(model, 3)(data)[1], model(data)[1]))
    print("eSEN, 4 and 12 rings:", *(f"{e:.1e}" for e in errors))
    assert errors[0] < 2e-2 and errors[1] < 1e-2 * errors[0]


def test_equivariance_error_falls_as_one_over_sqrt_m(molecules):
    """f(R x) - R f(x) of an averaged MPNN, with rotations drawn anew for either side."""
    data, model = make_batch(molecules), seeded(MPNN, width=8, depth=2)
    matrix, errors = rotation(1), []
    samples = [1, 4, 16, 64]
    for m in samples:
        squares = []
        for seed in range(6):
            with torch.no_grad():
                forces = GroupAverage(model, m, seed)(data)[1] @ matrix.T
                turned = GroupAverage(model, m, seed + 100)(moved(data, matrix))[1]
            squares.append((turned - forces).square().mean().item())
        errors.append(np.mean(squares) ** 0.5)
    slope = np.polyfit(np.log(samples), np.log(errors), 1)[0]
    print("errors", [f"{e:.1e}" for e in errors], f"slope {slope:.2f}")
    assert -0.6 < slope < -0.4


def test_average_is_repeatable_and_larger_m_extends_smaller(molecules):
    """Same seed, same result; 2 f_2 = f_1 + (the second rotation's term)."""
    data, model = make_batch(molecules), seeded(MPNN, width=8, depth=2)
    first, again = GroupAverage(model, 1)(data), GroupAverage(model, 1)(data)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    generator = torch.Generator().manual_seed(0)
    random_rotations(data.num_graphs, generator)
    second = model(rotate(data, random_rotations(data.num_graphs, generator)))[0]
    assert torch.allclose(2 * GroupAverage(model, 2)(data)[0], first[0] + second)


def test_averaging_costs_m_forward_passes(molecules):
    """The counter sees all M, and nothing but the small rotations besides."""
    data, model = make_batch(molecules, dtype=torch.float32), MPNN(width=64, depth=2)
    once = count_flops(lambda: model(data))
    assert 7 * once <= count_flops(lambda: GroupAverage(model, 7)(data)) < 7.02 * once


def test_no_samples_are_refused():
    """An average over nothing would be NaN."""
    with pytest.raises(ValueError, match="at least 1"):
        GroupAverage(torch.nn.Identity(), 0)


def test_group_average_command_scores_a_trained_cell(pack, tmp_path, capsys):
    """M = 0 is the last row of the curve itself; averaging lowers the loss of an MPNN on turned molecules."""
    spec = CellSpec("mpnn_w16", "mpnn", 16, 2, 16, "xtb", batch_size=8, validations=2, lr=5e-3, epochs=3)
    curve = tmp_path / "curve.parquet"
    training.train(spec, pack, tmp_path / "c", curve, device=torch.device("cpu"), say=lambda line: None)
    command = ["group-average", "--checkpoint", str(tmp_path / "c"), "--data", pack.folder, "--device", "cpu"]
    out = tmp_path / "new/average.parquet"
    assert main([*command, "--samples", "8", "0", "1", "--out", str(out)]) == 0
    table = pd.read_parquet(out)
    assert (
        table["M"].tolist() == [0, 1, 8] and set(table["cell"]) == {"mpnn_w16"} and table["N"].nunique() == 1
    )
    last = pd.read_parquet(curve).iloc[-1]
    for column in ("val_loss", "val_energy_loss", "val_force_loss"):
        assert table[column][0] == pytest.approx(last[column], rel=1e-6)
    assert table["val_loss"][2] < table["val_loss"][1]
    capsys.readouterr()
    missing = [*command[:2], str(tmp_path / "none"), *command[3:], "--out", str(out)]
    assert main(missing) == 1 and "model.pt: no such file" in capsys.readouterr().err
