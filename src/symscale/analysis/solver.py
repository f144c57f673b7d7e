"""Batched robust fit of log L to a sum of power laws: one solver for every law of the paper.

    log L_hat = log( sum_k exp(c_k - g_k x_k)  [+ E] ),     x_k = log N, log D, log C ... (centred)

Eq. (5) has two terms (x = log N, log D), eqs. (4) and (24) have one. The objective is the *sum* over points of
w_i Huber_delta(log L_hat - log L): with a mean, default tolerances stop an optimiser far above the optimum.
R problems that share x (bootstrap resamples as weights, simulated losses as rows of y) are advanced together
by Levenberg-Marquardt, which costs a few batched matrix products per iteration and no Python per resample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EXPONENT_BOUNDS = (1e-3, 6.0)
CHUNK = 128  # problems advanced together: J of (128, 5, 250) doubles stays in the cache


@dataclass(frozen=True)
class Solution:
    """R solved problems: theta (R, P) as [c_1, g_1, ..., c_T, g_T(, E)], objective (R,), converged (R,),
    moved (R,) False where the search never left its start, at_bound (R, P)."""

    theta: np.ndarray
    objective: np.ndarray
    converged: np.ndarray
    moved: np.ndarray
    at_bound: np.ndarray


def huber(r: np.ndarray, delta: float) -> np.ndarray:
    """Huber's loss: r^2/2 inside delta, delta (|r| - delta/2) outside."""
    a = np.abs(r)
    return np.where(a <= delta, 0.5 * r * r, delta * (a - 0.5 * delta))


