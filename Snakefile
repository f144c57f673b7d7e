# Table of contents: config, cells, rules. Each rule calls one `symscale` subcommand that also runs by hand.
import sys

from snakemake.utils import min_version
from symscale.workflow import SYMSCALE, Sweep

min_version("9.0")

# a config named on the command line or in the profile replaces config.yaml, it is not merged into it
if not workflow.config_settings.configfiles:

    configfile: "config.yaml"


sweep = Sweep.from_config(config)
sweep.check_targets(sys.argv[1:])
sweep.announce(sys.argv[1:])


wildcard_constraints:
    cell="[^/]+",
    pack="[^/]+",


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/analysis.smk"
include: "workflow/rules/report.smk"


if "simulation" in sweep.config:

    include: "workflow/rules/simulate.smk"


localrules:
    all,
    cell,
    studies,
    analyse,
    figures,
    report,


rule all:
    default_target: True
    input:
        f"{sweep.results}/report.html",


onstart:
    print(sweep.summary(), file=sys.stderr)
    sweep.check_data(
        job.wildcards.pack
        for job in workflow.dag.needrun_jobs()
        if job.rule.name == "pack"
    )
    # Snakemake's default limit of 100 jobs a second starts a timer in every scheduling round, and every timer starts a
    # round: after hundreds of jobs the scheduler keeps a core busy (snakemake issue 2967). Only a limit asked for stays.
    limiter = workflow.scheduler.job_rate_limiter
    if limiter and (limiter.max_jobs, limiter.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None
