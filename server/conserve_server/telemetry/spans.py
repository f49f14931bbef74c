"""The server side of a turn's trace: one span for the turn, one for each step of its life.

The turn's parent is whatever the client sent as `traceparent` (its `chat` span when the SDK
is used). Every span carries the conversation's id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NoOpTracer,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from conserve_server.telemetry import names

_PROPAGATOR = TraceContextTextMapPropagator()
_NOT_RECORDED: Final = nullcontext(INVALID_SPAN)
Attributes = Mapping[str, AttributeValue]
OnError = Callable[[Exception], None]


class TurnTraces:
    """Begins the traces of turns, of at most `max_per_s` turns a second.

    Recording and writing a turn's spans takes longer than serving it: without a bound the
    busiest second is the one that tracing slows down most, and the exporter drops single
    spans then. Beyond the bound a turn has no spans at all. `on_error` hears of a step that could
    not be traced: it runs all the same.
    """

    def __init__(self, tracer: Tracer, max_per_s: float, on_error: OnError) -> None:
        self._tracer = tracer
        self._on_error = on_error
        self._max_per_s = max_per_s
        self._left = max(1.0, max_per_s)
        self._filled_s: float | None = None
        self.records = not isinstance(tracer, NoOpTracer) and max_per_s > 0
        """Whether any turn is traced."""

    def begin(
        self,
        carrier: Mapping[str, str],
        conversation_id: str,
        attributes: Callable[[], Attributes],
        now_s: float,
    ) -> TurnTrace:
        """A turn's trace; `carrier` has the client's trace context. Times are monotonic seconds."""
        if not self.records or not self._take(now_s):
            return TurnTrace(None, carrier, conversation_id, {}, self._on_error)
        return TurnTrace(self._tracer, carrier, conversation_id, attributes(), self._on_error)

    def _take(self, now_s: float) -> bool:
        """A bucket that fills with `max_per_s` and holds a second's worth."""
        if self._filled_s is not None:
            self._left += (now_s - self._filled_s) * self._max_per_s
            self._left = min(self._left, max(1.0, self._max_per_s))
        self._filled_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


class TurnTrace:
    """One turn's spans; none, at no cost, without a tracer. `end` a recorded one exactly once."""

    def __init__(
        self,
        tracer: Tracer | None,
        carrier: Mapping[str, str],
        conversation_id: str,
        attributes: Attributes,
        on_error: OnError,
    ) -> None:
        self._tracer = tracer
        self._on_error = on_error
        self._carrier = carrier
        if tracer is None:
            return
        self._shared = {names.CONVERSATION_ID: conversation_id, names.SESSION_ID: conversation_id}
        parent = _PROPAGATOR.extract(carrier)
        self.has_parent = get_current_span(parent).get_span_context().is_valid
        """Whether the client has a span of its own for this turn."""
        self._turn = tracer.start_span(
            names.SPAN_TURN,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={**self._shared, **attributes},
        )
        self._context: Context = set_span_in_context(self._turn)

    @property
    def span_context(self) -> SpanContext:
        """What other spans refer to this turn by."""
        return self._turn.get_span_context()

    @property
    def is_recorded(self) -> bool:
        return self._tracer is not None

    def step(
        self, name: str, attributes: Attributes, kind: SpanKind = SpanKind.INTERNAL
    ) -> AbstractContextManager[Span]:
        """A child span around a step; an error or a cancellation ends and marks it."""
        if self._tracer is None:
            return _NOT_RECORDED
        attributes = {**self._shared, **attributes}
        try:
            span = self._tracer.start_span(name, context=self._context, kind=kind, attributes=attributes)
        except Exception as error:  # noqa: BLE001 - whoever counts it is told, and the step runs
            self._on_error(error)
            return _NOT_RECORDED
        return _Step(span, self._on_error)

    def headers(self, span: Span) -> dict[str, str]:
        """`traceparent` for an engine: its spans become the step's children, else the client's."""
        if self._tracer is None:
            return {name: self._carrier[name] for name in _PROPAGATOR.fields if name in self._carrier}
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(span))
        return carrier

    def past_step(self, name: str, start_ns: int, end_ns: int, attributes: Attributes) -> None:
        """A child span for a step that was learned of afterwards (times in nanoseconds since the epoch)."""
        if self._tracer is None:
            return
        merged = {**self._shared, **attributes}
        span = self._tracer.start_span(name, context=self._context, start_time=start_ns, attributes=merged)
        span.end(end_ns)

    def end(self, attributes: Attributes, *, error_type: str | None, message: str | None) -> None:
        """Close the turn's span; one with an `error_type` has failed."""
        self._turn.set_attributes(attributes)
        if error_type is not None:
            _mark(self._turn, error_type, message)
        self._turn.end()


def write_conversation_span(
    tracer: Tracer,
    conversation_id: str,
    attributes: Attributes,
    *,
    turns: Iterable[SpanContext],
    start_ns: int,
    end_ns: int,
) -> None:
    """The summary of an ended conversation: a trace of its own, linked to those of its turns.

    It is written if its last turn was sampled, so that a conversation is there whole or not at all.
    Times are nanoseconds since the epoch.
    """
    links = [Link(context) for context in turns if context.is_valid]
    if links and not links[-1].context.trace_flags.sampled:
        return
    shared = {names.CONVERSATION_ID: conversation_id, names.SESSION_ID: conversation_id}
    span = tracer.start_span(
        names.SPAN_CONVERSATION,
        context=Context(),
        attributes={**shared, **attributes},
        links=links,
        start_time=start_ns,
    )
    span.end(end_ns)


class _Step:
    """A span that ends with its block."""

    def __init__(self, span: Span, on_error: OnError) -> None:
        self._span = span
        self._on_error = on_error

    def __enter__(self) -> Span:
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                _mark(self._span, getattr(error, "code", None) or type(error).__name__, str(error))
            self._span.end()
        except Exception as problem:  # noqa: BLE001 - as above
            self._on_error(problem)


def _mark(span: Span, error_type: str, message: str | None) -> None:
    span.set_attribute(names.ERROR_TYPE, error_type)
    span.set_status(Status(StatusCode.ERROR, message))
