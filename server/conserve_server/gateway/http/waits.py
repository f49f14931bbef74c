"""What a connection waits for, and for how long at most: one state machine, without I/O and without a clock.

    idle      no request has begun                          `idle_s`
    head      a request's line and headers are coming       `head_s`
    body      the body of the request that is next          `body_s`
    serving   a whole request is here: ours to answer       none of the connection's: turns have their own
    draining  the answer has gone, the body goes on         `drain_s`, and `MAX_DRAINED_BYTES`

Beside any of them: bytes that were written and that the client does not take (`write_s`), also
after the connection was closed. A wait begins with its state and with nothing else: what
trickles in, or comes between requests, makes none longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Final

MAX_DRAINED_BYTES: Final = 64 * 1024 * 1024
"""Of a body whose request has been answered: twice the largest body by default, so that who sent one too
large reads why before the connection ends."""


class State(StrEnum):
    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    SERVING = "serving"
    DRAINING = "draining"


class Over(StrEnum):
    """Which wait has lasted too long."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    DRAINING = "draining"
    WRITING = "writing"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds that each wait may take."""

    idle_s: float
    head_s: float
    body_s: float
    drain_s: float
    write_s: float

    def of(self, state: State) -> float:
        """The bound of a state; infinite where nothing is the client's to do."""
        match state:
            case State.IDLE:
                return self.idle_s
            case State.HEAD:
                return self.head_s
            case State.BODY:
                return self.body_s
            case State.DRAINING:
                return self.drain_s
            case State.SERVING:
                return inf


class Waits:
    """One connection, told what happened and when. A request is owed its answer from its head's end on."""

    def __init__(self, bounds: Bounds, now_s: float) -> None:
        self._bounds = bounds
        self._since_s = now_s
        self._reading = State.IDLE
        self._owed = 0
        self._unsent: tuple[int, float] | None = None
        """Bytes that the client has not taken while nothing is added, and since when."""

    # -- what happens ----------------------------------------------------------------------------

    def head_begins(self, now_s: float) -> None:
        self._reading = State.HEAD
        self._since_s = now_s

    def head_ends(self, now_s: float) -> None:
        self._reading = State.BODY
        self._owed += 1
        self._since_s = now_s

    def body_ends(self, now_s: float) -> None:
        self._reading = State.IDLE
        self._since_s = now_s

    def answered(self, now_s: float) -> None:
        """The oldest request has its whole answer. What else is coming has its time from here on."""
        self._owed -= 1
        self._since_s = now_s

    # -- what is waited for ----------------------------------------------------------------------

    @property
    def state(self) -> State:
        is_body = self._reading is State.BODY
        if not self._owed:
            return State.DRAINING if is_body else self._reading
        return State.BODY if is_body and self._owed == 1 else State.SERVING

    @property
    def is_reading_head(self) -> bool:
        return self._reading is State.HEAD

    @property
    def is_reading_body(self) -> bool:
        return self._reading is State.BODY

    @property
    def owes(self) -> bool:
        """Whether a request waits for (the rest of) its answer."""
        return self._owed > 0

    def due_s(self) -> float:
        """When the state's time is over; infinite while the answer is ours to give."""
        return self._since_s + self._bounds.of(self.state)

    def look_at_s(self, latest_s: float, *, is_closing: bool) -> float:
        """When to look next: when a time is over, or at `latest_s`."""
        writing_s = inf if self._unsent is None else self._unsent[1] + self._bounds.write_s
        return min(inf if is_closing else self.due_s(), writing_s, latest_s)

    def unsent(self, size: int, *, is_held: bool, now_s: float) -> float:
        """So many bytes wait to be taken; `is_held`: none are added. When the time for that is over."""
        if not is_held:
            self._unsent = None
            return inf
        if self._unsent is None or size < self._unsent[0]:
            self._unsent = size, now_s
        return self._unsent[1] + self._bounds.write_s

    def over(self, size: int, *, is_held: bool, is_closing: bool, now_s: float) -> Over | None:
        """The wait that has lasted too long by now. A connection that is closing waits to be read only."""
        if now_s >= self.unsent(size, is_held=is_held or is_closing, now_s=now_s):
            return Over.WRITING
        if is_closing or now_s < self.due_s():
            return None
        return Over(self.state)
