"""Pydantic AI: an agent's tool calls become tool boundaries of the conversation.

model = conserve_sdk.wrap(OpenAIChatModel(name, provider=OpenAIProvider(base_url=gateway, api_key="-")))
agent = Agent(model, capabilities=[ToolBoundaries()])
async with conserve_sdk.conversation(agent="researcher") as conversation:
    await agent.run(question, conversation_id=conversation.id)

After `conserve_sdk.instrument()` every instrumented agent reports its tools, without the capability.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import wrapt
from opentelemetry import context
from opentelemetry.util.genai.invocation import CLIENT_INFERENCE_CONTEXT_KEY, InferenceData
from pydantic_ai import Agent, RunContext, ToolDefinition
from pydantic_ai.capabilities import AbstractCapability, Instrumentation
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.models.instrumented import InstrumentationSettings

from conserve_sdk import current_conversation


class ToolBoundaries(AbstractCapability[Any]):
    """Tells the gateway when the agent's tools start and end, in the conversation they run in.

    Their spans are Pydantic AI's own instrumentation's.
    """

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: Callable[[dict[str, Any]], Awaitable[Any]],
    ) -> Any:
        """Called by Pydantic AI around each tool call."""
        del ctx, tool_def
        return await _report(call, functools.partial(handler, args))


async def _report(call: ToolCallPart, run: Callable[[], Awaitable[Any]]) -> Any:
    conversation = current_conversation()
    if conversation is None:
        return await run()
    async with conversation.tool(call.tool_name, call.tool_call_id, traced=False):
        return await run()


def activate() -> None:
    """Trace all agents without content, report their tools, and see that model calls have one span each."""
    if Agent._instrument_default is False:  # noqa: SLF001 - how it says that nobody has chosen yet
        Agent.instrument_all(InstrumentationSettings(include_content=False, include_binary_content=False))
    _hook_instrumentation()


@functools.cache
def _hook_instrumentation() -> None:
    """Once a process: there is one class to hook."""
    wrapt.wrap_function_wrapper(Instrumentation, "wrap_tool_execute", _report_traced_tool)
    wrapt.wrap_function_wrapper(Instrumentation, "wrap_model_request", _quieten_model_call)


async def _report_traced_tool(
    wrapped: Callable[..., Awaitable[Any]], _agent: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    return await _report(kwargs["call"], functools.partial(wrapped, *args, **kwargs))


async def _quieten_model_call(
    wrapped: Callable[..., Awaitable[Any]], _agent: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """OpenAI's instrumentation would count every call again, in a span below Pydantic AI's own."""
    handler = kwargs["handler"]

    async def quiet(request: Any) -> Any:
        with _inside_a_model_call():
            return await handler(request)

    return await wrapped(*args, **{**kwargs, "handler": quiet})


@contextmanager
def _inside_a_model_call() -> Iterator[None]:
    """What OpenTelemetry's own instrumentations tell each other, put back by value (see `BlockSpan`)."""
    before = context.get_current()
    inside = context.set_value(CLIENT_INFERENCE_CONTEXT_KEY, InferenceData())
    context.attach(inside)
    try:
        yield
    finally:
        if context.get_current() is inside:
            context.attach(before)
