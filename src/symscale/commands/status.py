"""symscale status: state of every cell of a config, from files and one squeue."""

from __future__ import annotations

import sys
from pathlib import Path

from symscale import config as configs
from symscale.status import registered, squeue, sweep_status, table


def add_arguments(parser) -> None:
    parser.add_argument("--configfile", default="config.yaml", help="config of the sweep (%(default)s)")
    parser.add_argument(
        "--logdir", default="logs/submitit", type=Path, help="the executor's folder (%(default)s)"
    )


def run(args) -> None:
    config = configs.load(args.configfile)
    jobs = squeue() if registered(args.logdir) else []
    print(table(sweep_status(config, args.logdir, jobs)))
    if jobs is None:
        print("squeue cannot be asked: what waits in the queue is not known", file=sys.stderr)
