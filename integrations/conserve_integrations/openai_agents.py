"""The OpenAI Agents SDK: a run's tool calls become tool boundaries of the conversation.

set_default_openai_client(conserve_sdk.wrap(AsyncOpenAI(base_url=gateway, api_key="-")))
conserve_sdk.instrument()
async with conserve_sdk.conversation(agent="researcher") as conversation:
    await Runner.run(agent, question, run_config=run_config(conversation))

Without `instrument()`, `activate()` reports the tools. Both listen to the SDK's own tracing:
runs with tracing disabled report no tools.
"""

from __future__ import annotations

import functools
from typing import Any

from agents import RunConfig
from agents.tracing import FunctionSpanData, Span, Trace, TracingProcessor, add_trace_processor

from conserve_sdk import Conversation, ToolCall, current_conversation


class ToolBoundaries(TracingProcessor):
    """Tells the gateway when the tools of a run start and end.

    The SDK calls it in the tool's own task, so the conversation is the one around the run. A
    call's id is the SDK's span id: its tracing does not know the model's. Every span ends,
    also that of a tool which raised or was cancelled; one that waits for approval has a short
    call for the question and another for the work.
    """

    def __init__(self) -> None:
        self._open: dict[str, ToolCall] = {}

    def on_span_start(self, span: Span[Any]) -> None:
        """Called by the SDK: a step begins, of which only tools are told."""
        conversation = current_conversation()
        if conversation is None or not isinstance(span.span_data, FunctionSpanData):
            return
        call = conversation.tool(span.span_data.name, span.span_id, traced=False)
        self._open[span.span_id] = call.__enter__()

    def on_span_end(self, span: Span[Any]) -> None:
        """Called by the SDK: the step has ended; its error is told by kind, never by text."""
        call = self._open.pop(span.span_id, None)
        if call is not None:
            error = RuntimeError() if span.error is not None else None
            call.__exit__(type(error) if error else None, error, None)

    def on_trace_start(self, trace: Trace) -> None:
        """Called by the SDK: a run begins."""

    def on_trace_end(self, trace: Trace) -> None:
        """Called by the SDK: a run has ended."""

    def shutdown(self) -> None:
        """Called by the SDK at the end of the process."""

    def force_flush(self) -> None:
        """Nothing is kept here."""


def run_config(conversation: Conversation, **options: Any) -> RunConfig:
    """The configuration of a run whose group is this conversation; `options` are RunConfig's own."""
    return RunConfig(group_id=conversation.id, **options)


@functools.cache
def activate() -> None:
    """Report the tools of every run of this process."""
    add_trace_processor(ToolBoundaries())
