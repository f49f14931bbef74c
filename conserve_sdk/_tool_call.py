"""One tool call: a start, one end whatever happens, and a span around it."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from conserve_sdk import _names
from conserve_sdk.protocol import Outcome, ToolEvent

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

Emit = Callable[[ToolEvent, float], None]
"""Takes a boundary and the monotonic second at which it happened."""

_SCOPE: Final = "conserve_sdk"


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
        self._span: _ToolSpan | None = None
        self._started_s = 0.0

    def __enter__(self) -> Self:
        self._started_s = time.monotonic()
        if self._emit is not None:
            self._span = _start_span(self.name, self.call_id, self._agent) if self._traced else None
            self._emit(ToolEvent("start", self.call_id, self.name), self._started_s)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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


class _ToolSpan:
    """The `execute_tool` span, current inside the block.

    No context token is kept: a token cannot be given back from another task, which is where
    an async generator may be closed. So the context before is put back by value, and only
    where this span is still the current one.
    """

    def __init__(self, span: Span, before: Context) -> None:
        self._span = span
        self._before = before

    def end(self, exc: BaseException | None) -> None:
        from opentelemetry import context, trace

        if trace.get_current_span() is self._span:
            context.attach(self._before)
        if exc is not None:
            self._span.set_attribute(_names.ERROR_TYPE, type(exc).__qualname__)
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()


def _start_span(name: str, call_id: str, agent: str | None) -> _ToolSpan | None:
    """Open the span; None where nothing in this process has loaded OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import context, trace

    attributes = {
        _names.OPERATION: _names.EXECUTE_TOOL,
        _names.TOOL_NAME: name,
        _names.TOOL_CALL_ID: call_id,
        **({} if agent is None else {_names.AGENT_NAME: agent}),
    }
    before = context.get_current()
    span = trace.get_tracer(_SCOPE).start_span(f"{_names.EXECUTE_TOOL} {name}", attributes=attributes)
    context.attach(trace.set_span_in_context(span))
    return _ToolSpan(span, before)
