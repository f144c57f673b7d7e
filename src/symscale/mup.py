"""Learning rates and initialisation across widths, in one place (section 3.3, 'Infinite-Width Scaling').

``mup`` of a cell's spec is one of

'width'      the paper's rule: every parameter learns at eta(w) = eta* w_base / w; nothing else depends on w.
'parameter'  muP of Yang et al. (2021, arXiv:2203.03466, Table 3, Adam) for every tensor by its own shape:
             a matrix whose fan-in grows by a factor r over that at w_base learns at eta* / r; embeddings, biases,
             norms and matrices of fixed fan-in keep eta*. A matrix whose fan-in grows faster than its fan-out (an
             output, a bottleneck) starts with variance 1 / fan_in^2 in place of 1 / fan_in.
'none'       eta* for everything, the control.

All three are the same at w = w_base. Which tensors grow is not declared: the same spec is built at w_base, without
memory (device 'meta'), and shapes are compared.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import nn

from symscale.cells import CellSpec


def width_rate(spec: CellSpec) -> float:
    """The rate that stands for a cell: eta(w) = eta* w_base / w under the paper's rule, else eta*."""
    return spec.lr * spec.base_width / spec.width if spec.mup == "width" else spec.lr


def parameter_groups(model: nn.Module, spec: CellSpec) -> list[dict]:
    """Optimiser groups {'params', 'lr'}, one for each learning rate; every trainable parameter is in one."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    growth = fan_growth(model, spec) if spec.mup == "parameter" else {}
    groups: dict[float, list] = {}
    for name, parameter in trainable:
        grows = growth[name][0] if name in growth else 1.0
        groups.setdefault(width_rate(spec) / grows, []).append(parameter)
    return [{"params": params, "lr": lr} for lr, params in groups.items()]


@torch.no_grad()
def initialise(model: nn.Module, spec: CellSpec) -> None:
    """Rescale freshly drawn weights in place; nothing is done unless ``spec.mup`` is 'parameter'.

    Matrices: standard deviation times sqrt(r_out / r_in) where the fan-in grows faster, which is
    1 / fan_in for an output and what appendix C.3 asks of EGNN's first vector mixer. PyTorch draws a bias from
    +-1 / sqrt(fan_in): it is brought back to the size that it has at w_base.
    """
    if spec.mup != "parameter":
        return
    growth = fan_growth(model, spec)
    parameters = dict(model.named_parameters())
    for name, (fan_in, fan_out) in growth.items():
        if abs(math.log(fan_in)) > abs(math.log(fan_out)):
            parameters[name].mul_(math.sqrt(fan_out / fan_in))
        bias = parameters.get(name.removesuffix("weight") + "bias")
        if bias is not None:
            bias.mul_(math.sqrt(fan_in))


def fan_growth(model: nn.Module, spec: CellSpec) -> dict[str, tuple[float, float]]:
    """For every matrix of the model, how fan-in and fan-out compare with those at w_base: name -> (r_in, r_out).

    A matrix is (..., fan_out, fan_in). Embedding tables are none (a row of theirs is an input), nor is a tensor
    with 'bias' or 'norm' in its name, which may have two axes where a model packs several vectors into one.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        base = model.from_spec(dataclasses.replace(spec, width=spec.base_width))
    base_shapes = {name: p.shape for name, p in base.named_parameters()}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    growth = {}
    for name, parameter in model.named_parameters():
        vector = id(parameter) in tables or "bias" in name or "norm" in name
        if parameter.dim() >= 2 and not vector:
            fan_out, fan_in = base_shapes[name][-2:]
            growth[name] = (parameter.shape[-1] / fan_in, parameter.shape[-2] / fan_out)
    return growth
