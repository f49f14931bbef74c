"""Whose request or span this is: our own block's, else the LangGraph thread's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from conserve_sdk import protocol
from conserve_sdk._control import Gateway
from conserve_sdk._conversation import innermost_entry

_LANGCHAIN_CONFIG: Final = "langchain_core.runnables.config"


@dataclass(frozen=True, slots=True)
class Identity:
    """What identifies a conversation on the wire and on spans.

    `note_gateway` takes where a request went; None where no conversation object is there to
    be told. `thread_id` is LangGraph's, where a graph is running.
    """

    conversation_id: str
    parent_id: str | None = None
    agent: str | None = None
    thread_id: str | None = None
    note_gateway: Callable[[Gateway], None] | None = None

    @property
    def is_ambiguous(self) -> bool:
        """Whether the graph's thread is named otherwise than the conversation around it."""
        return self.thread_id is not None and self.thread_id != self.conversation_id

    def headers(self) -> dict[str, str]:
        """The request headers; an agent name that no header can carry is left out."""
        named = {
            protocol.CONVERSATION_ID: self.conversation_id,
            protocol.PARENT_ID: self.parent_id,
            protocol.AGENT: protocol.clean_id(self.agent) if self.agent is not None else None,
        }
        return {name: value for name, value in named.items() if value is not None}


def resolve_identity() -> Identity | None:
    """The conversation that what happens here belongs to; None outside of any."""
    thread_id = _langgraph_thread_id()
    entry = innermost_entry()
    if entry is not None:
        of = entry.conversation
        return Identity(of.id, of.parent_id, of.agent, thread_id, entry.note_gateway)
    return Identity(thread_id, thread_id=thread_id) if thread_id is not None else None


def _langgraph_thread_id() -> str | None:
    """`configurable.thread_id` of the graph that is running; langchain is never imported for it."""
    module = sys.modules.get(_LANGCHAIN_CONFIG)
    variable: ContextVar[Any] | None = getattr(module, "var_child_runnable_config", None)
    config = variable.get() if variable is not None else None
    thread_id = (config.get("configurable") or {}).get("thread_id") if config else None
    return protocol.clean_id(str(thread_id)) if thread_id is not None else None
