"""Whose request or span this is: our own block's, else what the framework that runs here calls it.

In this order: our block, LangGraph's thread, the OpenAI Agents SDK's group, Pydantic AI's
conversation. No framework is ever imported for it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any, Final

from conserve_sdk import protocol
from conserve_sdk._branches import join
from conserve_sdk._branches_agents import agents_branch
from conserve_sdk._branches_langgraph import langgraph_branch
from conserve_sdk._current import innermost_entry, is_inside
from conserve_sdk._identity import Identity

_log = logging.getLogger("conserve_sdk")

_LANGCHAIN_CONFIG: Final = "langchain_core.runnables.config"
_AGENTS_TRACES: Final = "agents.tracing"
_PYDANTIC_AI_RUNS: Final = "pydantic_ai._run_context"


def resolve_identity() -> Identity | None:
    """The conversation that what happens here belongs to; None outside of any."""
    found = _found()
    return found[0] if found is not None else None


def resolve_caller() -> Identity | None:
    """`resolve_identity` for a model call, which may be made in a branch."""
    found = _found()
    if found is None:
        return None
    identity, read_branch = found
    try:
        branch = read_branch()
    except Exception:  # noqa: BLE001 - it reads frameworks' insides, which change
        _log.debug("a model call goes out without its branch", exc_info=True)
        branch = None
    return identity if branch is None else replace(identity, branch=join(identity.branch, branch))


def _found() -> tuple[Identity, Callable[[], str | None]] | None:
    """The conversation without its branch, and how to read that."""
    config = _langgraph_config()
    thread_id = _thread_id(config)
    entry = innermost_entry()
    in_graph = partial(langgraph_branch, config)
    if entry is None:
        if thread_id is not None:
            return Identity(thread_id), in_graph
        framework_id = _agents_group_id() or _pydantic_ai_id()
        return (Identity(framework_id), agents_branch) if framework_id is not None else None
    own = entry.identity
    if thread_id is None:
        return own, partial(agents_branch, entry.agents_span)
    if thread_id == own.conversation_id:
        return own, in_graph
    # A conversation of its own inside a node is a child already, and has no branch.
    is_child = is_inside(entry, thread_id)
    return own if is_child else replace(own, other_thread_id=thread_id), lambda: None


def _langgraph_config() -> dict[str, Any]:
    """The configuration of the graph that is running; langchain is never imported for it."""
    module = sys.modules.get(_LANGCHAIN_CONFIG)
    variable: ContextVar[Any] | None = getattr(module, "var_child_runnable_config", None)
    return (variable.get() if variable is not None else None) or {}


def _thread_id(config: dict[str, Any]) -> str | None:
    thread_id = (config.get("configurable") or {}).get("thread_id")
    return protocol.clean_id(str(thread_id)) if thread_id is not None else None


def _agents_group_id() -> str | None:
    """The group of the trace that the OpenAI Agents SDK runs; its user says that it is one conversation."""
    module = sys.modules.get(_AGENTS_TRACES)
    read: Callable[[], Any] | None = getattr(module, "get_current_trace", None)
    group_id = getattr(read(), "group_id", None) if read is not None else None
    return protocol.clean_id(group_id) if isinstance(group_id, str) else None


def _pydantic_ai_id() -> str | None:
    """The conversation that Pydantic AI's current run belongs to; it makes one up for each that has none."""
    module = sys.modules.get(_PYDANTIC_AI_RUNS)
    read: Callable[[], Any] | None = getattr(module, "get_current_run_context", None)
    conversation_id = getattr(read(), "conversation_id", None) if read is not None else None
    return protocol.clean_id(conversation_id) if isinstance(conversation_id, str) else None
