"""Cells of a sweep whose curves are drawn from a law instead of trained: ordinary cell folders for what follows.

What the paper measured is drawn from its numbers (Table 7, Table 1). What it shows without numbers needs an
assumption, written here once: lower lmax tilts eSEN's exponents, symmetry loss leaves the law and costs M + 1
times the compute (section 4.4), repeats are worth less with every pass, augmentation makes them fresh (4.5),
a vanilla transformer stalls (appendix K). Nothing simulated says anything about real models.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd

from symscale import __version__
from symscale.analysis import paper
from symscale.analysis.intervals import generator
from symscale.analysis.points import PFLOP
from symscale.analysis.simulate import Noise, Truth, one_run, paper_truth
from symscale.cells import CellSpec, spec_dict, spec_hash
from symscale.curves import write_curve
from symscale.errors import UserError

LMAX_TILT = {1: 0.5, 2: 0.7, 3: 0.85}  # of eSEN's exponents, about the middle of its ladder
PIVOT = (1.5e6, 3e8)  # N, D at which a tilted law has the loss of the plain one
STALLED = {"transformer": 0.5}  # L_inf of an architecture that does not learn; otherwise MPNN's law
LAW_KEYS = {"A", "alpha", "B", "beta", "E", "kappa"}  # and "ladder": [[width, N], ...]
DEPTHS = {"mpnn": 5, "egnn": 12, "gemnet": 4, "esen": 12}


def parameters(arch: str, width: int, laws: dict | None = None) -> int:
    """N of a width: the ladder of the laws or the published one, or the power law between two of its rungs."""
    own = (laws or {}).get(arch, {}).get("ladder")
    ladder = np.array(own or paper.LADDERS.get(arch, paper.LADDERS["mpnn"]), float)
    exact = ladder[ladder[:, 0] == width]
    if len(exact):
        return int(exact[0, 1])
    w, n = np.log(ladder).T
    k = int(np.clip(np.searchsorted(w, math.log(width)), 1, len(w) - 1))
    slope = (n[k] - n[k - 1]) / (w[k] - w[k - 1])
    return round(math.exp(n[k] + slope * (math.log(width) - w[k])))


def truth_of(spec: CellSpec, laws: dict[str, dict], d_max: float) -> Truth:
    """The law and cost of a cell. laws: architecture -> A, alpha, B, beta, E, kappa and a ladder that replace the
    paper's."""
    base = paper_truth(spec.arch if spec.arch in paper.LADDERS else "mpnn")
    params, kappa = dict(base.params), base.kappa
    if spec.arch in laws:
        kappa = laws[spec.arch].get("kappa", kappa)
        params |= {k: v for k, v in laws[spec.arch].items() if k not in ("kappa", "ladder")}
    elif spec.arch in STALLED:
        params["E"] = STALLED[spec.arch]
    elif spec.arch not in paper.LADDERS:
        raise UserError(f"no law for '{spec.arch}': give one with --laws (paper: {', '.join(paper.LADDERS)})")
    if spec.arch == "esen" and spec.lmax in LMAX_TILT:
        params = tilted(params, LMAX_TILT[spec.lmax])
    unique = float("inf") if spec.augment else spec.data_fraction * d_max
    return dataclasses.replace(
        base,
        arch=spec.arch,
        params=params,
        kappa=kappa * (spec.symmetry_samples + 1),
        batch_size=spec.batch_size,
        hours_factor=spec.hours_factor,
        unique=unique,
    )


def tilted(params: dict, factor: float) -> dict:
    """Exponents times `factor`, each term unchanged at PIVOT."""
    out = dict(params)
    for scale, exponent, pivot in (("A", "alpha", PIVOT[0]), ("B", "beta", PIVOT[1])):
        out[exponent] = factor * params[exponent]
        out[scale] = params[scale] * pivot ** (out[exponent] - params[exponent])
    return out


def simulate_cell(spec: CellSpec, *, seed: int = 0, noise: Noise | None = None, laws: dict | None = None,
                  d_max: float = paper.D_MAX) -> pd.DataFrame:  # fmt: skip
    """Points of one cell; its random stream depends on the seed and the cell's name only."""
    truth = truth_of(spec, laws or {}, d_max)
    rng = generator(seed, "cell", spec.name)
    seen = d_max * spec.data_fraction * spec.epochs
    n = parameters(spec.arch, spec.width, laws)
    return one_run(truth, spec.name, spec.width, n, spec.seed, rng, noise or Noise(), seen, spec.validations)


