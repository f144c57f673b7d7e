"""Coordinate check of muP: do activations, and their changes in training, keep their size as the width grows?

For every width a model takes a few optimiser steps on one batch. After each step the root mean square (RMS) of its
hidden states, energies per atom and forces is compared with that at the start. Under muP the slope of log RMS
against log width is 0 (Yang et al. 2021, arXiv:2203.03466, appendix D.1), but for the network's outputs and
narrow layers at the start, which may fall as w^-1/2: their weights start at 1 / fan_in.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from symscale.cells import CellSpec
from symscale.data.batch import Batch
from symscale.loss import training_loss
from symscale.models import build_model
from symscale.models.common import graph_sum
from symscale.mup import parameter_groups, width_rate

STEPS = 4


def coordinates(spec: CellSpec, data: Batch, steps: int = STEPS) -> pd.DataFrame:
    """Columns quantity, width, step, rms: at step 0 the size, at step k the RMS of the change since step 0."""
    model = build_model(spec)
    if hasattr(model, "calibrate"):
        model.calibrate([data])
    optimizer = AdamWScheduleFree(parameter_groups(model, spec), lr=width_rate(spec))
    optimizer.train()
    rows, start = [], watch(model, data)
    for step in range(steps + 1):
        now = watch(model, data) if step else {}
        for quantity, before in start.items():
            size = now[quantity] - before if step else before
            rms = size.double().square().mean().sqrt().item()
            rows.append({"quantity": quantity, "width": spec.width, "step": step, "rms": rms})
        if step < steps:
            optimizer.zero_grad()
            training_loss(model, data, torch.Generator()).backward()
            optimizer.step()
    return pd.DataFrame(rows)


@torch.no_grad()
def watch(model: nn.Module, data: Batch) -> dict[str, Tensor]:
    """Energies per atom, forces and what the last module of every ModuleList of the model returns."""
    seen: dict[str, Tensor] = {}
    handles = []
    inner = model
    while isinstance(
        getattr(inner, "model", None), nn.Module
    ):  # what stands around the model of an architecture
        inner = inner.model
    for name, child in inner.named_children():
        if isinstance(child, nn.ModuleList) and len(child):

            def keep(_module, _inputs, output, name=name):
                tensors = _tensors(output)
                for i, tensor in enumerate(tensors):
                    seen[f"{name}[-1]" + (f" ({i + 1})" if len(tensors) > 1 else "")] = tensor

            handles.append(child[-1].register_forward_hook(keep))
    try:
        energy, forces = model(data)
    finally:
        for handle in handles:
            handle.remove()
    atoms = graph_sum(torch.ones_like(data.pos[:, 0]), data)
    return seen | {"energy / atom": energy / atoms, "forces": forces}


def _tensors(output) -> list[Tensor]:
    """The tensors of a module's output; GemNet-OC's pairs (v, scale) stand for scale * v."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], float):
        return [output[0] * output[1]]
    return [t for part in output for t in _tensors(part)] if isinstance(output, tuple) else []


def coordinate_check(
    spec: CellSpec, widths: list[int], mup: str, batch: Batch, seeds: int = 3, steps: int = STEPS
) -> pd.DataFrame:
    """``coordinates`` of a spec at every width, RMS over seeds too; columns arch and mup are added."""
    found = []
    for width in widths:
        for seed in range(seeds):
            cell = dataclasses.replace(spec, width=width, mup=mup, seed=seed)
            found.append(coordinates(cell, batch, steps))
    table = pd.concat(found)
    keys = ["quantity", "step", "width"]
    table = table.assign(rms=table["rms"] ** 2).groupby(keys, sort=False)["rms"].mean() ** 0.5
    return table.reset_index().assign(arch=spec.arch, mup=mup)


def slopes(table: pd.DataFrame) -> pd.DataFrame:
    """Least-squares slope of log RMS against log width: columns arch, mup, quantity, step, slope."""
    keys = ["arch", "mup", "quantity", "step"]
    rows = []
    for key, group in table.groupby(keys, sort=False):
        slope = np.polyfit(np.log(group["width"]), np.log(group["rms"]), 1)[0]
        rows.append(dict(zip(keys, key, strict=True)) | {"slope": float(slope)})
    return pd.DataFrame(rows)
