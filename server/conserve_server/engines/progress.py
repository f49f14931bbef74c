"""What the launcher says while engines start, run and stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["preparing", "starting", "ready", "restarting", "failed"]


@dataclass(frozen=True, slots=True)
class Progress:
    """`name` (an engine, or the model) is in `state` since `elapsed_s`; `detail` is its last log line."""

    name: str
    state: State
    elapsed_s: float
    detail: str = ""


Report = Callable[[Progress], None]


def ignore(_progress: Progress) -> None:
    """The report of someone who does not want to know."""
