"""Angular functions of GemNet-OC: Legendre functions and spherical harmonics by recurrence, dihedral harmonics."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _norm(degree: int, order: int) -> float:
    """sqrt((2 l + 1) / 4 pi (l - m)! / (l + m)!)."""
    ratio = math.factorial(degree - order) / math.factorial(degree + order)
    return math.sqrt((2 * degree + 1) / (4 * math.pi) * ratio)


def harmonics(unit: Tensor, count: int) -> Tensor:
    """Real spherical harmonics l < count of unit vectors (E, 3): (E, count^2), l by l, m = -l ... l.

    Scaled so that the sum over m of Y_lm(u) Y_lm(v) is Y_l0 of the angle between u and v. Homogeneous polynomials:
    at a zero vector, which has no direction, all with l > 0 vanish.
    """
    x, y, z = unit.unbind(1)
    square = (unit * unit).sum(1)
    columns: dict[tuple[int, int], Tensor] = {}
    real, imaginary = torch.ones_like(z), torch.zeros_like(z)  # of (x + i y)^m
    for m in range(count):
        below, polar = torch.zeros_like(z), torch.full_like(z, math.prod(range(1, 2 * m, 2)))
        for l in range(m, count):
            scale = math.sqrt((2 if m else 1) * math.sqrt(4 * math.pi / (2 * l + 1))) * _norm(l, m)
            scaled = scale * polar  # P_lm without sin^m
            columns[l, m] = scaled * real
            if m:
                columns[l, -m] = scaled * imaginary
            ahead = ((2 * l + 1) * z * polar - (l + m) * square * below) / (l - m + 1)
            below, polar = polar, ahead
        real, imaginary = real * x - imaginary * y, real * y + imaginary * x
    return torch.stack([columns[l, m] for l in range(count) for m in range(-l, l + 1)], 1)


def own_weights(count: int) -> list[float]:
    """Y_l0 of an edge's angle with itself."""
    return [_norm(l, 0) for l in range(count)]


def legendre(z: Tensor, count: int) -> Tensor:
    """Y_l0(z) for l < count: (...) -> (..., count)."""
    values = [torch.ones_like(z), z]
    for l in range(2, count):
        values.append(((2 * l - 1) * z * values[-1] - (l - 1) * values[-2]) / l)
    return torch.stack([v * _norm(l, 0) for l, v in enumerate(values[:count])], -1)


def associated_legendre(z: Tensor, count: int) -> list[Tensor]:
    """Polar parts of the real spherical harmonics, by order m < count: (...) -> [(..., count - m), ...].

    Entry m holds l = m ... count - 1: P_lm(z) without the Condon-Shortley sign, normalised, times sqrt(2) for
    m > 0 where cos(m w) or sin(m w) multiplies it.
    """
    sine = (1 - z * z).clamp(min=0)
    sine = torch.where(sine > 0, sine, 1).sqrt() * (sine > 0)  # sqrt whose gradient at 0 is 0
    diagonal, parts = torch.ones_like(z), []
    for m in range(count):
        column = [diagonal]
        if m + 1 < count:
            column.append((2 * m + 1) * z * diagonal)
        for l in range(m + 2, count):
            column.append(((2 * l - 1) * z * column[-1] - (l + m - 1) * column[-2]) / (l - m))
        factor = math.sqrt(2) if m else 1.0
        parts.append(torch.stack([factor * _norm(m + i, m) * v for i, v in enumerate(column)], -1))
        diagonal = (2 * m + 1) * sine * diagonal
    return parts


def dihedral_harmonics(x: Tensor, y: Tensor, count: int, eps: float = 1e-5) -> list[Tensor]:
    """cos(m w), m < count, then sin(m w), 0 < m < count, of the angle w in [0, pi] with tan w = |y| / x.

    Where three atoms are in line, x = y = 0 and no dihedral angle exists; ``eps`` makes all terms with m > 0
    fade to 0 there instead of following rounding errors.
    """
    length = (x * x + y * y + eps * eps).sqrt()
    cosine, sine = x / length, y.abs() / length
    cosines, sines = [torch.ones_like(x), cosine], [sine]
    for _ in range(2, count):
        c, s = cosines[-1], sines[-1]
        cosines.append(c * cosine - s * sine)
        sines.append(s * cosine + c * sine)
    return cosines[:count] + sines[: count - 1]
