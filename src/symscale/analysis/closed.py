"""Closed forms of section 4.3: best N and D for a budget, and the frontier that a sum law implies.

Minimise A N^-alpha + B D^-beta subject to X = xi N^p D. For compute xi = 3 kappa and p = 1 (eqs. 6, 7); for
device-hours xi and p come from a regression, p < 1 where larger models use the device better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from symscale.errors import UserError


@dataclass(frozen=True)
class Cost:
    """X = xi N^p D: xi in units of X (C: PFLOP; H: device-hours); drift is the measured exponent of N in X/(N D),
    spread the standard deviation of log X about the law."""

    xi: float
    p: float
    drift: float
    spread: float

    @property
    def kappa(self) -> float:
        """Forward FLOPs per parameter per atom (eq. 3), where X is compute in PFLOP and p = 1."""
        return self.xi * 1e15 / 3


@dataclass(frozen=True)
class Allocation:
    """Compute-optimal allocation of a sum law under a cost. Parameters may be arrays (draws)."""

    params: dict
    cost: Cost

    @property
    def a(self):
        """N* ~ X^a; a = beta/(alpha + beta) at p = 1."""
        return self.params["beta"] / (self.params["alpha"] + self.cost.p * self.params["beta"])

    @property
    def b(self):
        """D* ~ X^b; b = alpha/(alpha + beta) at p = 1."""
        return 1 - self.cost.p * self.a

    @property
    def gamma(self):
        """Exponent of the frontier, alpha beta/(alpha + p beta)."""
        return self.params["alpha"] * self.a

    @property
    def log_G(self):
        """Logarithm of G: exponents near 0 put G itself out of range, but not the losses."""
        q = self.params
        ratio = np.log(q["alpha"] * q["A"]) - np.log(self.cost.p * q["beta"] * q["B"])
        return ratio / (q["alpha"] + self.cost.p * q["beta"])

    @property
    def G(self):
        """N* = G (X/xi)^a, G = (alpha A/(p beta B))^(1/(alpha + p beta))."""
        return np.exp(self.log_G)

    @property
    def F(self):
        """L* - E = F X^-gamma, F = (A G^-alpha + B G^(p beta)) xi^gamma."""
        q = self.params
        parts = (
            np.log(q["A"]) - q["alpha"] * self.log_G,
            np.log(q["B"]) + self.cost.p * q["beta"] * self.log_G,
        )
        return np.exp(np.logaddexp(*parts) + self.gamma * np.log(self.cost.xi))

    def optimum(self, budget) -> tuple[np.ndarray, np.ndarray]:
        """N*, D* for budgets in the cost's unit."""
        reach = np.log(np.asarray(budget, float) / self.cost.xi)
        n = self.log_G + reach * self.a
        return np.exp(n), np.exp(reach - self.cost.p * n)

    def loss(self, budget) -> np.ndarray:
        """L* for budgets."""
        return self.params.get("E", 0.0) + self.F * np.asarray(budget, float) ** -self.gamma


def fit_cost(points: pd.DataFrame, x: str = "C", fixed_p: float | None = 1.0) -> Cost:
    """Regress log X on log N D (eq. 3): every run counts alike, whatever its length.

    With fixed_p = 1, xi is the geometric mean of X/(N D) and kappa = xi/3; `drift` reports what that leaves out.
    With None, p is fitted. Raises UserError where x is missing or not positive.
    """
    if x not in points or not (np.isfinite(points[x]) & (points[x] > 0)).all():
        raise UserError(f"cost: column {x} must be there, finite and positive")
    log = np.log(points[["N", "D", x]].astype(float)).groupby(points["run"]).mean()
    n, ratio = log["N"].to_numpy(), (log[x] - log["N"] - log["D"]).to_numpy()
    centred = n - n.mean()
    wide = np.ptp(n) > 1e-9
    drift = float((centred * ratio).sum() / (centred**2).sum()) if wide else 0.0
    p = 1 + drift if fixed_p is None else fixed_p
    level = float(np.mean(ratio - (p - 1) * n))
    left = np.log(points[x] / points["D"]) - p * np.log(points["N"]) - level
    return Cost(float(np.exp(level)), float(p), drift, float(left.std()))


def crossing(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Log of the budget at which two frontiers (F, gamma) meet; NaN for equal slopes. Draws as arrays too."""
    slope = np.asarray(first[1]) - second[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(slope != 0, (np.log(first[0]) - np.log(second[0])) / slope, np.nan)
