"""Server-sent events (WHATWG HTML, 9.2.6) as they come: whole ones, wherever the network cut them.

An event ends with an empty line; a line ends with LF, CR LF or CR. vLLM writes LF, proxies and
other servers in front of it may write anything.
"""

from __future__ import annotations

import re
from typing import Final

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
"""Of one event: a stream of Responses ends with one that repeats the whole answer."""
_EMPTY_LINE: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
"""A CR at the end of what came counts as a whole line end: the LF that may follow is an empty line more."""
_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")


class EventTooLong(Exception):
    """An event has more than MAX_EVENT_BYTES."""


class EventBuffer:
    """Holds what came of an event that has not ended yet."""

    def __init__(self) -> None:
        self.partial = b""

    def take(self, chunk: bytes) -> bytes:
        """The events that are whole with this chunk, with what ends them. Raises EventTooLong."""
        seen = max(0, len(self.partial) - 3)
        pending = self.partial + chunk if self.partial else chunk
        end = _end_of_last_event(pending, seen)
        self.partial = pending[end:]
        if len(self.partial) > MAX_EVENT_BYTES:
            raise EventTooLong
        return pending[:end]


def split_events(events: bytes) -> list[bytes]:
    """Whole events one by one, each with what ends it."""
    if b"\r" not in events:
        return [event + b"\n\n" for event in events.split(b"\n\n")[:-1]]
    found, start = [], 0
    for end in _EMPTY_LINE.finditer(events):
        found.append(events[start : end.end()])
        start = end.end()
    return found


def data_of(event: bytes) -> bytes:
    """What an event carries: the values of its `data` fields."""
    if event.startswith(b"data:") and event.find(b"\n") == len(event.rstrip()):
        return event[5:].strip()
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)


def is_between_events(last: bytes) -> bool:
    """Whether bytes that end so leave a stream where a new event may begin."""
    return not last or last.endswith(_ENDS)


def _end_of_last_event(pending: bytes, start: int) -> int:
    if b"\r" not in pending:
        last = pending.rfind(b"\n\n", start)
        return last + 2 if last >= 0 else 0
    end = 0
    for found in _EMPTY_LINE.finditer(pending, start):
        end = found.end()
    return end
