"""The server side of a turn's trace: one span for the turn, one for each step of its life.

The turn's parent is whatever the client sent as `traceparent` (its `chat` span when the SDK
is used). Every span carries the conversation's id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
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
Attributes = Mapping[str, AttributeValue]


class TurnTrace:
    """One turn's spans. `end` must be called exactly once."""

    def __init__(
        self, tracer: Tracer, carrier: Mapping[str, str], conversation_id: str, attributes: Attributes
    ) -> None:
        self._tracer = tracer
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

    @contextmanager
    def step(self, name: str, attributes: Attributes, kind: SpanKind = SpanKind.INTERNAL) -> Iterator[Span]:
        """A child span around a step; an error or a cancellation ends and marks it."""
        span = self._tracer.start_span(
            name, context=self._context, kind=kind, attributes={**self._shared, **attributes}
        )
        try:
            yield span
        except BaseException as error:
            _mark(span, getattr(error, "code", None) or type(error).__name__, str(error))
            raise
        finally:
            span.end()

    def past_step(self, name: str, start_ns: int, end_ns: int, attributes: Attributes) -> None:
        """A child span for a step that was learned of afterwards (times in nanoseconds since the epoch)."""
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


def trace_headers(span: Span) -> dict[str, str]:
    """`traceparent` for an engine, so that its own spans become the step's children."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, set_span_in_context(span))
    return carrier


def _mark(span: Span, error_type: str, message: str | None) -> None:
    span.set_attribute(names.ERROR_TYPE, error_type)
    span.set_status(Status(StatusCode.ERROR, message))
