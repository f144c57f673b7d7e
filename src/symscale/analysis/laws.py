"""Fits of the paper's laws: start by variable projection, robust search from centred logs, natural parameters.

    sum    L = E + A N^-alpha + B D^-beta          eq. (5), x = (N, D)
    power  L = E + F X^-gamma                      eqs. (4) and (24), x = (C), (H) or (N)
E is the irreducible loss L_inf, zero unless asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from symscale.analysis.solver import EXPONENT_BOUNDS, predict, solve
from symscale.errors import UserError

LEAST_SQUARES = 1e3  # a Huber threshold that no residual of log L reaches
NAMES = {"sum": ("A", "alpha", "B", "beta"), "power": ("F", "gamma")}
_GRID = np.geomspace(0.02, 2.5, 28)
STARTS = 8


@dataclass(frozen=True)
class Fit:
    """A fitted law. theta and centre are the search's own centred coordinates, x (T, n) the centred logs;
    params the natural values (E last, 0 where it was not fitted or vanished)."""

    law: str
    params: dict[str, float]
    theta: np.ndarray
    centre: np.ndarray
    x: np.ndarray
    y: np.ndarray
    free: bool
    delta: float
    objective: float
    words: tuple[str, ...]
    degenerate: bool  # a factor or exponent ended at a bound: its value means nothing

    @property
    def residuals(self) -> np.ndarray:
        """log L - log L_hat, (n,)."""
        return self.y - predict(self.theta, self.x)

    def loss(self, *values) -> np.ndarray:
        """L_hat at N, D (sum) or X (power), broadcast against each other."""
        return evaluate(self.params, *values)


def evaluate(params: dict, *values) -> np.ndarray:
    """L_hat of natural parameters (numbers, or draws that broadcast against the values)."""
    names = NAMES["sum" if len(values) == 2 else "power"]
    total = params.get("E", 0.0)
    for k, value in enumerate(values):
        total = total + params[names[2 * k]] * np.asarray(value, float) ** -params[names[2 * k + 1]]
    return total


def natural(law: str, theta: np.ndarray, centre: np.ndarray) -> dict[str, np.ndarray]:
    """Natural parameters of centred theta (..., P)."""
    out = {}
    for k in range(len(centre)):
        c, g = theta[..., 2 * k], theta[..., 2 * k + 1]
        out[NAMES[law][2 * k]], out[NAMES[law][2 * k + 1]] = np.exp(c + g * centre[k]), g
    out["E"] = theta[..., -1] if theta.shape[-1] % 2 else np.zeros_like(theta[..., 0])
    return out


def log_columns(
    law: str, columns: list[np.ndarray], loss: np.ndarray, free: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Logs x (T, n), y (n,). Raises UserError for values without a logarithm and for too few points."""
    n_params = len(NAMES[law]) + free
    for name, values in zip((*("x1", "x2")[: len(columns)], "loss"), (*columns, loss), strict=True):
        bad = ~(np.isfinite(values) & (np.asarray(values) > 0))
        if bad.any():
            raise UserError(
                f"{law} law: {int(bad.sum())} values of {name} are not finite and positive "
                f"(first at row {int(np.argmax(bad))}); a power law has no logarithm there"
            )
    if len(loss) <= n_params:
        raise UserError(
            f"{law} law: {len(loss)} points for {n_params} parameters; needs at least {n_params + 1}"
        )
    for name, values in zip(("N", "D") if law == "sum" else ("x",), columns, strict=True):
        if np.ptp(np.log(values)) < 1e-9:
            raise UserError(
                f"{law} law: all points have one {name} ({values[0]:.6g}); its exponent needs two"
            )
    return np.log(np.stack([np.asarray(c, float) for c in columns])), np.log(np.asarray(loss, float))


