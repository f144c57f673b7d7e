"""Load a config and refuse, before any job exists, what cannot be meant."""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path

import jsonschema
import yaml

from symscale.cells import CellSpec, study_cells
from symscale.data.sources.schema import DATASET_SCHEMA
from symscale.errors import UserError


def config_schema() -> dict:
    """config.schema.yaml with the dataset entries and the fields of a cell put where they belong."""
    schema = yaml.safe_load(resources.files("symscale").joinpath("config.schema.yaml").read_text())
    sections = schema["properties"]
    sections["datasets"]["additionalProperties"] = DATASET_SCHEMA
    fields = schema.pop("cell_fields")
    study = sections["studies"]["additionalProperties"]
    study["properties"]["sweep"]["properties"] = {
        name: {"type": "array", "minItems": 1, "uniqueItems": True, "items": field}
        for name, field in fields.items()
    }
    for section in (
        sections["architectures"]["additionalProperties"],
        sections["training"],
        study["properties"]["set"],
    ):
        section["properties"] |= fields
    return schema


def check(config: dict) -> dict:
    """The config itself if it is valid; raises UserError with the path of the first key that is not."""
    validator = jsonschema.Draft202012Validator(config_schema())
    error = jsonschema.exceptions.best_match(validator.iter_errors(config))
    if error is not None:
        path = ".".join(str(p) for p in error.absolute_path) or "(top level)"
        raise UserError(f"config: {path}: {_reason(error)}")
    if config["dataset"] not in config["datasets"]:
        known = ", ".join(config["datasets"])
        raise UserError(f"config: dataset: '{config['dataset']}' is not under datasets: {known}")
    for study, entry in config["studies"].items():
        ladders = entry.get("widths")
        strangers = set(ladders) - set(entry.get("arch", [])) if isinstance(ladders, dict) else None
        if strangers:
            raise UserError(
                f"config: studies.{study}.widths: {', '.join(sorted(strangers))} is not under 'arch'"
            )
        _check_question(study, entry)
        try:
            cells = study_cells(config, study).values()
        except UserError as error:
            raise UserError(f"config: studies.{study}: {error}") from None
        for field in entry.get("over", []):
            if len({getattr(spec, field) for spec in cells}) < 2:
                raise UserError(f"config: studies.{study}.over: '{field}' is the same in all of its cells")
    return config


def _check_question(study: str, entry: dict) -> None:
    """Refuse an `ask` without what it needs, and what it does not read."""
    ask = entry.get("ask", "exponents")
    needed = {"grid": 2, "sweep": 1}.get(ask, 0)
    over = entry.get("over", [])
    if len(over) != needed:
        what = f"{needed} cell field{'s' if needed > 1 else ''}" if needed else "no 'over'"
        raise UserError(f"config: studies.{study}.over: a study that asks for '{ask}' takes {what}")
    fields = [f.name for f in dataclasses.fields(CellSpec) if f.name not in ("name", "arch", "options")]
    strangers = [field for field in over if field not in fields]
    if strangers:
        raise UserError(f"config: studies.{study}.over: '{strangers[0]}' is none of {', '.join(fields)}")
    kinds = {f.name: f.type for f in dataclasses.fields(CellSpec)}
    if ask == "sweep" and (over[0] == "width" or kinds[over[0]] == "str"):
        raise UserError(f"config: studies.{study}.over: 'sweep' goes along a number, other than the width")
    if "samples" in entry and ask != "group_average":
        raise UserError(f"config: studies.{study}.samples: only 'ask: group_average' reads it")


def _reason(error: jsonschema.ValidationError) -> str:
    """jsonschema's message, with what is allowed where it leaves that out."""
    if error.validator == "additionalProperties" and isinstance(error.schema, dict):
        known = sorted(error.schema.get("properties", {}))
        extra = sorted(set(error.instance) - set(known))
        return f"unknown key {', '.join(map(repr, extra))}; known: {', '.join(known)}"
    if error.validator in ("minItems", "minProperties"):
        return "must not be empty"
    return error.message


def resolve(config: dict, seen: tuple[str, ...] = ()) -> dict:
    """The config laid over the file that its ``base`` names, key by key; null takes a key of the base away.

    As every path of a config, ``base`` is relative to the working directory.
    """
    if "base" not in config:
        return config
    path = str(config["base"])
    if path in seen:
        raise UserError(f"base: {' -> '.join((*seen, path))} goes in a circle")
    return _laid_over(resolve(_read(path), (*seen, path)), {k: v for k, v in config.items() if k != "base"})


def _laid_over(base: dict, changes: dict) -> dict:
    out = dict(base)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = _laid_over(out[key], value)
        elif value is None:
            out.pop(key, None)
        else:
            out[key] = value
    return out


def load(path: str | Path) -> dict:
    """Read and check one YAML config. Raises UserError that names the file and the key."""
    config = _read(path)
    try:
        return check(resolve(config, (str(path),)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read(path: str | Path) -> dict:
    """A YAML mapping. Raises UserError that names the file where it is none."""
    try:
        config = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such config; see config.yaml and config/ for ready ones") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: a config is a mapping of keys, this file is not")
    return config
