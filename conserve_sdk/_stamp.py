"""The conversation on every span of the process."""

from __future__ import annotations

import sys
from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from conserve_sdk import _names
from conserve_sdk._identity import resolve_identity


class ConversationStamp(SpanProcessor):
    """Writes the conversation's id on spans as they start.

    The official instrumentations write `gen_ai.conversation.id` on some spans, when they
    finish; tools, HTTP clients and the user's own spans get it from here.
    """

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Stamp from our own block, else the graph's thread, else what is around the span."""
        identity = resolve_identity()
        if identity is None:
            inherited = _announced_id(parent_context) or _parents_id(parent_context)
            if inherited is not None:
                _set_id(span, inherited)
            return
        _set_id(span, identity.conversation_id)
        if identity.parent_id is not None:
            span.set_attribute(_names.PARENT_CONVERSATION_ID, identity.parent_id)
        if identity.agent is not None:
            span.set_attribute(_names.AGENT, identity.agent)
        for key, value in identity.metadata.items():
            span.set_attribute(_names.METADATA + key, value)


def _set_id(span: Span, conversation_id: str) -> None:
    span.set_attribute(_names.CONVERSATION_ID, conversation_id)
    span.set_attribute(_names.SESSION_ID, conversation_id)


def _announced_id(context: Context | None) -> str | None:
    """The id that an official instrumentation will write when the span finishes.

    A graph's root span starts before the graph's configuration is current, but its id is in
    the context by then. The module is private: without it the root lacks `session.id` only.
    """
    module = sys.modules.get("opentelemetry.util.genai._conversation_context")
    read: Callable[[Context | None], str | None] | None = getattr(module, "get_ambient_conversation_id", None)
    return read(context) if read is not None else None


def _parents_id(context: Context | None) -> str | None:
    parent = trace.get_current_span(context)
    attributes = (parent.attributes or {}) if isinstance(parent, ReadableSpan) else {}
    conversation_id = attributes.get(_names.CONVERSATION_ID)
    return conversation_id if isinstance(conversation_id, str) else None
