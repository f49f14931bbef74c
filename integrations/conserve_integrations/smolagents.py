"""smolagents: an agent's tools become tool boundaries, its managed agents branches of the conversation.

model = conserve_sdk.wrap(OpenAIModel(name, api_base=gateway, api_key="-"))
agent = observe(ToolCallingAgent(tools, model))
with conserve_sdk.conversation(agent="researcher") as conversation, conversation.turn():
    agent.run(question)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import Context, copy_context
from typing import Any, TypeVar

from smolagents import MultiStepAgent

import conserve_sdk

AgentT = TypeVar("AgentT", bound=MultiStepAgent)

_MARK = "_conserve_observed"
_ANSWER = "final_answer"
"""smolagents' own tool, by which an agent gives its answer: no work between two turns."""


def observe(agent: AgentT) -> AgentT:
    """The same agent, whose tools now report to the conversation they run in; twice changes nothing.

    For agents that call tools by JSON and those that call them from code. All runs of a
    managed agent are one branch of the conversation, named after it.
    """
    if getattr(agent, _MARK, False):
        return agent
    setattr(agent, _MARK, True)
    latest = _LatestRun()
    run: Callable[..., Any] = agent.run
    agent.run = latest.noting(run)
    for name, tool in agent.tools.items():
        if name != _ANSWER:
            # A tool that an earlier agent had too is hooked anew, not once more.
            forward: Callable[..., Any] = getattr(tool, _MARK, tool.forward)
            setattr(tool, _MARK, forward)
            tool.forward = latest.inside(conserve_sdk.tool(str(name))(forward))
    for name, managed in agent.managed_agents.items():
        observe(managed)
        managed.run = _in_branch(str(name), managed.run)
    return agent


def _in_branch(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def branched(*args: Any, **kwargs: Any) -> Any:
        conversation = conserve_sdk.current_conversation()
        with conversation.branch(name) if conversation is not None else nullcontext():
            return run(*args, **kwargs)

    return branched


class _LatestRun:
    """Where an agent was run: it runs the model's code in a bare thread, which knows no conversation."""

    def __init__(self) -> None:
        self._context: Context | None = None

    def noting(self, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def noted(*args: Any, **kwargs: Any) -> Any:
            self._context = copy_context()
            return run(*args, **kwargs)

        return noted

    def inside(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def found(*args: Any, **kwargs: Any) -> Any:
            if self._context is None or conserve_sdk.current_conversation() is not None:
                return call(*args, **kwargs)
            return self._context.copy().run(call, *args, **kwargs)

        return found
