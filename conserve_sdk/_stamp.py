"""The conversation on every span of the process."""

from __future__ import annotations

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
        """Stamp from our own block, else the graph's thread, else the parent span in this process."""
        identity = resolve_identity()
        if identity is None:
            self._inherit(span, parent_context)
            return
        _set_id(span, identity.conversation_id)
        if identity.parent_id is not None:
            span.set_attribute(_names.PARENT_CONVERSATION_ID, identity.parent_id)
        if identity.agent is not None:
            span.set_attribute(_names.AGENT, identity.agent)

    def _inherit(self, span: Span, parent_context: Context | None) -> None:
        parent = trace.get_current_span(parent_context)
        inherited = (parent.attributes or {}) if isinstance(parent, ReadableSpan) else {}
        conversation_id = inherited.get(_names.CONVERSATION_ID)
        if isinstance(conversation_id, str):
            _set_id(span, conversation_id)

    def _on_ending(self, span: Span) -> None:
        """Where an instrumentation knew the id only at the end, let the session follow it."""
        attributes = span.attributes or {}
        conversation_id = attributes.get(_names.CONVERSATION_ID)
        if isinstance(conversation_id, str) and attributes.get(_names.SESSION_ID) != conversation_id:
            span.set_attribute(_names.SESSION_ID, conversation_id)


def _set_id(span: Span, conversation_id: str) -> None:
    span.set_attribute(_names.CONVERSATION_ID, conversation_id)
    span.set_attribute(_names.SESSION_ID, conversation_id)