def write_cell(spec: CellSpec, points: pd.DataFrame, curve: Path) -> None:
    """Write points as a curve like that of a trained cell; its device is 'simulated'."""
    n = float(points["N"].iloc[0])
    per_atom = float((points["C"] / points["D"]).iloc[-1]) * PFLOP
    molecules = np.round(points["step"] * spec.batch_size).astype(int)
    columns = {
        "step": points["step"],
        "epoch": points["fraction"] * spec.epochs,
        "fraction": points["fraction"],
        "molecules": molecules,
        "atoms": points["D"].round().astype(int),
        "flops": points["C"] * PFLOP,
        "device_hours": points["H"],
        "lr": spec.lr * spec.base_width / spec.width,
        "train_loss": points["loss"],
        "val_loss": points["loss"],
        "val_energy_loss": points["energy_loss"],
        "val_force_loss": points["force_loss"],
        "val_energy_mae": points["energy_loss"],  # sigma = 1 eV
        "val_force_mae": points["force_loss"] / 2.0,
    }
    meta = {
        "spec": spec_dict(spec),
        "spec_hash": spec_hash(spec),
        "N": int(n),
        "kappa": per_atom / 3 / n,
        "flops_per_atom": per_atom,
        "forward_flops_per_atom": per_atom / 3,
        "total_steps": int(points["total_steps"].iloc[0]),
        "data_hash": "simulated",
        "train_molecules": int(molecules.iloc[-1] / spec.epochs),
        "sigma": 1.0,
        "restarts": 0,
        "preemptions": 0,
        "git_commit": None,
        "versions": {"symscale": __version__},
        "device": "simulated",
    }
    write_curve(curve, pd.DataFrame(columns).to_dict("records"), meta)


def write_document(path: Path, spec: CellSpec, data: str) -> None:
    """cell.json of a cell that no workflow has resolved."""
    document = {"spec": spec_dict(spec), "hash": spec_hash(spec), "data": data}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    os.replace(partial, path)


def paper_cells(
    architectures: list[str], seeds: int = 1, validations: int = 100, laws: dict | None = None
) -> list[CellSpec]:
    """The published ladders, or those of the laws, as cells, without a config."""
    cells = []
    for arch in architectures:
        axis = paper.AXES.get(arch, "w")
        ladder = (laws or {}).get(arch, {}).get("ladder") or paper.LADDERS[arch]
        base = min(ladder, key=lambda rung: abs(math.log(rung[1] / 1e6)))[0]
        for width, _ in ladder:
            for seed in range(seeds):
                name = f"{arch}_{axis}{width}" + (f"_s{seed}" if seed else "")
                cells.append(
                    CellSpec(name, arch, width, DEPTHS.get(arch, 1), base, "simulated", seed=seed,
                             validations=validations, batch_size=paper.BATCH_SIZE.get(arch, 64),
                             hours_factor=2.0 if arch == "egnn" else 1.0)
                )  # fmt: skip
    return cells


def check_laws(laws: dict) -> dict[str, dict]:
    """Laws as read from JSON. Raises UserError for what is not a law."""
    for arch, law in laws.items():
        numbers = {k: v for k, v in law.items() if k != "ladder"} if isinstance(law, dict) else {}
        unknown = set(numbers) - LAW_KEYS if isinstance(law, dict) else {"(not an object)"}
        bad = unknown or {k for k, v in numbers.items() if not isinstance(v, (int, float)) or v < 0}
        if bad:
            raise UserError(f"law of {arch}: {', '.join(sorted(bad))}; keys are {', '.join(sorted(LAW_KEYS))}, "
                            "values numbers of at least 0, and ladder")  # fmt: skip
        if "ladder" in law and not _is_ladder(law["ladder"]):
            raise UserError(
                f"law of {arch}: ladder must be at least two [width, N], both rising integers above 0"
            )
    return laws


def _is_ladder(ladder) -> bool:
    """At least two rungs [width, N] of rising positive integers."""
    pairs = ladder if isinstance(ladder, list) else []
    if len(pairs) < 2 or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        return False
    if not all(isinstance(v, int) and v > 0 for p in pairs for v in p):
        return False
    return all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(pairs))
