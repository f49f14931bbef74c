"""What became of each turn, in columns: a row a turn, in the order in which turns ended."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from conserve_sdk.protocol import Path

PATHS = tuple(Path)


@dataclass(slots=True)
class LiveTurn:
    """A turn on its way. Times are seconds since the workload's start.

    `placed_s`: when its first leg was sent. `prefill_s`: how long its prefill leg took, 0 without
    one. `moved_tokens` came over a link. `cached_tokens` of its prompt were computed for no part
    of it, on the engine that prefilled it. `tries` counts what engine failures undid.
    """

    conversation: int
    index: int
    is_last: bool
    prompt_tokens: int
    output_tokens: int
    arrived_s: float
    placed_s: float | None = None
    prefill_s: float = 0.0
    first_token_s: float = 0.0
    moved_tokens: int = 0
    cached_tokens: int = 0
    path: Path = Path.PINNED
    tries: int = 1


class Records:
    """Columns of all ended turns. About 70 bytes a turn."""

    def __init__(self) -> None:
        self.conversation = array("i")
        self.index = array("i")
        self.is_last = array("b")
        self.path = array("b")
        self.tries = array("b")
        self.arrived_s = array("d")
        self.wait_s = array("d")
        self.prefill_s = array("d")
        self.first_token_s = array("d")
        self.ended_s = array("d")
        self.prompt_tokens = array("i")
        self.output_tokens = array("i")
        self.cached_tokens = array("i")
        self.moved_tokens = array("i")

    def __len__(self) -> int:
        return len(self.index)

    def add(self, turn: LiveTurn, ended_s: float) -> None:
        """The turn has ended."""
        self.conversation.append(turn.conversation)
        self.index.append(turn.index)
        self.is_last.append(turn.is_last)
        self.path.append(PATHS.index(turn.path))
        self.tries.append(min(turn.tries, 127))
        self.arrived_s.append(turn.arrived_s)
        self.wait_s.append((turn.placed_s or turn.arrived_s) - turn.arrived_s)
        self.prefill_s.append(turn.prefill_s)
        self.first_token_s.append(turn.first_token_s)
        self.ended_s.append(ended_s)
        self.prompt_tokens.append(turn.prompt_tokens)
        self.output_tokens.append(turn.output_tokens)
        self.cached_tokens.append(turn.cached_tokens)
        self.moved_tokens.append(turn.moved_tokens)
