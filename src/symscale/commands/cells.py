"""symscale cells: the cells of a config and the studies that ask for them."""

from __future__ import annotations

from symscale import config as configs
from symscale.workflow import Sweep


def add_arguments(parser) -> None:
    parser.add_argument("--configfile", default="config.yaml", help="config to expand (%(default)s)")


def run(args) -> None:
    sweep = Sweep.from_config(configs.load(args.configfile))
    print(sweep.table())
    print(sweep.summary())
