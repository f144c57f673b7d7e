"""Speed of the analysis: `python benchmarks/analysis.py [--fast]`. One core, one BLAS thread; CPU seconds.

1. 1000 run bootstraps of the sum law on 250 points: the batched search against scipy's least_squares-style
   minimiser (L-BFGS-B with analytic gradient, warm-started at the fit), both at the same optimum.
2. `symscale fit` on the same table, after imports; and on 250 points of nine, seven and three runs, where eight
   starts a resample and the jackknife come on top.
3. The whole analysis of the simulated paper sweep (48 runs, all fits, all intervals, comparisons, sensitivity).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import time
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize

from symscale.analysis import intervals as iv
from symscale.analysis.compare import across
from symscale.analysis.laws import fit
from symscale.analysis.points import at_fractions, canonical
from symscale.analysis.records import Options
from symscale.analysis.sensitivity import sensitivity
from symscale.analysis.simulate import paper_sweep, paper_truth, simulate
from symscale.analysis.solver import huber
from symscale.analysis.sweep import analyse
from symscale.analysis.table_fit import fit_table


def clock(work, repeats: int = 1):
    """Best CPU seconds of some repeats, and the last result."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result


def scipy_bootstrap(law, weights: np.ndarray) -> np.ndarray:
    """alpha of each resample by scipy, one resample at a time."""
    x1, x2 = law.x

    def objective(t, w):
        e = t[4]
        a, b = np.exp(t[0] - t[1] * x1), np.exp(t[2] - t[3] * x2)
        total = a + b + e
        r = np.log(total) - law.y
        slope = w * np.clip(r, -law.delta, law.delta) / total
        gradient = [slope @ a, -(slope * a) @ x1, slope @ b, -(slope * b) @ x2, slope.sum()]
        return (w * huber(r, law.delta)).sum() * 1e4, np.array(
            gradient
        ) * 1e4  # scaled: scipy stops on small values

    box = [(None, None), (1e-3, 6), (None, None), (1e-3, 6), (0, np.exp(law.y.min()))]
    options = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-9}
    return np.array(
        [
            minimize(
                objective, law.theta, args=(w,), jac=True, bounds=box, method="L-BFGS-B", options=options
            ).x[1]
            for w in weights
        ]
    )


def ladder_points(arch: str, rungs: int, count: int = 250):
    """Some `count` points of a few rungs of a published ladder, with an irreducible loss."""
    truth = paper_truth(arch)
    at = np.unique(np.round(np.linspace(0, len(truth.ladder) - 1, rungs)).astype(int))
    truth = replace(truth, ladder=tuple(truth.ladder[k] for k in at), params=truth.params | {"E": 0.05})
    points = simulate(truth, np.random.default_rng(0), validations=round(1.6 * count / rungs))
    points = canonical(points[points["fraction"] > 0.02])
    keep = np.sort(np.random.default_rng(1).permutation(len(points))[:count])
    return points.iloc[keep][["N", "D", "loss", "run"]].reset_index(drop=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fast", action="store_true", help="100 resamples and no whole sweep")
    count = 100 if (fast := parser.parse_args().fast) else 1000
    points = simulate(paper_truth("mpnn"), np.random.default_rng(0), validations=24)
    points = canonical(points[points["fraction"] > 0.02])
    keep = np.sort(np.random.default_rng(1).permutation(len(points))[:250])
    points = points.iloc[keep].reset_index(drop=True)
    N, runs = points["N"].to_numpy(), points["run"].to_numpy(str)
    law = fit("sum", [N, points["D"].to_numpy()], points["loss"].to_numpy() + 0.05, free=True)
    weights, _ = iv.run_weights(runs, N, count, np.random.default_rng(0))
    ours, draws = clock(lambda: iv.refit(law, weights=weights), 3)
    theirs, other = clock(lambda: scipy_bootstrap(law, weights))
    print(
        f"{count} run bootstraps of the 5-parameter sum law, {len(points)} points, {len(np.unique(runs))} runs"
    )
    print(f"  batched {ours:.3f} s; scipy, warm start {theirs:.2f} s; ratio {theirs / ours:.1f}")
    spread = np.std(draws["alpha"])
    print(f"  median |alpha - alpha_scipy| / sd = {np.median(np.abs(draws['alpha'] - other)) / spread:.1e}")
    table = points[["N", "D", "loss", "run"]]
    seconds, _ = clock(lambda: fit_table(table, "sum", n_bootstrap=count), 3)
    print(f"symscale fit, {count} bootstraps, {len(table)} points: {seconds:.2f} s after imports")
    for arch, rungs in (("mpnn", 9), ("esen", 7), ("mpnn", 3)):
        few = ladder_points(arch, rungs)
        seconds, _ = clock(lambda few=few: fit_table(few, "sum", n_bootstrap=count), 3)
        print(f"  the same of {rungs} runs ({arch}, {len(few)} points): {seconds:.2f} s")
    if fast:
        return
    sweep = paper_sweep(0, validations=100)
    options = Options()

    def everything():
        analyses, _ = analyse(sweep, options)
        return across(analyses, options), sensitivity(sweep, options)

    seconds, _ = clock(everything)
    fractions = len(at_fractions(sweep))
    print(
        f"whole simulated sweep (48 runs, {len(sweep)} points, {fractions} in the sum fits): {seconds:.1f} s"
    )


if __name__ == "__main__":
    main()
