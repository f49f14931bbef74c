"""Sampling that keeps or drops a conversation whole, agreeing with the SDK's on which."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, get_current_span
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes

from conserve_sdk.protocol import SAMPLER, SAMPLER_ARGUMENT_VARIABLE, SAMPLER_VARIABLE, is_kept, kept_share
from conserve_server.core.errors import ConfigError
from conserve_server.telemetry import names


class ConversationSampler(Sampler):
    """Keeps this share of all conversations, by the hash of their ids.

    For spans without a parent; a client's own decision comes with its `traceparent` and holds
    (`ParentBased`). A conversation's summary is kept if one of the turns it links to was.
    """

    def __init__(self, share: float) -> None:
        self._share: Final = share

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
        del trace_id, name, kind, trace_state
        conversation_id = (attributes or {}).get(names.CONVERSATION_ID)
        if links:
            is_sampled = any(link.context.trace_flags.sampled for link in links)
        else:
            is_sampled = is_kept(str(conversation_id), self._share)
        decision = Decision.RECORD_AND_SAMPLE if is_sampled else Decision.DROP
        state = get_current_span(parent_context).get_span_context().trace_state
        return SamplingResult(decision, attributes if is_sampled else None, state)

    def get_description(self) -> str:
        """As OpenTelemetry names samplers."""
        return f"ConversationSampler{{{self._share}}}"


def sampler_from_environment() -> Sampler | None:
    """The sampler that OTEL_TRACES_SAMPLER asks for, if it is ours. Raises ConfigError for a wrong share."""
    if os.environ.get(SAMPLER_VARIABLE, "").strip().lower() != SAMPLER:
        return None
    try:
        return ParentBased(ConversationSampler(kept_share(os.environ.get(SAMPLER_ARGUMENT_VARIABLE, ""))))
    except ValueError as error:
        raise ConfigError(str(error)) from error
