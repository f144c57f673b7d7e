"""A trainer in little: a counter-based 'training' whose every value depends on all before it.

It saves, stops and resumes through symscale.checkpoint as the real one does, writes its curve through a temporary
name, and keeps a journal of every step it ever computed, so that a test can count them. At step `--hold-at` it
waits for the file `go`, so that whatever is to happen to it happens there.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from symscale.checkpoint import EXIT_STOPPED, CheckpointFolder, StopRequest, write_atomically


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cell", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--hold-at", type=int, default=-1)
    parser.add_argument("--save-every", type=int, default=10**9)
    parser.add_argument("--fail-at", type=int, default=-1)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    if args.steps == 0:  # a null cell: nothing but the overhead
        Path(args.checkpoint).mkdir(parents=True, exist_ok=True)
        with open(Path(args.checkpoint, "journal.txt"), "a") as journal:
            print("starts at step 0", file=journal)
        write_atomically(Path(args.output), b"[]")
        return 0
    import torch  # noqa: F401 (as the real one does, before the first step rather than at the first save)

    with CheckpointFolder(args.checkpoint, f"spec of {args.cell}") as folder, StopRequest() as stop:
        state = folder.load() or {"step": 0, "value": 1, "curve": []}
        journal = open(Path(args.checkpoint, "journal.txt"), "a")
        print(f"{os.getpid()} starts at step {state['step']}", file=journal, flush=True)
        while state["step"] < args.steps:
            if state["step"] == args.fail_at:
                raise FloatingPointError(f"loss of {args.cell} is not finite at step {args.fail_at}")
            while state["step"] == args.hold_at and not Path("go").exists() and not stop.requested:
                time.sleep(0.2)
            if stop.requested:
                folder.save(state)
                folder.stopped()
                return EXIT_STOPPED
            state["step"] += 1
            state["value"] = (state["value"] * 6364136223846793005 + state["step"]) % 2**64
            state["curve"].append([state["step"], state["value"]])
            print(state["step"], file=journal, flush=True)
            folder.progress(step=state["step"], total_steps=args.steps)
            if state["step"] % args.save_every == 0:
                folder.save(state)
        folder.save(state)
        write_atomically(Path(args.output), json.dumps(state["curve"]).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
