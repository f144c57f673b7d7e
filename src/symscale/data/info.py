"""What a pack holds, in words and figures."""

from __future__ import annotations

import numpy as np

from symscale.data.pack import Pack, Split
from symscale.data.sources.schema import input_paths

SAMPLE = 100_000  # molecules looked at; packs are shuffled, so a prefix is a random choice
_BAR = 40


def summary(manifest: dict) -> str:
    """A few lines from the manifest: counts, normalisation, what was dropped, leakage and checks."""
    from ase.data import chemical_symbols as symbols

    lines = []
    for split in ("train", "val"):
        counts = manifest["counts"][split]
        elements = ", ".join(f"{symbols[int(z)]} {n}" for z, n in counts["elements"].items())
        mean = counts["atoms"] / counts["molecules"]
        lines.append(
            f"{split}: {counts['molecules']} molecules, {counts['atoms']} atoms (mean {mean:.1f}): {elements}"
        )
    lines += [_source(manifest["entry"])] if "entry" in manifest else []
    lines.append(
        f"referenced energies of train: mean {manifest['mu']:.4f} eV, sigma {manifest['sigma']:.4f} eV"
    )
    lines += [f"dropped: {n} ({reason})" for reason, n in manifest["dropped"].items() if n]
    lines += [f"kept, but far out: {n} ({reason})" for reason, n in manifest.get("outliers", {}).items() if n]
    leak = manifest["leakage"]
    lines.append(
        f"of {manifest['counts']['val']['molecules']} validation samples, training has the same formula for "
        f"{leak['formula']}, the same molecule for {leak['molecule']}, the same structure for {leak['structure']}"
    )
    lines += [f"duplicate structures: {manifest['duplicates']}"] if manifest["duplicates"] else []
    for what, name in (("charge", "charge"), ("spin", "spin multiplicity")):
        lines.append(f"{name}: " + ", ".join(f"{value} ({n} samples)" for value, n in manifest[what].items()))
    charged = sum(n for q, n in manifest["charge"].items() if q != "0")
    open_shell = sum(n for s, n in manifest["spin"].items() if s != "1")
    if charged or open_shell:
        lines.append(
            f"warning: {charged} charged and {open_shell} open-shell samples; the models take neither as input"
        )
    if manifest["rare_elements"]:
        rare = ", ".join(f"{symbols[int(z)]} ({n})" for z, n in manifest["rare_elements"].items())
        lines.append(f"warning: too rare for a sound energy reference (training molecules): {rare}")
    if manifest["undetermined_elements"]:
        names = ", ".join(symbols[z] for z in manifest["undetermined_elements"])
        lines.append(f"references are only determined in combination for: {names}")
    return "\n".join([*lines, *manifest["labels"].get("messages", [])])


def _source(entry: dict) -> str:
    """Where the samples come from and in which units they were declared."""
    paths = " and ".join(input_paths(entry)) or "made here"
    units = {"energy": "eV", "length": "Angstrom"} | entry.get("units", {})
    units.setdefault("forces", f"{units['energy']}/{units['length']}")
    kind = "gradients" if entry.get("gradients") else "forces"
    return (
        f"source: {entry['source']}, {paths}; energies declared in {units['energy']}, lengths in {units['length']}, "
        f"{kind} in {units['forces']}"
    )


def distributions(pack: Pack, split: Split) -> dict[str, np.ndarray]:
    """Sizes, normalised energies and |F| (eV/Angstrom) of a random choice of molecules."""
    sizes, energies, forces = [], [], []
    for first in range(0, min(len(split), SAMPLE), 1000):
        found = split.gather(np.arange(first, min(first + 1000, len(split), SAMPLE)))
        sizes.append(found.counts)
        energies.append(pack.normalise_energy(found.energy, found.z, found.counts))
        forces.append(np.linalg.norm(found.forces, axis=1))
    return {
        "atoms per molecule": np.concatenate(sizes),
        "referenced energy / sigma": np.concatenate(energies),
        "|F|, eV/Angstrom": np.concatenate(forces),
    }


def describe(pack: Pack) -> str:
    """The summary and a text histogram of each distribution of the training part."""
    parts = [f"{pack.folder}: content {pack.content_hash[:16]}", summary(pack.manifest)]
    for name, values in distributions(pack, pack.train).items():
        low, middle, high = np.percentile(values, [0.5, 50, 99.5])
        parts.append(
            f"\n{name}: 0.5 % {low:.3g}, median {middle:.3g}, 99.5 % {high:.3g}, largest {values.max():.3g}"
        )
        counts, edges = np.histogram(
            values, bins=12, range=(low, high) if high > low else (low - 0.5, low + 0.5)
        )
        for count, edge in zip(counts, edges, strict=False):
            parts.append(f"{edge:10.3g} {'#' * round(_BAR * count / counts.max())}")
    return "\n".join(parts)


def draw(pack: Pack, path: str) -> None:
    """The distributions of both splits and the elements, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    from ase.data import chemical_symbols as symbols

    matplotlib.rcParams["svg.hashsalt"] = "symscale"  # the same pack gives the same file
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    splits = {name: distributions(pack, split) for name, split in (("train", pack.train), ("val", pack.val))}
    for axis, name in zip(axes.flat, splits["train"], strict=False):
        low, high = np.percentile(splits["train"][name], [0.5, 99.5])
        bins = np.linspace(low, high, 50) if high > low else 10
        for split, values in splits.items():
            axis.hist(values[name], bins=bins, density=True, histtype="step", label=split)
        axis.set(xlabel=name, ylabel="density")
    axes.flat[0].legend(frameon=False)
    elements = pack.manifest["counts"]["train"]["elements"]
    axes.flat[3].bar([symbols[int(z)] for z in elements], list(elements.values()))
    axes.flat[3].set(yscale="log", ylabel="atoms of train")
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
