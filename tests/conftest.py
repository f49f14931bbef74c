"""How many tests run side by side."""

from __future__ import annotations

import os
from typing import Final

import pytest

_WORKERS_PER_CPU: Final = 2
"""Many tests wait, for an engine's look or a server's end, more than they compute."""

_MOST_WORKERS: Final = 16
"""Each collects all tests by itself."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` stands for (pytest-xdist's hook)."""
    return min(_WORKERS_PER_CPU * (os.cpu_count() or 1), _MOST_WORKERS)
