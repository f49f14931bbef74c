"""A span that is current inside a block, wherever the block is left."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from conserve_sdk import _names

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

_SCOPE: Final = "conserve_sdk"

Attribute = str | bool | int | float


class BlockSpan:
    """A span, current inside its block.

    No context token is kept: a token cannot be given back from another task, which is where
    an async generator may be closed. So the context before is put back by value, and only
    where this span is still the current one.
    """

    def __init__(self, span: Span, before: Context) -> None:
        self._span = span
        self._before = before

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        """Write attributes that were learned inside the block."""
        self._span.set_attributes(attributes)

    def end(self, exc: BaseException | None) -> None:
        """Close it; what was raised is named by its class, never by its message."""
        from opentelemetry import context, trace

        if trace.get_current_span() is self._span:
            context.attach(self._before)
        if exc is not None:
            self._span.set_attribute(_names.ERROR_TYPE, type(exc).__qualname__)
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()


def start_span(name: str, attributes: Mapping[str, Attribute]) -> BlockSpan | None:
    """Open a span; None where nothing in this process has loaded OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import context, trace

    before = context.get_current()
    span = trace.get_tracer(_SCOPE).start_span(name, attributes=attributes)
    context.attach(trace.set_span_in_context(span))
    return BlockSpan(span, before)
