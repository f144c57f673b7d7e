"""Rotation equivariance around any model: frame averaging (Puny et al. 2022), canonicalisation (Kaba et al. 2023).

A frame is a proper rotation U (3, 3) whose columns turn with the molecule. The model sees U^T (x - t), t the
centroid, and its forces are turned back by U. All frames are proper: a mirror image is shown as a mirror image.

No such U exists for a molecule that a rotation maps onto itself; what then holds is in docs/architecture.md.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from symscale.cells import CellSpec
from symscale.data.batch import Batch
from symscale.models.common import GaussianRBF, edge_vectors, graph_sum, polynomial_envelope, scatter_mean
from symscale.symmetry import turn

SIGNS = ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))  # of the axes, so that the frame stays proper
SWEEPS = 5  # of Jacobi's method; 3 x 3 matrices are diagonal to rounding after 4
# A nearly symmetric molecule has a frame that turns by 1 / (its asymmetry) times a displacement: without a bound, one
# such molecule would outweigh a batch of others. Below this asymmetry the frame is a constant to derivatives.
STEADY = 1e-3
UNDETERMINED = 1e-6  # a vector this short, relative to the terms of its sum, has no direction


def centred(data: Batch) -> Tensor:
    """Positions less the centroid of their molecule, (N, 3)."""
    centroid = scatter_mean(data.pos, data.batch, data.num_graphs)  # (G, 3)
    return data.pos - centroid.index_select(0, data.batch)


def in_frame(model: nn.Module, data: Batch, x: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (G,) and forces (N, 3) of a model that sees x (N, 3) in the frames (G, 3, 3)."""
    energy, forces = model(dataclasses.replace(data, pos=turn(x, frame.transpose(1, 2), data)))
    return energy, turn(forces, frame, data)


@torch.no_grad()
def jacobi(matrix: Tensor) -> Tensor:
    """Eigenvectors of symmetric matrices (G, 3, 3), as columns by ascending eigenvalue, with determinant 1.

    ``torch.linalg.eigh`` would make the host wait for a GPU. Of repeated eigenvalues some basis comes out.
    """
    a = matrix.detach()
    v = torch.eye(3, dtype=a.dtype, device=a.device).expand_as(a)
    for _ in range(SWEEPS):
        for p, q in ((0, 1), (0, 2), (1, 2)):
            off = a[:, p, q]
            tau = (a[:, q, q] - a[:, p, p]) / (2 * off.masked_fill(off == 0, 1.0))
            t = torch.where(tau >= 0, 1.0, -1.0) / (tau.abs() + (1 + tau.square()).sqrt())  # tan of the angle
            t = t.masked_fill(off == 0, 0.0)
            c = (1 + t.square()).rsqrt()
            givens = torch.eye(3, dtype=a.dtype, device=a.device).repeat(a.shape[0], 1, 1)
            givens[:, p, p] = givens[:, q, q] = c
            givens[:, p, q], givens[:, q, p] = t * c, -t * c
            a = givens.transpose(1, 2) @ a @ givens
            v = v @ givens
    order = a.diagonal(dim1=1, dim2=2).argsort(dim=1)  # (G, 3)
    v = v.gather(2, order[:, None].expand_as(v))
    handed = (torch.linalg.cross(v[:, :, 0], v[:, :, 1]) * v[:, :, 2]).sum(1, keepdim=True).sign()  # (G, 1)
    return torch.cat([v[:, :, :2], v[:, :, 2:] * handed[:, :, None]], 2)


def principal_frames(x: Tensor, data: Batch) -> Tensor:
    """Proper frames (G, 3, 3) of the principal axes of centred positions (N, 3), smallest extent first, in float64.

    Differentiable once by positions, by perturbation theory: d u_j = sum_i u_i (u_i dC u_j) / (lambda_j - lambda_i),
    without the terms whose eigenvalues agree to STEADY of their sum.
    """
    x = x.double()
    with torch.autocast(x.device.type, enabled=False):
        covariance = graph_sum(x[:, :, None] * x[:, None, :], data)  # (G, 3, 3)
        axes = jacobi(covariance)
        if not covariance.requires_grad:
            return axes
        in_axes = axes.transpose(1, 2) @ covariance @ axes  # diagonal in value
        values = in_axes.detach().diagonal(dim1=1, dim2=2)  # (G, 3)
        gap = values[:, None, :] - values[:, :, None]  # lambda_j - lambda_i
        size = values[:, None, :] + values[:, :, None] + 1e-7 * values.amax(1)[:, None, None]
        close = gap.abs() <= STEADY * size
        mixing = (in_axes - in_axes.detach()) / gap.masked_fill(close, 1.0)
        return axes + axes @ mixing.masked_fill(close, 0.0)


class FrameAverage(nn.Module):
    """Average of ``model`` over the four proper frames of a molecule's principal axes; costs four forward passes.

    f(x) = 1/4 sum_k U_k phi(U_k^T (x - t)), U_k = [+-u_1, +-u_2, +-u_3] with determinant 1 (Puny et al. 2022,
    SO(3)). Exact where the three principal moments differ, and for atoms in line; ``signs`` is for tests.
    """

    rotation_equivariant = True
    translation_invariant = True

    def __init__(self, model: nn.Module, signs: tuple[tuple[int, int, int], ...] = SIGNS):
        super().__init__()
        self.model, self.symmetric_edges = model, model.symmetric_edges
        self.register_buffer("signs", torch.tensor(signs, dtype=torch.float64), persistent=False)

    def from_spec(self, spec: CellSpec) -> FrameAverage:
        """The same around the same model at another spec."""
        return FrameAverage(self.model.from_spec(spec))

    def forward(self, data: Batch) -> tuple[Tensor, Tensor]:
        """Energies (G,) and forces (N, 3), both normalised."""
        x = centred(data)
        axes = principal_frames(x, data)  # (G, 3, 3)
        poses = [in_frame(self.model, data, x, axes * signs.double()) for signs in self.signs]
        energy, forces = (sum(parts) / len(poses) for parts in zip(*poses, strict=True))
        return energy, forces

    def calibrate(self, batches) -> None:
        """That of the model, where it has one."""
        if hasattr(self.model, "calibrate"):
            self.model.calibrate(batches)


