"""symscale cells: the cells of a config and the studies that ask for them."""

from __future__ import annotations

from symscale import config as configs
from symscale.cells import expand, study_cells


def add_arguments(parser) -> None:
    parser.add_argument("--configfile", default="config.yaml", help="config to expand (%(default)s)")


def run(args) -> None:
    config = configs.load(args.configfile)
    studies = {study: study_cells(config, study) for study in config["studies"]}
    union = expand(config)
    for name in union:
        print(f"{name}\t{', '.join(study for study, cells in studies.items() if name in cells)}")
    asked = sum(len(cells) for cells in studies.values())
    print(
        f"{len(union)} cells for {len(studies)} studies, which ask for {asked}: {asked - len(union)} are shared"
    )
