"""Cells of the grid: what one training run is, how it is named, and which cells a config asks for.

A cell's name is its architecture, its width and a suffix for every field that differs from the config's
default for that architecture: ``esen_c16``, ``esen_c16_l2``, ``mpnn_w128_d1_e100_aug``. Names are parsed, so a
name that is on no ladder works too, and two specs never share a name. Standard library only: Snakemake imports
this for every job.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from symscale.data.sources.schema import pack_folder
from symscale.errors import UserError

MODES = {
    "mup": ("width", "parameter", "none"),
    "precision": ("float32", "tf32", "bf16"),
    "equivariant_by": ("none", "frames", "canonical"),
}


@dataclass(frozen=True)
class CellSpec:
    """One training run. Defaults are the paper's where it names a value."""

    name: str
    arch: str
    width: int  # embedding width w; eSEN: channels C
    depth: int  # message-passing layers
    base_width: int  # width at which lr is the learning rate (eta(w) = eta* w_base / w)
    dataset: str
    # graph (appendix D)
    cutoff: float = 6.0  # Angstrom
    max_neighbors: int = 30
    num_radial: int = 136
    # options of single architectures; a name may vary one only where the config's architecture entry has it
    lmax: int = 4
    mmax: int = 2
    hidden_channels: int = 32
    vector_channels: int = 0  # E; 0 stands for floor(sqrt(w))
    quadruplets: bool = False
    absolute: bool = False  # absolute instead of relative coordinates (appendix J)
    options: tuple[tuple[str, str | float | int | bool], ...] = ()  # of a model of one's own
    # of any architecture
    equivariant_by: str = "none"  # 'frames': averaged over principal axes; 'canonical': in a learned frame
    conservative: bool = False  # forces are the energy's gradient
    # data
    data_fraction: float = 1.0
    epochs: int = 1
    batch_size: int = 64
    max_atoms: int = 0  # a step ends before this many atoms (or edges) too; 0: a fixed number of molecules
    max_edges: int = 0
    validation_molecules: int = 0  # 0 is all of them
    # optimisation (section 3.2)
    lr: float = 1e-3
    mup: str = "width"  # 'width': eta(w) for all parameters; 'parameter': per tensor; 'none'
    weight_decay: float = 0.0
    warmup_steps: int = 0
    lambda_energy: float = 1.0
    lambda_forces: float = 1.0
    symmetry_samples: int = 0  # M of eq. (2); 0 is no symmetry loss
    symmetry_weight: float = 1.0
    augment: bool = False  # a random rotation of every training molecule
    seed: int = 0
    # evaluation and arithmetic
    validations: int = 30  # log-spaced along the run, besides those at r = 0.1 ... 1.0
    validate_every: int = 0  # steps; 0 is log-spaced only
    precision: str = "float32"
    compile: bool = False
    hours_factor: float = 1.0  # device-hours are multiplied by this (the paper doubles EGNN's)

    def __post_init__(self):
        # YAML's `1` and `1.0` are one value, and must have one name and one hash
        for field in dataclasses.fields(self):
            if field.type in ("float", "int"):
                number = {"float": float, "int": int}[field.type]
                object.__setattr__(self, field.name, number(getattr(self, field.name)))

    def option(self, name: str, default):
        """An entry of ``options``, for models that are not part of the package."""
        return dict(self.options).get(name, default)


# How a field shows in a name, in the order of a name: field -> (letters, kind, architecture option?)
TOKENS = {
    "depth": ("depth", "int", False),
    "lmax": ("l", "int", True),
    "mmax": ("m", "int", True),
    "hidden_channels": ("h", "int", True),
    "vector_channels": ("v", "int", True),
    "quadruplets": ("quad", "flag", True),
    "absolute": ("abs", "flag", True),
    "equivariant_by": ("by-", "word", False),
    "conservative": ("cons", "flag", False),
    "dataset": ("on-", "word", False),
    "data_fraction": ("d", "percent", False),
    "epochs": ("e", "int", False),
    "batch_size": ("b", "int", False),
    "lr": ("lr", "float", False),
    "symmetry_samples": ("sym", "sym", False),
    "augment": ("aug", "flag", False),
    "seed": ("s", "int", False),
    "validate_every": ("every", "int", False),
}
SYM_DEFAULT = 5  # 'sym' alone is the paper's M = 5
_NUMBER = r"(?:0|[1-9][0-9]*)"
_DECIMAL = _NUMBER + r"(?:\.[0-9]+)?"
_PATTERNS = {
    "int": _NUMBER,
    "flag": "",
    "percent": _DECIMAL,
    "float": _DECIMAL + r"(?:e-?[0-9]+)?",
    "sym": f"(?:{_NUMBER})?",
    "word": r"[a-z0-9]+(?:-[a-z0-9]+)*",
}
_NAME = re.compile(rf"([a-z][a-z0-9]*)_([a-z])({_NUMBER})((?:_[a-z0-9.\-]+)*)")
ENTRY_KEYS = {"axis", "widths"}  # of an architecture entry; the rest are CellSpec fields


