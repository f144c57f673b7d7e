"""Training steps side by side with references: `python benchmarks/train_step.py [CELL ...] [--shapes laptop]`.

A step is forward, backward and schedule-free AdamW on 64 molecules of the built-in kind, in float32. Each cell is
timed against the reference of its architecture (references.py) in one process, the sides in turn: by default on one
thread and in CPU seconds, medians over rounds, so that other work on the machine changes little. Reported are

- the ratio with float32 subnormals flushed to zero on both sides, which is the harder comparison, and with torch's
  default (as is), where references lose time to subnormals in the tails of their radial functions;
- the model FLOP utilisation: FLOPs of the matrix products over time, as a share of the best GEMM of this run (what a
  CPU leaves out counts too: radial functions below rounding, 15 to 40 % of MC-EGNN's FLOPs, and every fourth of the
  products for m > 0 in large eSENs, about 15 % of theirs);
- what a step adds to the peak memory of a fresh process that holds one side alone (--no-memory skips it);
- with --slopes, how the time of a step grows with N along the config's ladder.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from references import build_reference
from schedulefree import AdamWScheduleFree

from symscale import config as configs
from symscale.cells import CellSpec, parse_name
from symscale.data.example import example_batch
from symscale.flops import count_flops, count_parameters
from symscale.loss import training_loss
from symscale.models import MODELS, build_model

CONFIGS = {"paper": "config/paper.yaml", "laptop": "config.yaml"}
CELLS = {
    "paper": "mpnn_w517 mpnn_w1150 egnn_w64 egnn_w200 gemnet_w64 gemnet_w128 gemnet_w64_quad esen_c16",
    "laptop": "mpnn_w128 egnn_w32 gemnet_w24 gemnet_w72 gemnet_w24_quad esen_c10",
}


class Side:
    """A model with its optimiser and a batch."""

    def __init__(self, model, data):
        self.model, self.data = model, data
        if hasattr(model, "calibrate"):
            model.calibrate([data])
        self.optimizer = AdamWScheduleFree(model.parameters(), lr=1e-4)
        self.optimizer.train()

    def loss(self):
        return training_loss(self.model, self.data, torch.Generator())

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()

    def flops(self) -> int:
        return count_flops(lambda: self.loss().backward())


def data_of(spec: CellSpec, molecules: int):
    return example_batch(spec, MODELS[spec.arch].symmetric_edges, molecules)


def seconds(work) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    work()
    return clock() - start


def gemm_rate() -> float:
    """FLOPs a second of the best of some square float32 products."""
    found = 0.0
    for n in (512, 1024, 2048):
        a, b = torch.randn(n, n), torch.randn(n, n)
        found = max(found, 2 * n**3 / min(seconds(lambda a=a, b=b: torch.mm(a, b)) for _ in range(3)))
    return found


@dataclass(frozen=True)
class Timing:
    """Medians in seconds by (side, flushed?), and the best GEMM rate seen in between."""

    medians: dict[tuple[str, bool], float]
    ratios: dict[bool, float]  # median over rounds of reference / ours
    peak: float


def time_sides(sides: dict[str, Side], rounds: int, settings=(True, False)) -> Timing:
    times: dict[tuple[str, bool], list[float]] = {(s, f): [] for f in settings for s in sides}
    peak = 0.0
    for i in range(rounds + 1):
        peak = max(peak, gemm_rate())
        for (name, flush), seen in times.items():
            torch.set_flush_denormal(flush)
            elapsed = seconds(sides[name].step)
            if i:  # the first round warms up
                seen.append(elapsed)
    torch.set_flush_denormal(False)
    medians = {key: statistics.median(seen) for key, seen in times.items()}
    ratios = {}
    if "reference" in sides:
        for flush in settings:
            pairs = zip(times["reference", flush], times["ours", flush], strict=True)
            ratios[flush] = statistics.median(theirs / ours for theirs, ours in pairs)
    return Timing(medians, ratios, peak)


def peak_mb() -> float:
    """Of this process alone: ru_maxrss is inherited from a parent."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def report_peak(spec: CellSpec, args) -> None:
    """In a process of its own: what steps add to its peak."""
    build = build_model if args.peak_of == "ours" else build_reference
    side = Side(build(spec), data_of(spec, args.molecules))
    before = peak_mb()
    for _ in range(2):
        side.step()
    print(json.dumps(peak_mb() - before))


