"""The architectures by name. A new one is a file here and a line in MODELS."""

from __future__ import annotations

import torch
from torch import nn

from symscale.cells import CellSpec
from symscale.errors import UserError
from symscale.models.conservative import Conservative
from symscale.models.egnn import EGNN
from symscale.models.esen import ESEN
from symscale.models.frames import equivariant
from symscale.models.gemnet import GemNetOC
from symscale.models.mpnn import MPNN
from symscale.models.transformer import Transformer
from symscale.mup import initialise

MODELS: dict[str, type[nn.Module]] = {
    "mpnn": MPNN,
    "egnn": EGNN,
    "gemnet": GemNetOC,
    "esen": ESEN,
    "transformer": Transformer,
}


def model_class(spec: CellSpec) -> type[nn.Module]:
    """The class behind ``spec.arch``. Raises UserError for one that is not in MODELS."""
    if spec.arch not in MODELS:
        raise UserError(
            f"no model for architecture '{spec.arch}'; symscale.models.MODELS has {', '.join(MODELS)}"
        )
    return MODELS[spec.arch]


def build_model(spec: CellSpec) -> nn.Module:
    """The model of a cell, its weights drawn from ``spec.seed`` alone. Raises UserError for an unknown arch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = equivariant(spec, model_class(spec).from_spec(spec))
        if spec.conservative:
            model = Conservative(model)
    initialise(model, spec)
    return model
