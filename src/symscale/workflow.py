"""What the Snakefile asks of a config. Plain Python: runs, and is tested, without Snakemake."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from symscale import cells
from symscale import config as configs
from symscale.cells import CellSpec
from symscale.data.sources.schema import missing_inputs, source_state
from symscale.errors import UserError

# how a rule calls the command line: with the Python that runs Snakemake, whether or not its bin/ is on PATH
SYMSCALE = f"{shlex.quote(sys.executable)} -m symscale"

SAMPLES = (1, 2, 4, 8, 16, 32, 64)  # rotations that group averaging is measured with, unless a study says


@dataclass(frozen=True)
class Sweep:
    """A checked config with its cells. Methods that take ``wildcards`` are Snakemake input functions."""

    config: dict
    cells: dict[str, CellSpec]
    studies: dict[str, list[str]]

    @classmethod
    def from_config(cls, config: dict) -> Sweep:
        """Check and expand. Exits with one line where the config is invalid."""
        try:
            config = configs.check(configs.resolve(config))
            studies = {study: list(cells.study_cells(config, study)) for study in config["studies"]}
            return cls(config, cells.expand(config), studies)
        except UserError as error:
            sys.exit(f"symscale: {error}")

    def table(self) -> str:
        """A line a cell: its name and the studies that ask for it."""
        return "\n".join(
            f"{name}\t{', '.join(study for study, names in self.studies.items() if name in names)}"
            for name in self.cells
        )

    def summary(self) -> str:
        """How many cells are trained, and how many trainings are saved because studies share them."""
        asked = sum(map(len, self.studies.values()))
        return (
            f"{len(self.cells)} cells for {len(self.studies)} studies, which ask for {asked}: "
            f"{asked - len(self.cells)} are shared"
        )

    def announce(self, argv: list[str]) -> None:
        """On a dry-run of more than single cells: every cell with its studies, on stderr."""
        dry = any(a in ("--dry-run", "--dryrun") or re.fullmatch(r"-[a-zA-Z]*n[a-zA-Z]*", a) for a in argv)
        if dry and not any(a.startswith(f"{self.results}/") for a in argv):
            print(f"{self.table()}\n{self.summary()}", file=sys.stderr)

    @property
    def results(self) -> str:
        return self.config["results"].rstrip("/")

    @property
    def logs(self) -> str:
        return cells.side_folder(self.config, "logs")

    @property
    def data_dir(self) -> str:
        return self.config.get("data_dir", "data")

    def spec(self, name: str) -> CellSpec:
        """The spec of any cell name of the grammar. Exits with one line where it is not one."""
        if name in self.cells:
            return self.cells[name]
        try:
            return cells.parse_name(self.config, name)
        except UserError as error:
            sys.exit(f"symscale: {error}")

    def check_targets(self, targets) -> None:
        """Refuse a misspelt cell before Snakemake says 'no rule to produce'."""
        for target in targets or ():
            found = re.fullmatch(
                re.escape(self.results) + r"/([^/]+)/(?:curve\.parquet|cell\.json)", str(target)
            )
            if found:
                self.spec(found.group(1))
            elif re.fullmatch(r"results/.+/curve\.parquet", str(target)):
                sys.exit(
                    f"symscale: {target}: this config writes to {self.results}/<cell>/curve.parquet; "
                    "choose another sweep with --configfile"
                )

    def check_data(self, packs) -> None:
        """Stop with where to get it if the source of one of the packs that a run needs is not there."""
        problems = [p for pack in packs for p in missing_inputs(self.dataset(pack))]
        if problems:
            sys.exit("symscale: " + "\n".join(problems))

    def dataset(self, pack: str) -> dict:
        """The config's entry behind a pack folder's name."""
        for name, entry in self.config["datasets"].items():
            if Path(cells.data_folder(self.config, name)).name == pack:
                return entry
        known = ", ".join(Path(cells.data_folder(self.config, n)).name for n in self.config["datasets"])
        sys.exit(f"symscale: {self.data_dir}/{pack}: not a dataset of this config, whose packs are {known}")

    def dataset_json(self, wildcards) -> str:
        return json.dumps(self.dataset(wildcards.pack), sort_keys=True)

    def source_state(self, wildcards) -> str:
        """Changes when the files behind a pack do, so that Snakemake packs again."""
        return source_state(self.dataset(wildcards.pack), f"{self.data_dir}/{wildcards.pack}")

    def cell_json(self, wildcards) -> str:
        return cells.cell_document(self.config, self.spec(wildcards.cell))

    def studies_json(self) -> str:
        """Study -> cells and its words, for the analysis; changes when a study does, not when code does."""
        words = {
            name: {
                k: entry[k] for k in ("title", "question", "paper", "ask", "over", "samples") if k in entry
            }
            for name, entry in self.config["studies"].items()
        }
        return json.dumps({name: words[name] | {"cells": self.studies[name]} for name in words}, indent=1)

    def manifest(self, wildcards) -> str:
        """The manifest of the pack that a cell trains on."""
        return f"{self.data_folder(wildcards)}/manifest.json"

    def data_folder(self, wildcards) -> str:
        return cells.data_folder(self.config, self.spec(wildcards.cell).dataset)

    @property
    def checkpoints(self) -> str:
        """Folder of the cells' checkpoint folders."""
        return str(Path(cells.checkpoint_folder(self.config, "x")).parent)

    def curves(self, _wildcards=None) -> list[str]:
        """Curves of every cell of every study."""
        return [f"{self.results}/{name}/curve.parquet" for name in self.cells]

    def asking(self, kind: str) -> dict[str, dict]:
        """The studies that ask a kind of question."""
        return {name: e for name, e in self.config["studies"].items() if e.get("ask") == kind}

    def _cells_asking(self, kind: str) -> list[str]:
        return list(dict.fromkeys(name for study in self.asking(kind) for name in self.studies[study]))

    def samples(self, wildcards) -> str:
        """Numbers of rotations to average a cell over, the model as it is (0) among them."""
        asked = [e.get("samples", SAMPLES) for s, e in self.asking("group_average").items()
                 if wildcards.cell in self.studies[s]]  # fmt: skip
        return " ".join(str(m) for m in sorted({0}.union(*asked or [SAMPLES])))

    def counted(self, _wildcards=None) -> list[str]:
        """cell.json of every cell whose kappa a study asks for."""
        return [f"{self.results}/{name}/cell.json" for name in self._cells_asking("kappa")]

    def counted_data(self, _wildcards=None) -> list[str]:
        """Manifests of the packs that those are counted on."""
        packs = {
            cells.data_folder(self.config, self.cells[name].dataset) for name in self._cells_asking("kappa")
        }
        return [f"{pack}/manifest.json" for pack in sorted(packs)]

    def averages(self) -> list[str]:
        """Losses of group averaging, of every cell that a study asks them of."""
        return [f"{self.results}/{name}/averaging.parquet" for name in self._cells_asking("group_average")]

    def measurements(self, _wildcards=None) -> list[str]:
        """What the analysis reads besides curves."""
        return self.averages() + ([f"{self.results}/kappa.parquet"] if self.asking("kappa") else [])

    def measured(self) -> str:
        """The same as options of `symscale analyse`."""
        options = ["--averaging", *self.averages()] if self.averages() else []
        options += ["--kappa", f"{self.results}/kappa.parquet"] if self.asking("kappa") else []
        return shlex.join(options)

    def analysis_options(self) -> str:
        """The config's ``analysis`` section as JSON."""
        return json.dumps(self.config.get("analysis", {}), sort_keys=True)
