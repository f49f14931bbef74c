"""The conversation on every span of the process, and which conversations are traced at all."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import (
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import Link, SpanKind
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes

from conserve_sdk import _names
from conserve_sdk._identity import Identity
from conserve_sdk._resolving import resolve_identity
from conserve_sdk.protocol import SAMPLER, SAMPLER_ARGUMENT_VARIABLE, SAMPLER_VARIABLE, is_kept, kept_share

_log = logging.getLogger("conserve_sdk")


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
                span.set_attributes(Identity(inherited).attributes)
            return
        span.set_attributes(identity.attributes)  # at once: each setting takes the span's lock


class ConversationSampler(Sampler):
    """Keeps this share of all conversations, each whole: by the hash of the outermost one's id.

    Sub-agents' conversations go with the one around them. Spans outside of any conversation
    go with their parent, or by their trace's id.
    """

    def __init__(self, share: float) -> None:
        self._share: Final = share
        self._others: Final = ParentBased(TraceIdRatioBased(share))

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Called by OpenTelemetry as a span starts."""
        identity = resolve_identity()
        if identity is not None:
            deciding: str | None = identity.root_id or identity.conversation_id
        else:
            deciding = _announced_id(parent_context)
        if deciding is None:
            return self._others.should_sample(
                parent_context, trace_id, name, kind, attributes, links, trace_state
            )
        is_sampled = is_kept(deciding, self._share)
        decision = Decision.RECORD_AND_SAMPLE if is_sampled else Decision.DROP
        state = trace.get_current_span(parent_context).get_span_context().trace_state
        return SamplingResult(decision, attributes if is_sampled else None, state)

    def get_description(self) -> str:
        """As OpenTelemetry names samplers."""
        return f"ConversationSampler{{{self._share}}}"


def sampler_from_environment() -> Sampler | None:
    """The sampler that OTEL_TRACES_SAMPLER asks for, if it is ours; a wrong share keeps all, and says so."""
    if os.environ.get(SAMPLER_VARIABLE, "").strip().lower() != SAMPLER:
        return None
    try:
        return ConversationSampler(kept_share(os.environ.get(SAMPLER_ARGUMENT_VARIABLE, "")))
    except ValueError as error:
        _log.warning("all conversations are traced: %s", error)
        return ConversationSampler(1.0)


def conversation_sampler(share: str) -> Sampler:
    """For OpenTelemetry's own configuration, which finds it as `conserve_conversation`."""
    return ConversationSampler(kept_share(share))


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
