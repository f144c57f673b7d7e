"""symscale params: parameter counts."""

from __future__ import annotations

from symscale import config as configs
from symscale.cells import parse_name


def add_arguments(parser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="cell names, for instance mpnn_w128")
    parser.add_argument("--configfile", default="config.yaml", help="config with the defaults (%(default)s)")


def run(args) -> None:
    from symscale.flops import count_parameters
    from symscale.models import build_model

    config = configs.load(args.configfile)
    for name in args.names:
        count = count_parameters(build_model(parse_name(config, name)))
        print(f"{name}\t{count}" if len(args.names) > 1 else count)
