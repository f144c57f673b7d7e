"""Learning rates across widths, in one place (section 3.3, 'Infinite-Width Scaling')."""

from __future__ import annotations

from torch import nn

from symscale.cells import CellSpec


def width_rate(spec: CellSpec) -> float:
    """eta(w) = eta* w_base / w."""
    return spec.lr * spec.base_width / spec.width


def parameter_groups(model: nn.Module, spec: CellSpec) -> list[dict]:
    """Optimiser groups with their learning rates.

    'width' is the paper's rule, eta(w) for everything; 'none' is eta* for everything; 'parameter' keeps eta* for
    what does not grow with the width on its input side (embeddings, biases, norms, first layers) and uses
    eta(w) for the rest (Yang et al. 2021, Adam column of their Table 8).
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if spec.mup == "width":
        return [{"params": [p for _, p in trainable], "lr": width_rate(spec)}]
    if spec.mup == "none":
        return [{"params": [p for _, p in trainable], "lr": spec.lr}]
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    # fan-in of a matrix is its last axis; one that is far from the width (edge vectors, radial functions) is fixed
    grows = [p.dim() >= 2 and id(p) not in embeddings and p.shape[-1] >= spec.width for _, p in trainable]
    hidden = [p for (_, p), g in zip(trainable, grows, strict=True) if g]
    fixed = [p for (_, p), g in zip(trainable, grows, strict=True) if not g]
    return [{"params": hidden, "lr": width_rate(spec)}, {"params": fixed, "lr": spec.lr}]