def fit(
    law: str,
    columns: list[np.ndarray],
    loss: np.ndarray,
    *,
    free: bool = False,
    delta: float = 1e-3,
    starts: int = STARTS,
) -> Fit:
    """Fit one law to loss (n,) over columns (N, D) or (X,), E >= 0 too where `free`.

    Raises UserError for input that cannot be fitted.
    """
    x, y = log_columns(law, columns, loss, free)
    centre = x.mean(axis=1)
    x = x - centre[:, None]
    begin = varpro_starts(x, y, free, starts)
    if free:  # L_inf = 0 is tried as well
        plain = varpro_starts(x, y, False, starts)
        begin = np.concatenate([begin, np.column_stack([plain, np.zeros(len(plain))])])
    solution = solve(x, y, begin, delta=delta, tolerance=1e-12, max_iterations=1000)
    start = int(np.argmin(solution.objective))
    theta = solution.theta[start]
    if free and theta[-1] < 1e-9 * np.exp(y.min()):  # rounding
        theta[-1], solution.at_bound[start, -1] = 0.0, True
    words = search_words(law, solution, start, free)
    params = {name: float(v) for name, v in natural(law, theta, centre).items()}
    degenerate = bool(solution.at_bound[start, : 2 * len(x)].any())
    objective = float(solution.objective[start])
    return Fit(law, params, theta, centre, x, y, free, delta, objective, tuple(words), degenerate)


def search_words(law: str, solution, k: int, free: bool) -> list[str]:
    """What a reader must know about the search itself."""
    words = []
    if not solution.moved[k]:
        words.append("stuck at start: the search did not improve on its first guess")
    if not solution.converged[k]:
        words.append("not converged: the iteration limit was reached")
    for j, name in enumerate(NAMES[law]):
        if solution.at_bound[k, j]:
            bound = f"a bound of its range {EXPONENT_BOUNDS}: not determined by these points"
            if j % 2 == 0:
                bound = "its bound: the term vanished, the losses do not fall with it"
            words.append(f"{name} is at {bound}")
    if free and solution.at_bound[k, -1]:
        bound = "0: the points ask for no irreducible loss"
        if solution.theta[k, -1] > 0:
            bound = "the smallest loss: not determined by these points"
        words.append(f"L_inf is at its bound, {bound}")
    return words


def varpro_starts(x: np.ndarray, y: np.ndarray, constant: bool, count: int) -> np.ndarray:
    """Starts (count, P) by variable projection: a grid over the exponents, coefficients solved linearly.

    For fixed exponents L is linear in A, B, E; relative least squares sum (L_hat/L - 1)^2 stands in for the
    objective. The best cells that are no neighbours of a better one are the starts.
    """
    terms = len(x)
    scaled = np.exp(-y)  # 1/L
    columns = [np.exp(-_GRID[:, None] * x[k]) * scaled for k in range(terms)]  # (g, n) each
    shape = (len(_GRID),) * terms
    basis = [
        c[(slice(None),) + (None,) * (terms - 1 - k)] if k == 0 else c[None] for k, c in enumerate(columns)
    ]
    basis = [np.broadcast_to(b, (*shape, len(y))) for b in basis]
    if constant:
        basis.append(np.broadcast_to(scaled, (*shape, len(y))))
    z = np.stack(basis, axis=-2)  # (*shape, K, n)
    gram = z @ z.swapaxes(-1, -2)  # (*shape, K, K)
    right = z.sum(axis=-1)  # (*shape, K)
    trace = np.trace(gram, axis1=-2, axis2=-1)[..., None, None]
    coefficients = np.linalg.solve(gram + 1e-10 * trace * np.eye(len(basis)), right[..., None])[..., 0]
    size = right / np.einsum("...kk->...k", gram)  # each term alone
    coefficients = np.maximum(coefficients, 1e-3 * size)  # a loss is a sum of positive parts
    rss = np.einsum("...k,...kl,...l->...", coefficients, gram, coefficients)
    rss = rss - 2 * np.einsum("...k,...k->...", coefficients, right)  # + n
    chosen: list[tuple] = []
    for flat in np.argsort(rss, axis=None):
        cell = np.unravel_index(flat, shape)
        if all(max(abs(i - j) for i, j in zip(cell, other, strict=True)) > 1 for other in chosen):
            chosen.append(cell)
        if len(chosen) == count:
            break
    starts = []
    for cell in chosen:
        theta = [v for k in range(terms) for v in (np.log(coefficients[cell][k]), _GRID[cell[k]])]
        starts.append([*theta, coefficients[cell][-1]] if constant else theta)
    return np.array(starts)