def memory_of(name: str, side: str, args) -> float:
    command = [sys.executable, __file__, name, "--peak-of", side, "--shapes", args.shapes]
    command += ["--threads", str(args.threads), "--molecules", str(args.molecules)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr[-800:]}")
    return json.loads(result.stdout.splitlines()[-1])


def compare(name: str, spec: CellSpec, args) -> None:
    data = data_of(spec, args.molecules)
    sides = {"ours": Side(build_model(spec), data)}
    if not args.no_reference and (reference := build_reference(spec)) is not None:
        sides["reference"] = Side(reference, data)
    parameters, atoms = count_parameters(sides["ours"].model), len(data.z)
    flops = {side: s.flops() for side, s in sides.items()}
    timing = time_sides(sides, args.rounds)
    kappa = flops["ours"] / (3 * parameters * atoms)
    print(f"{name}: N = {parameters:,}, {atoms} atoms, {data.edge_index.shape[1]} edges, kappa {kappa:.2f}")
    for side in sides:
        flushed, as_is = timing.medians[side, True], timing.medians[side, False]
        share = flops[side] / flushed / timing.peak
        extra = "" if args.no_memory else f", {memory_of(name, side, args):.0f} MB"
        print(
            f"  {side:9} {flushed:.3f} s flushed, {as_is:.3f} s as is; {flops[side] / 1e9:.1f} GFLOP, "
            f"{share:.0%} of the GEMM peak ({timing.peak / 1e9:.0f} GFLOP/s){extra}"
        )
    if timing.ratios:
        print(f"  faster by {timing.ratios[True]:.2f}x flushed, {timing.ratios[False]:.2f}x as is")
    sys.stdout.flush()


def slopes(config: dict, arch: str, args) -> None:
    """d log(step time) / d log N over the ladder, and over its wider half."""
    entry = config["architectures"][arch]
    sizes, times = [], []
    for width in entry["widths"]:
        spec = parse_name(config, f"{arch}_{entry['axis']}{width}")
        side = Side(build_model(spec), data_of(spec, args.molecules))
        timing = time_sides({"ours": side}, args.rounds, (True,))
        sizes.append(count_parameters(side.model))
        times.append(timing.medians["ours", True])
        share = side.flops() / times[-1] / timing.peak
        print(
            f"  {spec.name:12} N = {sizes[-1]:>11,}  {times[-1]:8.3f} s  {share:4.0%} of the GEMM peak",
            flush=True,
        )
        del side
        gc.collect()
    x, y = np.log(sizes), np.log(times)
    half = len(x) // 2
    slope, wide = (
        np.polyfit(x, y, 1)[0],
        np.polyfit(x[half:], y[half:], 1)[0] if len(x) - half > 1 else math.nan,
    )
    print(
        f"{arch}: step time grows as N^{slope:.2f}, as N^{wide:.2f} over the wider half of the ladder",
        flush=True,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "cells", nargs="*", metavar="CELL", help="gemnet_w64_quad, ...; with --slopes: gemnet, ..."
    )
    parser.add_argument("--shapes", choices=CONFIGS, default="paper", help="whose cells (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=1, help="more than one: wall time in place of CPU time"
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed steps a side and setting (%(default)s)")
    parser.add_argument("--molecules", type=int, default=64, help="in a batch (%(default)s)")
    parser.add_argument("--slopes", action="store_true", help="time the ladders of the config")
    parser.add_argument("--no-reference", action="store_true", help="time symscale alone")
    parser.add_argument(
        "--no-memory", action="store_true", help="leave out the processes that measure memory"
    )
    parser.add_argument("--peak-of", choices=("ours", "reference"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    config = configs.load(Path(__file__).parents[1] / CONFIGS[args.shapes])
    if args.peak_of:
        return report_peak(parse_name(config, args.cells[0]), args)
    if args.slopes:
        for arch in args.cells or config["architectures"]:
            slopes(config, arch, args)
        return
    for name in args.cells or CELLS[args.shapes].split():
        compare(name, parse_name(config, name), args)


if __name__ == "__main__":
    main()