def _decode(kind: str, text: str):
    match kind:
        case "int":
            return int(text)
        case "flag":
            return True
        case "percent":
            return float(Decimal(text) / 100)
        case "float":
            return float(text)
        case "sym":
            return int(text) if text else SYM_DEFAULT
    return text


def _encode(kind: str, value) -> str:
    match kind:
        case "flag":
            return ""
        case "percent":
            return f"{(Decimal(repr(value)) * 100).normalize():f}"
        case "float":
            return repr(value)
        case "sym":
            return "" if value == SYM_DEFAULT else str(value)
    return str(value)


def defaults(config: dict, arch: str) -> CellSpec:
    """The spec that a name without suffixes has, at width 0 and without a name."""
    if arch not in config["architectures"]:
        raise UserError(
            f"unknown architecture '{arch}'; this config has {', '.join(config['architectures'])}"
        )
    entry = {k: v for k, v in config["architectures"][arch].items() if k not in ENTRY_KEYS}
    values = {"dataset": config["dataset"]} | config.get("training", {}) | entry
    values["options"] = tuple(sorted(values.get("options", {}).items()))
    return CellSpec(name="", arch=arch, width=0, **values)


def _varied(config: dict, arch: str) -> dict:
    """The tokens that a name of this architecture may carry."""
    entry = config["architectures"][arch]
    return {f: t for f, t in TOKENS.items() if not t[2] or f in entry}


def cell_name(config: dict, spec: CellSpec) -> str:
    """The one name of a spec; raises UserError for a difference from the defaults that no name can show."""
    base = defaults(config, spec.arch)
    tokens = _varied(config, spec.arch)
    name = f"{spec.arch}_{config['architectures'][spec.arch]['axis']}{spec.width}"
    for field in dataclasses.fields(CellSpec):
        value, default = getattr(spec, field.name), getattr(base, field.name)
        if value == default or field.name in ("name", "arch", "width"):
            continue
        if field.name not in tokens:
            raise UserError(
                f"{spec.arch}: '{field.name}' cannot vary between cells of one config; "
                f"what can: {', '.join(tokens)}"
            )
        if value is False:
            raise UserError(f"{spec.arch}: '{field.name}' is on by default and a name cannot turn it off")
    for field, (letters, kind, _) in tokens.items():
        value = getattr(spec, field)
        if value != getattr(base, field):
            name += f"_{letters}{_encode(kind, value)}"
    return name


def grammar(config: dict) -> str:
    """One line that says which names exist."""
    axes = ", ".join(f"{a}_{e['axis']}<width>" for a, e in config["architectures"].items())
    letters = ", ".join(f"_{t[0]}{'' if t[1] == 'flag' else '<' + t[1] + '>'}" for t in TOKENS.values())
    return f"names are {axes}, then in this order any of {letters}"


def parse_name(config: dict, name: str) -> CellSpec:
    """The spec behind a name. Raises UserError, in one line, for what is not a name of this config."""
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(f"'{name}' is not a cell name; {grammar(config)}")
    arch, axis, width, suffixes = match.groups()
    if arch not in config["architectures"]:
        known = ", ".join(config["architectures"])
        raise UserError(f"'{name}': unknown architecture '{arch}'; this config has {known}")
    if axis != config["architectures"][arch]["axis"] or int(width) < 1:
        want = config["architectures"][arch]["axis"]
        raise UserError(f"'{name}': {arch} is named {arch}_{want}<width> with a width of at least 1")
    values: dict = {"width": int(width)}
    for token in suffixes.split("_")[1:]:
        for field, (letters, kind, _) in _varied(config, arch).items():
            found = re.fullmatch(f"{letters}({_PATTERNS[kind]})", token)
            if found and field not in values:
                values[field] = _decode(kind, found.group(1))
                break
        else:
            raise UserError(f"'{name}': '_{token}' says nothing about {arch}; {grammar(config)}")
    spec = dataclasses.replace(defaults(config, arch), **values)
    return _checked(config, spec, name)


