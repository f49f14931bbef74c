"""What the plugin reads from an engine's environment."""

from __future__ import annotations

import os


def positive(name: str) -> int | None:
    """A positive whole number, None where the variable is unset. Raises ValueError for anything else."""
    text = os.environ.get(name)
    if text is None:
        return None
    value = int(text)
    if value <= 0:
        raise ValueError(f"must be greater than 0, got {value}")
    return value