class InvariantLayer(nn.Module):
    """h + MLP(mean over neighbours of h_u times a filter of the distance)."""

    def __init__(self, width: int, num_radial: int):
        super().__init__()
        self.filter = nn.Linear(num_radial, width)
        self.update = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, rbf: Tensor, envelope: Tensor, data: Batch) -> Tensor:
        src, dst = data.edge_index
        m = h.index_select(0, src) * self.filter(rbf) * envelope  # (E, c)
        return h + self.update(scatter_mean(m, dst, h.shape[0]))  # (N, c)


class Canonicaliser(nn.Module):
    """A frame from a small invariant network: two vectors sum_v s_v (x_v - t), orthonormalised, and their product.

    The weights s_v depend on distances and species alone, so that the vectors turn with the molecule and the frame
    does too. A vector that symmetry makes vanish is replaced by a fixed one.
    """

    def __init__(self, *, width: int = 32, depth: int = 2, cutoff: float = 6.0, num_radial: int = 16):
        super().__init__()
        self.cutoff = cutoff
        self.rbf = GaussianRBF(num_radial, cutoff)
        self.embedding = nn.Embedding(100, width)
        self.layers = nn.ModuleList(InvariantLayer(width, num_radial) for _ in range(depth))
        self.head = nn.Linear(width, 2, bias=False)  # a constant weight sums to nothing

    def forward(self, data: Batch, x: Tensor) -> Tensor:
        """Proper frames (G, 3, 3) from a batch and its centred positions (N, 3)."""
        _, d = edge_vectors(data)
        rbf, envelope = self.rbf(d), polynomial_envelope(d, self.cutoff)[:, None]
        h = self.embedding(data.z)
        for layer in self.layers:
            h = layer(h, rbf, envelope, data)
        terms = self.head(F.silu(h)).to(x.dtype)[:, :, None] * x[:, None]  # (N, 2, 3)
        first, second = graph_sum(terms, data).unbind(1)  # (G, 3) each
        size = graph_sum(terms.detach().square().sum(2).sqrt(), data)[:, :, None]  # (G, 2, 1)

        e1 = direction(first, size[:, 0], F.one_hot(torch.zeros_like(data.z[:1]), 3))
        across = F.one_hot(e1.detach().abs().argmin(1), 3).to(x.dtype)  # (G, 3), the axis least along e1
        e2 = direction(without(second, e1), size[:, 1], without(across, e1.detach()))
        return torch.stack([e1, e2, torch.linalg.cross(e1, e2)], 2)


def without(v: Tensor, unit: Tensor) -> Tensor:
    """The part of v (G, 3) that is perpendicular to the unit vectors."""
    return v - (v * unit).sum(1, keepdim=True) * unit


def direction(v: Tensor, size: Tensor, otherwise: Tensor) -> Tensor:
    """v / |v|, (G, 3), a constant to derivatives where |v| is small against ``size`` (G, 1); if 0, ``otherwise``."""
    share = v.detach().square().sum(1, keepdim=True).sqrt() / size.clamp(min=torch.finfo(size.dtype).tiny)
    v = torch.where(share > STEADY, v, torch.where(share > UNDETERMINED, v.detach(), otherwise.to(v.dtype)))
    return v / v.square().sum(1, keepdim=True).sqrt()


class Canonicalised(nn.Module):
    """``model`` on molecules turned into a learned frame (Kaba et al. 2023); costs one forward pass of each."""

    rotation_equivariant = True
    translation_invariant = True

    def __init__(self, model: nn.Module, canonicaliser: Canonicaliser):
        super().__init__()
        self.model, self.symmetric_edges = model, model.symmetric_edges
        self.canonicaliser = canonicaliser

    def from_spec(self, spec: CellSpec) -> Canonicalised:
        """The same around the same model at another spec."""
        return Canonicalised(self.model.from_spec(spec), canonicaliser_of(spec))

    def forward(self, data: Batch) -> tuple[Tensor, Tensor]:
        """Energies (G,) and forces (N, 3), both normalised."""
        x = centred(data)
        return in_frame(self.model, data, x, self.canonicaliser(data, x))

    def calibrate(self, batches) -> None:
        """That of the model, where it has one."""
        if hasattr(self.model, "calibrate"):
            self.model.calibrate(batches)


def canonicaliser_of(spec: CellSpec) -> Canonicaliser:
    """Its size does not grow with the model's; ``options: {canonicaliser: 64}`` sets its width."""
    return Canonicaliser(width=spec.option("canonicaliser", 32), cutoff=spec.cutoff)


def equivariant(spec: CellSpec, model: nn.Module) -> nn.Module:
    """The model, or what ``spec.equivariant_by`` puts around it."""
    if spec.equivariant_by == "frames":
        return FrameAverage(model)
    if spec.equivariant_by == "canonical":
        return Canonicalised(model, canonicaliser_of(spec))
    return model
