"""Forces as the negative gradient of the energy, around any model (section 2; Bigi et al. 2025).

Units need no factor: e' = (e - mu) / sigma and f' = f / sigma, and mu does not depend on positions, so that
f = -d e / d x is f' = -d e' / d x.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from symscale.cells import CellSpec
from symscale.data.batch import Batch
from symscale.models.common import twice_differentiable


class Conservative(nn.Module):
    """Energy of ``model``, forces f' = -d e' / d pos; what the model itself says of forces is not used.

    Parameters of which the energy is no function (direct-force heads) are frozen: N counts what is trained.
    The edges are held constant, so the energy is a potential as long as no atom crosses the cutoff.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.rotation_equivariant = model.rotation_equivariant
        self.translation_invariant = model.translation_invariant
        self.symmetric_edges = model.symmetric_edges
        freeze_unread(model)

    def from_spec(self, spec: CellSpec) -> Conservative:
        """The same around the same model at another spec."""
        return Conservative(self.model.from_spec(spec))

    def forward(self, data: Batch) -> tuple[Tensor, Tensor]:
        """Energies (G,) and forces (N, 3), both normalised; works under ``no_grad`` too.

        With gradients enabled the forces can be differentiated once more, by parameters; that takes a backward
        pass through the backward pass. Without, both come back as constants.
        """
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            pos = data.pos if training and data.pos.requires_grad else data.pos.detach().requires_grad_()
            energy = energy_of(self.model, dataclasses.replace(data, pos=pos))
            # the molecules of a batch do not interact: the gradient of the sum is that of each
            (slope,) = torch.autograd.grad(energy.sum(), pos, create_graph=training)
        return (energy, -slope) if training else (energy.detach(), -slope)

    def calibrate(self, batches) -> None:
        """That of the model, where it has one."""
        if hasattr(self.model, "calibrate"):
            self.model.calibrate(batches)


def energy_of(model: Callable[[Batch], tuple[Tensor, Tensor]], data: Batch) -> Tensor:
    """Energies (G,) that can be differentiated twice."""
    # hand-written backward passes have no derivative, nor has that of fused attention; without gradients too,
    # autograd's own is cheaper: it leaves out what only the weights need
    with twice_differentiable(), sdpa_kernel(SDPBackend.MATH):
        return model(data)[0]


def freeze_unread(model: nn.Module) -> None:
    """Freeze the parameters of which the energy is no function.

    Found by the graph of one energy, not by its values: a weight that starts at 0 is trained all the same.
    """
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    mode = contextlib.nullcontext()
    if any(t.device.type == "meta" for t in state.values()):  # shapes alone; autocast cannot be asked there
        mode = FakeTensorMode()
    with torch.enable_grad(), mode:
        if isinstance(mode, FakeTensorMode):
            state = {
                name: torch.empty(t.shape, dtype=t.dtype, device="cpu", requires_grad=t.requires_grad)
                for name, t in state.items()
            }
        trained = {name: t for name, t in state.items() if t.requires_grad}
        first = next(iter(trained.values()))
        energy = energy_of(
            lambda data: functional_call(model, state, (data,)), water(first.dtype, first.device)
        )
        slopes = torch.autograd.grad(energy.sum(), list(trained.values()), allow_unused=True)
    for name, slope in zip(trained, slopes, strict=True):
        model.get_parameter(name).requires_grad_(slope is not None)


def water(dtype: torch.dtype, device: torch.device) -> Batch:
    """A molecule to ask a model about, every atom a neighbour of every other."""
    pos = torch.tensor([[0.0, 0.1, 0.0], [0.76, -0.48, 0.0], [-0.76, -0.48, 0.0]], dtype=dtype, device=device)
    src_dst = [[1, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2]]
    return Batch(
        z=torch.tensor([8, 1, 1], device=device),
        pos=pos.requires_grad_(),
        batch=torch.zeros(3, dtype=torch.long, device=device),
        edge_index=torch.tensor(src_dst, device=device),
        energy=pos.new_zeros(1),
        forces=torch.zeros_like(pos),
        num_graphs=1,
        max_atoms=3,
        max_degree=2,
    )
