"""LangChain's `create_agent`: a middleware that reports the agent's tool calls.

agent = create_agent(conserve_sdk.wrap(llm), tools, middleware=[ConserveMiddleware()])
with conserve_sdk.conversation() as conversation:
    agent.invoke(state, config=conversation.langgraph_config())

For agents whose tools are to be reported without callbacks; graphs of other makes take
`conserve_integrations.langgraph`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain.agents.middleware.types import ToolCallRequest
from langchain_core.messages import ToolMessage
from langchain_core.tools import ToolException
from langgraph.types import Command

from conserve_integrations.langgraph import is_interrupt
from conserve_sdk import ToolCall, current_conversation

ToolResult = ToolMessage | Command[Any]


class ConserveMiddleware(AgentMiddleware[Any, Any, Any]):
    """Tells the gateway when the agent's tools start and end, in the conversation they run in."""

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolResult]
    ) -> ToolResult:
        """Called by LangChain around each tool call."""
        with _boundaries(request) as call:
            result = handler(request)
            _note_failure(call, result)
        return result

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolResult]]
    ) -> ToolResult:
        """`wrap_tool_call` of an agent that runs on asyncio."""
        with _boundaries(request) as call:
            result = await handler(request)
            _note_failure(call, result)
        return result


@contextmanager
def _boundaries(request: ToolCallRequest) -> Iterator[ToolCall | None]:
    """The tool call, open; None outside of a conversation. A tool that interrupts ends as cancelled."""
    conversation = current_conversation()
    if conversation is None:
        yield None
        return
    call = conversation.tool(request.tool_call["name"], request.tool_call["id"], traced=False)
    call.__enter__()
    error: BaseException | None = None
    try:
        yield call
    except BaseException as raised:
        error = asyncio.CancelledError() if is_interrupt(raised) else raised
        raise
    finally:
        call.__exit__(type(error) if error else None, error, None)


def _note_failure(call: ToolCall | None, result: ToolResult) -> None:
    """A tool whose error went to the model as its answer has failed all the same."""
    if call is not None and isinstance(result, ToolMessage) and result.status == "error":
        error = ToolException()
        call.__exit__(type(error), error, None)
