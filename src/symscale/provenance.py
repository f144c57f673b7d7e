"""Where a result comes from: code, packages, device."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("symscale", "torch", "torch-geometric", "schedulefree", "numpy", "e3nn")


def git_commit() -> str | None:
    """Commit of the checkout this package runs from, with '+' if it has changes; None outside one."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no", ".") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: torch.device) -> str:
    """'NVIDIA A100-SXM4-40GB', or the processor's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def provenance(device: torch.device) -> dict:
    """Metadata of a curve that says how it was made."""
    return {
        "git_commit": git_commit(),
        "versions": {name: metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "job": os.environ.get("SLURM_JOB_ID"),
    }
