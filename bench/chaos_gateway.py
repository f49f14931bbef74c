"""`conserve serve` whose books of turns fail on command: SIGUSR1 makes the next ones raise.

Nothing in the product can be told to do so; what is patched here is what a bug in a book would do.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from conserve_server.cli.main import main
from conserve_server.serving.turns import bookkeepers

FAILURES = 200
"""Calls that raise after each signal."""
_BROKEN = (
    (bookkeepers.MetricsBook, "ends"),
    (bookkeepers.TraceBook, "begins"),
    (bookkeepers.EnergyBook, "begins"),
    (bookkeepers.EnergyBook, "ends"),
    (bookkeepers.SignalsBook, "begins"),
)
_left = [0]


def _failing(hear: Callable[..., None]) -> Callable[..., None]:
    def heard(*args: Any) -> None:
        if _left[0] > 0:
            _left[0] -= 1
            raise ValueError("a book that fails")
        hear(*args)

    return heard


def _begin(_number: int, _frame: FrameType | None) -> None:
    _left[0] = FAILURES


if __name__ == "__main__":
    for book, event in _BROKEN:
        setattr(book, event, _failing(getattr(book, event)))
    signal.signal(signal.SIGUSR1, _begin)
    sys.exit(main(sys.argv[1:]))
