"""The architectures by name. A new one is a file here and a line in MODELS."""

from __future__ import annotations

MODELS: dict[str, type] = {}
