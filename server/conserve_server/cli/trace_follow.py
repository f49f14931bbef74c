"""`conserve trace --follow`: the list or a timeline, drawn anew as spans are written."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Final, Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from conserve_server.telemetry.conversations import ConversationList
from conserve_server.telemetry.render import conversations_view, timeline_view
from conserve_server.telemetry.spans_file import Span
from conserve_server.telemetry.spans_tail import SpansTail
from conserve_server.telemetry.timeline import timeline

LOOK_INTERVAL_S: Final = 1.0
"""Spans are written in batches every few seconds: looking more often shows nothing sooner."""


class Followed(Protocol):
    """Something that is drawn from a folder's spans as they come."""

    def look(self) -> bool:
        """Read what was written since; whether that changes the picture."""
        ...

    def view(self, width: int) -> RenderableType: ...


class FollowedList:
    """The last conversations of a folder, which need not be there yet."""

    def __init__(self, folder: pathlib.Path, *, last: int) -> None:
        self._folder = folder
        self._last = last
        self._tail = SpansTail(folder)
        self._list = ConversationList()

    def look(self) -> bool:
        spans = list(self._tail.look())
        self._list.add(spans)
        return bool(spans)

    def view(self, width: int) -> RenderableType:  # noqa: ARG002  the table fits itself
        lines = self._list.lines()
        if not lines:
            return Text(f"no conversation in {self._folder} yet")
        return conversations_view(lines[: self._last], [line.id for line in lines])


class FollowedTimeline:
    """One conversation's timeline: all of it, or its last turns."""

    def __init__(self, folder: pathlib.Path, conversation_id: str, *, last: int | None) -> None:
        self._conversation_id = conversation_id
        self._last = last
        self._tail = SpansTail(folder, conversation_id=conversation_id)
        self._spans: list[Span] = []

    def look(self) -> bool:
        before = len(self._spans)
        self._spans += self._tail.look()
        return len(self._spans) > before

    def view(self, width: int) -> RenderableType:
        return timeline_view(timeline(self._conversation_id, self._spans), width, last=self._last)


def follow(followed: Followed, console: Console, *, wait: Callable[[float], object]) -> None:
    """Draw until interrupted; `wait` takes the seconds until the next look.

    On a terminal the picture is replaced, with its end kept in sight; elsewhere each new one is
    printed below the last.
    """
    followed.look()
    if not console.is_terminal:
        _follow_as_text(followed, console, wait)
        return
    with Live(
        followed.view(console.width), console=console, auto_refresh=False, vertical_overflow="crop"
    ) as live:
        try:
            while True:
                wait(LOOK_INTERVAL_S)
                if followed.look():
                    live.update(followed.view(console.width), refresh=True)
        except KeyboardInterrupt:
            return


def _follow_as_text(followed: Followed, console: Console, wait: Callable[[float], object]) -> None:
    try:
        console.print(followed.view(console.width))
        while True:
            wait(LOOK_INTERVAL_S)
            if followed.look():
                console.print(Text(), followed.view(console.width), sep="\n")
    except KeyboardInterrupt:
        return