def _checked(config: dict, spec: CellSpec, asked: str | None = None) -> CellSpec:
    """Give the spec its name and refuse impossible values."""
    problems = {
        "dataset": spec.dataset in config["datasets"] or f"one of {', '.join(config['datasets'])}",
        "data_fraction": 0 < spec.data_fraction <= 1 or "above 0 and at most 100 %",
        "epochs": spec.epochs >= 1 or "at least 1",
        "depth": spec.depth >= 1 or "at least 1",
        "batch_size": spec.batch_size >= 1 or "at least 1",
        "lr": 0 < spec.lr < math.inf or "above 0 and finite",
        "lmax": 1 <= spec.lmax <= 6 or "from 1 to 6",
        "symmetry_samples": spec.symmetry_samples >= 0 or "at least 0",
        "seed": 0 <= spec.seed <= 2**20 or "from 0 to 2^20",
        "mmax": 0 <= spec.mmax <= spec.lmax or f"at most lmax = {spec.lmax}",
        "equivariant_by": spec.equivariant_by in MODES["equivariant_by"]
        or f"one of {', '.join(MODES['equivariant_by'])}",
        "compile": not (spec.compile and spec.conservative)
        or "false with conservative forces: torch.compile has no second derivatives",
    }
    for field, verdict in problems.items():
        if verdict is not True:
            raise UserError(
                f"'{asked or spec.arch}': {field} = {getattr(spec, field)}, but it must be {verdict}"
            )
    spec = dataclasses.replace(spec, name=cell_name(config, spec))
    if asked is not None and spec.name != asked:
        raise UserError(
            f"'{asked}' is written '{spec.name}' in this config (defaults are left out of a name)"
        )
    return spec


def study_cells(config: dict, study: str) -> dict[str, CellSpec]:
    """The cells of one entry under ``studies``, in ladder order."""
    entry = config["studies"][study]
    cells: dict[str, CellSpec] = {}
    for name in entry.get("cells", []):
        cells[name] = parse_name(config, name)
    sweep = entry.get("sweep", {})
    for arch in entry.get("arch", []):
        base = dataclasses.replace(defaults(config, arch), **entry.get("set", {}))
        ladder = entry.get("widths", config["architectures"][arch]["widths"])
        widths = (
            ladder.get(arch, config["architectures"][arch]["widths"]) if isinstance(ladder, dict) else ladder
        )
        for width, *point in itertools.product(widths, *sweep.values()):
            values = dict(zip(sweep, point, strict=True))
            spec = _checked(config, dataclasses.replace(base, width=width, **values))
            cells[spec.name] = spec
    if not cells:
        raise UserError(f"studies.{study}: no cells; give 'arch' or 'cells'")
    return cells


def expand(config: dict) -> dict[str, CellSpec]:
    """Every cell that any study asks for, once: {name: spec}."""
    return {name: spec for study in config["studies"] for name, spec in study_cells(config, study).items()}


def spec_dict(spec: CellSpec) -> dict:
    """The spec as JSON-ready values."""
    return dataclasses.asdict(spec) | {"options": dict(spec.options)}


def spec_from_dict(values: dict) -> CellSpec:
    """The inverse of spec_dict. Raises UserError for fields that this version does not know."""
    unknown = set(values) - {f.name for f in dataclasses.fields(CellSpec)}
    if unknown:
        raise UserError(
            f"cell spec with unknown fields {', '.join(sorted(unknown))}: written by another version"
        )
    return CellSpec(**values | {"options": tuple(sorted(values.get("options", {}).items()))})


def spec_essence(spec: CellSpec) -> dict:
    """The spec without what is at its default, so that a field added later changes no cell that is there."""
    required = {f.name for f in dataclasses.fields(CellSpec) if f.default is dataclasses.MISSING}
    blank = spec_dict(CellSpec("", "", 0, 0, 0, ""))
    return {k: v for k, v in spec_dict(spec).items() if k in required or v != blank[k]}


def spec_hash(spec: CellSpec) -> str:
    """16 hex digits over the spec, so that a checkpoint of another one can be told apart."""
    text = json.dumps(spec_essence(spec), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def data_folder(config: dict, dataset: str) -> str:
    """Folder of a packed dataset; holds a hash of its entry, so two configs never overwrite each other's."""
    return pack_folder(config["datasets"][dataset], dataset, config.get("data_dir", "data"))


def side_folder(config: dict, kind: str) -> str:
    """``checkpoints`` or ``logs`` of a sweep: ``results/paper`` -> ``checkpoints/paper``.

    Results that are not under ``results/`` keep both inside, where no other sweep can meet them.
    """
    results = Path(config["results"])
    if results.is_absolute() or results.parts[:1] != ("results",) or ".." in results.parts:
        return str(results / kind)
    return str(Path(kind, *results.parts[1:]))


def checkpoint_folder(config: dict, name: str) -> str:
    """Folder of a cell's checkpoints: under the config's ``checkpoints``, or beside the results."""
    return str(Path(config.get("checkpoints", side_folder(config, "checkpoints"))) / name)


def cell_document(config: dict, spec: CellSpec) -> str:
    """The text of cell.json: all that training needs to know besides the pack itself."""
    document = {
        "spec": spec_essence(spec),
        "hash": spec_hash(spec),
        "data": data_folder(config, spec.dataset),
    }
    return json.dumps(document, indent=1, sort_keys=True)


def read_cell(path: str | Path) -> tuple[CellSpec, str]:
    """Spec and data folder of a cell.json. Raises UserError where it is missing or not one."""
    try:
        document = json.loads(Path(path).read_text())
        return spec_from_dict(document["spec"]), document["data"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `snakemake {path}` writes it") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a cell description ({error}); delete it and run again") from None
