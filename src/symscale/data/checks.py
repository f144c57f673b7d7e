"""Are imported labels what the dataset entry says they are? A few dozen molecules are compared with GFN2-xTB.

A DFT set follows GFN2-xTB closely (forces correlate at .93-.98, slope near 1), so that a wrong sign or a wrong unit
stands out, whatever the set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from symscale.data import chunks
from symscale.data.reference import LeastSquares
from symscale.errors import UserError

SAMPLED = 48
MAX_ATOMS = 60  # of a molecule to label here: a GFN2 calculation grows with the cube
CLEAR = 0.6  # correlation from which on sign and slope mean something; below, geometries are near minima
SLOPES = (0.4, 2.5)
MIXED_RESIDUAL = 3.0  # eV/atom: chemistry stays far below it, total energies in two units far above
_UNITS = {  # slope of forces in eV/Angstrom that were taken for what they are not
    "Hartree/Bohr": 51.422,
    "Hartree/Angstrom (or energies in Hartree)": 27.2114,
    "kcal/mol/Angstrom (or energies in kcal/mol)": 0.043364,
    "kJ/mol/Angstrom (or energies in kJ/mol)": 0.0103643,
    "meV/Angstrom": 1e-3,
    "eV/Bohr": 1.88973,
}


def check_labels(stems: list[str], names: list[str], entry: dict) -> dict:
    """Figures of the comparison and messages; ``names`` are those of the tasks.

    Raises
    ------
    UserError
        If signs or units are wrong or mixed, unless the entry says ``check: warn``.
    """
    mode = entry.get("check", "refuse")
    if entry["source"] == "xtb" or mode == "off":
        return {}
    found, problems = _consistency(stems, names)
    if not problems:
        figures, problems = _compare(stems, names)
        found |= figures
    hint = "correct `units:` or `gradients:` of the dataset entry, or set `check: warn` to pack regardless"
    if problems and mode == "refuse":
        raise UserError(f"{'; '.join(problems)}; {hint}")
    found["messages"] = [*_words(found), *(f"warning: {problem}" for problem in problems)]
    return found


def _sampled(stems: list[str], count: int, max_atoms: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """About ``count`` rows, shared out evenly over the files they came from, a random choice within each."""

    def usable(stem):
        rows = chunks.read_rows(stem)
        return rows if max_atoms is None else rows[(rows["natoms"] <= max_atoms) & (rows["natoms"] > 1)]

    by_file = defaultdict(list)  # names only: all rows may be more than memory holds
    for stem in stems:
        if len(rows := usable(stem)):
            by_file[int(rows["file"][0])].append(stem)
    files = list(by_file.values())
    if not files:
        return
    places = np.unique(np.linspace(0, len(files) - 1, min(count, len(files))).astype(int))
    share = max(1, count // len(places))
    for place in places:
        per_chunk = max(1, share // len(files[place]))
        for stem in files[place][:share]:
            # sorted by a random key, the first are a random choice; a copy, as a slice keeps the whole chunk alive
            yield stem, usable(stem)[:per_chunk].copy()


def _consistency(stems: list[str], names: list[str]) -> tuple[dict, list[str]]:
    """One unit of energy throughout: element references must explain the energies to a few eV an atom."""
    fit, blocks = LeastSquares(), []
    for stem, rows in _sampled(stems, 4000, None):
        z = chunks.read_flat(stem, "z")
        table = chunks.composition(
            rows, np.asarray(z)[chunks.ragged(rows["start"], rows["natoms"].astype(np.int64))]
        )
        fit.add(table, rows["energy"])
        blocks.append((rows, table))
    references = fit.solve()
    per_file = defaultdict(list)
    for rows, table in blocks:
        residual = (rows["energy"] - table @ references.values) / rows["natoms"]
        per_file[names[int(rows["file"][0])]].extend(residual.tolist())
    everything = np.abs(np.concatenate([np.array(r) for r in per_file.values()]))
    found = {"residual_per_atom_median": float(np.median(everything))}
    if np.mean(everything > MIXED_RESIDUAL) <= 0.01:
        return found, []
    middle = {name: float(np.median(r)) for name, r in per_file.items()}
    low, high = min(middle, key=middle.get), max(middle, key=middle.get)
    where = f"{low} ({middle[low]:+.1f}) and {high} ({middle[high]:+.1f})" if low != high else low
    return found, [
        f"energies do not follow their compositions: {np.mean(everything > MIXED_RESIDUAL):.0%} of the samples are "
        f"more than {MIXED_RESIDUAL:g} eV/atom from their references; medians (eV/atom): {where}: mixed units?"
    ]


def _compare(stems: list[str], names: list[str]) -> tuple[dict, list[str]]:
    from symscale.data.sources.xtb import labels

    data_forces, xtb_forces, data_energy, xtb_energy, tables, files, net = [], [], [], [], [], [], []
    for stem, rows in _sampled(stems, SAMPLED, MAX_ATOMS):
        flat = {name: chunks.read_flat(stem, name) for name in chunks.FLAT}
        for row in rows:
            atoms = slice(int(row["start"]), int(row["start"] + row["natoms"]))
            z = np.array(flat["z"][atoms])
            if z.max() > 86:  # GFN2-xTB ends at radon
                continue
            pos = np.array(flat["pos"][atoms], dtype=np.float64)
            label = labels(z, pos[None], charge=int(row["charge"]), spin=int(row["spin"]), trusted=False)[0]
            if label is None:
                continue
            data_forces.append(np.array(flat["forces"][atoms], dtype=np.float64).ravel())
            xtb_forces.append(label[1].ravel())
            data_energy.append(row["energy"])
            xtb_energy.append(label[0])
            tables.append(np.bincount(z, minlength=119).astype(float))
            files.append(names[int(row["file"])])
            net.append(float(row["net_force"]))
    if not files:
        return {"compared": 0}, []
    found = {"compared": len(files), "net_force_median": float(np.median(net)), "net_force_max": max(net)}
    slopes, correlations = np.array([_slope(x, y) for x, y in zip(xtb_forces, data_forces, strict=True)]).T
    slope, correlation = _slope(np.concatenate(xtb_forces), np.concatenate(data_forces))
    found |= {"force_correlation": correlation, "force_slope": slope}
    problems = _force_problems(slope, correlation, slopes, correlations, files)
    # What the composition explains is taken off both energies; the rest must rise and fall together
    table = np.array(tables)
    left = [
        e - table @ np.linalg.lstsq(table, e, rcond=None)[0]
        for e in (np.array(xtb_energy), np.array(data_energy))
    ]
    if len(files) >= 8 + (table.sum(0) > 0).sum() and np.std(left[0]) > 1e-3:
        slope, correlation = _slope(*left)
        found |= {"energy_correlation": correlation, "energy_slope": slope}
        if abs(correlation) > CLEAR and not SLOPES[0] < slope < SLOPES[1]:
            problems.append(
                f"energies vary {slope:.3g} times as much as GFN2-xTB's: the unit of energy is wrong"
            )
    return found, problems


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of y over x through the origin, and their correlation."""
    xx, xy, yy = float(x @ x), float(x @ y), float(y @ y)
    return xy / max(xx, 1e-30), xy / max(np.sqrt(xx * yy), 1e-30)