def predict(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """log L_hat (..., n) for theta (..., P) and covariates x (T, n); P = 2T, or 2T + 1 with a constant."""
    return _model(np.atleast_2d(theta), x)[0].reshape(np.shape(theta)[:-1] + x.shape[-1:])


def _model(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L_hat (R, n) and the Jacobian J (R, P, n)."""
    terms, n = x.shape
    rows, size = theta.shape
    t = theta[:, 0 : 2 * terms : 2, None] - theta[:, 1 : 2 * terms : 2, None] * x  # (R, T, n)
    free = size > 2 * terms
    if t.shape[1] == 1 and not free:
        f, share = t[:, 0], np.ones_like(t)
    else:
        top = t.max(axis=1)
        share = np.exp(t - top[:, None])
        total = share.sum(axis=1)
        if (
            free
        ):  # E itself is the parameter: its bound 0 is then one step away, its logarithm would creep for ever
            total += theta[:, -1, None] * np.exp(-top)
        f = top + np.log(total)
        share /= total[:, None]
    jac = np.empty((rows, size, n))
    jac[:, 0 : 2 * terms : 2] = share
    jac[:, 1 : 2 * terms : 2] = -share * x
    if free:
        jac[:, -1] = np.exp(-f)
    return f, jac


def bounds(y: np.ndarray, terms: int, free: bool) -> tuple[np.ndarray, np.ndarray]:
    """Box of theta: exponents in EXPONENT_BOUNDS, 0 <= L_inf <= the smallest loss; in the middle of the points no
    term is below e^-12 of the smallest loss (there it has vanished) or above e^6 times the largest."""
    low = np.tile([y.min() - 12.0, EXPONENT_BOUNDS[0]], terms)
    high = np.tile([y.max() + 6.0, EXPONENT_BOUNDS[1]], terms)
    if free:
        low, high = np.append(low, 0.0), np.append(high, np.exp(y.min()))
    return low, high


def solve(
    x: np.ndarray,
    y: np.ndarray,
    theta: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    delta: float = 1e-3,
    tolerance: float = 1e-10,
    max_iterations: int = 400,
) -> Solution:
    """Minimise sum_i w_i Huber(log L_hat_i - y_i) from every start.

    x (T, n) covariates, y (n,) or (R, n) log losses, theta (R, P) starts, weights (R, n) or None.
    Stops a problem when a full step moves no parameter by more than `tolerance` (relative to 1 + |theta|).
    """
    x, theta = np.atleast_2d(x), np.array(theta, dtype=float, ndmin=2)
    low, high = bounds(np.asarray(y), len(x), theta.shape[1] % 2 == 1)
    parts = []
    for first in range(0, len(theta), CHUNK):
        part = slice(first, first + CHUNK)
        parts.append(
            _solve_chunk(
                x,
                y[part] if y.ndim == 2 else y[None],
                np.clip(theta[part], low, high),
                np.ones((1, 1)) if weights is None else weights[part],
                delta,
                tolerance,
                max_iterations,
                (low, high),
            )
        )
    columns = [np.concatenate(c) for c in zip(*parts, strict=True)]
    at_bound = (columns[0] <= low) | (columns[0] >= high)
    return Solution(*columns, at_bound)


def _solve_chunk(x, y, theta, weights, delta, tolerance, max_iterations, box):
    """Levenberg-Marquardt on one chunk; problems that have converged leave the working set."""
    low, high = box
    rows, size = theta.shape
    y, weights = np.broadcast_to(y, (rows, y.shape[-1])), np.broadcast_to(weights, (rows, y.shape[-1]))
    start, out = theta.copy(), theta.copy()
    best, done = np.empty(rows), np.zeros(rows, dtype=bool)
    live = np.arange(rows)
    f, jac = _model(theta, x)
    r = f - y
    value = (weights * huber(r, delta)).sum(axis=1)
    best[:] = value
    damping = np.full(rows, 1e-3)
    for _ in range(max_iterations):
        a = np.abs(r)
        scale = weights * np.minimum(1.0, delta / np.maximum(a, delta))  # psi(r) / r
        gradient = np.matmul(jac, (scale * r)[:, :, None])[:, :, 0]
        # Curvature: between the exact one (zero outside delta, fast near the end, may be singular) and the
        # majorising one (psi/r, always descends); the damping decides which.
        mix = np.minimum(1.0, damping * 10.0)[:, None]
        hessian = np.matmul(jac * np.where(a <= delta, weights, mix * scale)[:, None, :], jac.swapaxes(1, 2))
        majorant = np.einsum("rpn,rpn,rn->rp", jac, jac, scale)
        stuck = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
        gradient = np.where(stuck, 0.0, gradient)
        hessian = np.where(stuck[:, :, None] | stuck[:, None, :], 0.0, hessian)
        diagonal = np.einsum("rpp->rp", hessian)  # a view
        diagonal += damping[:, None] * majorant + 1e-300 + np.where(stuck, 1.0, 0.0)
        diagonal *= 1 + 1e-13
        step = -np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        trial = np.clip(theta + step, low, high)
        change = np.abs(trial - theta) / (1 + np.abs(theta))
        if size % 2:
            change[:, -1] = np.abs(trial - theta)[:, -1] / high[-1]
        moved = np.max(change, axis=1)
        f_trial, jac_trial = _model(trial, x)
        r_trial = f_trial - y
        value_trial = (weights * huber(r_trial, delta)).sum(axis=1)
        better = value_trial <= value
        theta = np.where(better[:, None], trial, theta)
        value = np.where(better, value_trial, value)
        r = np.where(better[:, None], r_trial, r)
        jac = np.where(better[:, None, None], jac_trial, jac)
        damping = np.clip(np.where(better, damping * 0.2, damping * 6.0), 1e-9, 1e12)
        finished = (moved < tolerance) | (damping >= 1e12)
        out[live], best[live] = theta, value
        done[live] = finished
        if finished.any():
            keep = ~finished
            live, theta, value, damping = live[keep], theta[keep], value[keep], damping[keep]
            r, jac, y, weights = r[keep], jac[keep], y[keep], weights[keep]
            if not len(live):
                break
    return out, best, done, np.any(out != start, axis=1)
