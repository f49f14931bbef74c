"""One turn of the application: the model calls and tools between a question and its answer."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Final, Self

from conserve_sdk import _names
from conserve_sdk._spans import Attribute, BlockSpan, start_span

_CONTENT: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""OpenTelemetry's own switch; these of its values ask for content on spans."""
_ON_SPANS: Final = frozenset({"true", "span_only", "span_and_event"})


class Turn:
    """A turn for `with` and `async with`: one `invoke_agent` span with all that happens inside below it.

    For agents that no instrumentation gives a root span; without one, each model call of a
    turn would be a trace of its own. The gateway hears nothing of it: it counts model calls.
    """

    def __init__(self, conversation_id: str, agent: str | None, index: int, *, traced: bool) -> None:
        self.index: Final = index
        self._conversation_id = conversation_id
        self._agent = agent
        self._traced = traced
        self._span: BlockSpan | None = None

    def record(self, *, question: str | None = None, answer: str | None = None) -> None:
        """The turn's text for a dashboard; dropped unless OpenTelemetry's content switch asks for it.

        `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`: `span_only`, `span_and_event` or `true`.
        """
        if self._span is None or os.environ.get(_CONTENT, "").strip().lower() not in _ON_SPANS:
            return
        given = {_names.INPUT: question, _names.OUTPUT: answer}
        self._span.set({name: text for name, text in given.items() if text is not None})

    def __enter__(self) -> Self:
        if self._traced:
            name = " ".join(filter(None, (_names.INVOKE_AGENT, self._agent)))
            self._span = start_span(name, self._attributes())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        span, self._span = self._span, None
        if span is not None:
            span.end(exc)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def _attributes(self) -> dict[str, Attribute]:
        return {
            _names.OPERATION: _names.INVOKE_AGENT,
            _names.CONVERSATION_ID: self._conversation_id,
            _names.SESSION_ID: self._conversation_id,
            _names.TURN_INDEX: self.index,
            **({} if self._agent is None else {_names.AGENT_NAME: self._agent}),
        }
