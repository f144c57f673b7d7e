"""What a pack holds, in words and figures."""

from __future__ import annotations


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
    lines.append(
        f"referenced energies of train: mean {manifest['mu']:.4f} eV, sigma {manifest['sigma']:.4f} eV"
    )
    lines += [f"dropped: {n} ({reason})" for reason, n in manifest["dropped"].items()]
    leak = manifest["leakage"]
    lines.append(
        f"of {manifest['counts']['val']['molecules']} validation samples, training has the same formula for "
        f"{leak['formula']}, the same molecule for {leak['molecule']}, the same structure for {leak['structure']}"
    )
    lines += [f"duplicate structures: {manifest['duplicates']}"] if manifest["duplicates"] else []
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
    lines += manifest["labels"].get("messages", [])
    return "\n".join(lines)
