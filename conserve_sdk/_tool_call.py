"""One tool call: a start, one end whatever happens, and a span around it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Self

from conserve_sdk import _names
from conserve_sdk._spans import BlockSpan, start_span
from conserve_sdk.protocol import Outcome, ToolEvent

Emit = Callable[[ToolEvent, float], None]
"""Takes a boundary and the monotonic second at which it happened."""


class ToolCall:
    """A tool call of a conversation, for `with` and `async with`; exceptions pass unchanged.

    `duration_s` and `outcome` are None until the block has ended. What ends a block without
    being an error (cancellation, a closed generator, an interrupt) counts as cancelled.
    """

    def __init__(
        self, name: str, call_id: str | None, *, agent: str | None, emit: Emit | None, traced: bool = True
    ) -> None:
        self.name = name
        self.call_id = call_id or uuid.uuid4().hex
        self.duration_s: float | None = None
        self.outcome: Outcome | None = None
        self._agent = agent
        self._emit = emit
        self._traced = traced
        self._span: BlockSpan | None = None
        self._started_s = 0.0

    def __enter__(self) -> Self:
        self._started_s, self.outcome = time.monotonic(), None
        if self._emit is not None:
            self._span = self._start_span() if self._traced else None
            self._emit(ToolEvent("start", self.call_id, self.name), self._started_s)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.outcome is not None:
            return  # whoever ends a call late finds it ended, for one by the task that ran it
        ended_s = time.monotonic()
        self.duration_s = ended_s - self._started_s
        self.outcome = _outcome(exc)
        if self._span is not None:
            self._span.end(exc)
        if self._emit is not None:
            event = ToolEvent(
                "end", self.call_id, self.name, duration_s=self.duration_s, outcome=self.outcome
            )
            self._emit(event, ended_s)

    def _start_span(self) -> BlockSpan | None:
        attributes = {
            _names.OPERATION: _names.EXECUTE_TOOL,
            _names.TOOL_NAME: self.name,
            _names.TOOL_CALL_ID: self.call_id,
            **({} if self._agent is None else {_names.AGENT_NAME: self._agent}),
        }
        return start_span(f"{_names.EXECUTE_TOOL} {self.name}", attributes)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)


def _outcome(exc: BaseException | None) -> Outcome:
    if exc is None:
        return Outcome.COMPLETED
    return Outcome.FAILED if isinstance(exc, Exception) else Outcome.CANCELLED