def _force_problems(slope, correlation, slopes, correlations, files) -> list[str]:
    clear = np.abs(correlations) > CLEAR
    if clear.sum() < 0.3 * len(files):
        return []  # near minima, forces are small and methods differ: no verdict
    wrong = clear & ((slopes < SLOPES[0]) | (slopes > SLOPES[1]))
    right = clear & ~wrong
    if not wrong.any() or wrong.sum() <= 0.05 * clear.sum():
        return []
    if right.sum() > 0.05 * clear.sum():
        bad = sorted({file for file, w in zip(files, wrong, strict=True) if w})
        return [
            f"forces of {int(wrong.sum())} of {int(clear.sum())} molecules disagree with GFN2-xTB in sign or scale "
            f"and the others agree: mixed units? Look at {', '.join(bad[:3])}"
        ]
    if np.median(slopes[clear]) < 0:
        return [f"forces point against GFN2-xTB's (correlation {correlation:.2f}): gradients, not forces"]
    middle = float(np.median(slopes[clear]))
    unit = min(_UNITS, key=lambda name: abs(np.log(middle * _UNITS[name])))
    return [
        f"forces are {middle:.3g} times GFN2-xTB's (correlation {correlation:.2f}): a wrong unit; they "
        f"look as if they were in {unit}"
    ]


def _words(found: dict) -> list[str]:
    if not found.get("compared"):
        return ["labels were not compared with GFN2-xTB: no molecule of 2-60 atoms up to Z = 86"]
    lines = [
        f"forces against GFN2-xTB on {found['compared']} molecules: correlation {found['force_correlation']:.3f}, "
        f"slope {found['force_slope']:.2f}; net force median {found['net_force_median']:.1e}, largest "
        f"{found['net_force_max']:.1e} eV/Angstrom"
    ]
    if "energy_slope" in found:
        lines.append(
            f"energies against GFN2-xTB: correlation {found['energy_correlation']:.3f}, "
            f"slope {found['energy_slope']:.2f}"
        )
    if found["net_force_median"] > 0.1:
        lines.append("warning: forces do not add up to zero")
    if abs(found["force_correlation"]) < CLEAR:
        lines.append(
            "warning: forces hardly follow GFN2-xTB's, as near minima: signs and units could not be checked"
        )
    return lines
