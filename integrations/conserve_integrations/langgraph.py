"""LangGraph and LangChain: a graph's tool calls become tool boundaries of the conversation.

with conserve_sdk.conversation() as conversation:
    graph.invoke(state, config=run_config(conversation))

After `conserve_sdk.instrument()` every run inside a conversation's block reports its tools.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ToolException
from langchain_core.tracers.context import register_configure_hook

from conserve_sdk import Conversation, ToolCall, current_conversation


class ToolBoundaries(BaseCallbackHandler):
    """Tells the gateway when the tools of a graph start and end.

    Without a conversation of its own it reports to the one whose block the tool runs in.
    Spans are the LangChain instrumentation's. Parallel tools, and ends that come late after
    a sibling failed, are each matched by LangChain's run id. A tool that waits for a person
    (`interrupt`) ends as cancelled: it runs anew when the graph is resumed.
    """

    run_inline = True  # in the run's own task: a boundary keeps its place among the model calls

    def __init__(self, conversation: Conversation | None = None) -> None:
        self._conversation = conversation
        self._open: dict[UUID, tuple[ToolCall, Callable[[], object]]] = {}

    def on_tool_start(
        self, serialized: dict[str, Any] | None, input_str: str, *, run_id: UUID, **kwargs: Any
    ) -> None:
        """Called by LangChain: the boundary where a tool begins."""
        del input_str  # content is never sent
        conversation = self._conversation or current_conversation()
        if conversation is None:
            return
        name = kwargs.get("name") or (serialized or {}).get("name") or "tool"
        call_id = kwargs.get("tool_call_id") or str(run_id)
        call = conversation.tool(str(name), str(call_id), traced=False)
        self._open[run_id] = call.__enter__(), self._watch_task(run_id)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Called by LangChain: the tool returned, if only to say that it failed (`handle_tool_error`)."""
        del kwargs
        self._close(run_id, ToolException() if getattr(output, "status", None) == "error" else None)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Called by LangChain: the tool raised, if only to interrupt its graph."""
        del kwargs
        self._close(run_id, asyncio.CancelledError() if is_interrupt(error) else error)

    def _watch_task(self, run_id: UUID) -> Callable[[], object]:
        """End the call with its task: LangChain says nothing of a tool that was cancelled.

        Call what comes back when the call has ended otherwise.
        """
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no event loop runs in this thread
            task = None
        if task is None:
            return lambda: None

        def ended(_: asyncio.Task[Any]) -> None:
            self._close(run_id, asyncio.CancelledError())

        task.add_done_callback(ended)
        return lambda: task.remove_done_callback(ended)

    def _close(self, run_id: UUID, error: BaseException | None) -> None:
        found = self._open.pop(run_id, None)
        if found is not None:
            call, unwatch = found
            call.__exit__(type(error) if error else None, error, None)
            unwatch()


def is_interrupt(error: BaseException) -> bool:
    """Whether a tool raised to pause its graph; LangGraph is not imported for the question."""
    errors = sys.modules.get("langgraph.errors")
    return errors is not None and isinstance(error, errors.GraphBubbleUp)


def run_config(conversation: Conversation) -> RunnableConfig:
    """The configuration of a graph's run: the conversation as its thread, tool boundaries reported."""
    return {**conversation.langgraph_config(), "callbacks": [ToolBoundaries(conversation)]}


@functools.cache
def activate() -> None:
    """Report the tools of every run of this process, unless the run has a handler of ours already."""
    boundaries = ToolBoundaries()
    everywhere: ContextVar[ToolBoundaries | None] = ContextVar("conserve_boundaries", default=boundaries)
    register_configure_hook(everywhere, inheritable=True, handle_class=ToolBoundaries)
