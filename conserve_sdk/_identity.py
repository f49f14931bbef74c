"""Whose request or span this is: our own block's, else the LangGraph thread's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from conserve_sdk import protocol
from conserve_sdk._control import Gateway
from conserve_sdk._conversation import innermost_entry, is_inside

_LANGCHAIN_CONFIG: Final = "langchain_core.runnables.config"


@dataclass(frozen=True, slots=True)
class Identity:
    """What identifies a conversation on the wire and on spans.

    `note_gateway` takes where a request goes and gives back what to call once it was
    answered; None where no conversation object is there to be told. `other_thread_id` is the
    running graph's thread, where that is named otherwise than every conversation around.
    """

    conversation_id: str
    parent_id: str | None = None
    agent: str | None = None
    other_thread_id: str | None = None
    note_gateway: Callable[[Gateway], Callable[[], None]] | None = None

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
    if entry is None:
        return Identity(thread_id) if thread_id is not None else None
    conversation = entry.conversation
    is_other = thread_id is not None and not is_inside(entry, thread_id)
    return Identity(
        conversation.id,
        conversation.parent_id,
        conversation.agent,
        thread_id if is_other else None,
        entry.note_gateway,
    )


def _langgraph_thread_id() -> str | None:
    """`configurable.thread_id` of the graph that is running; langchain is never imported for it."""
    module = sys.modules.get(_LANGCHAIN_CONFIG)
    variable: ContextVar[Any] | None = getattr(module, "var_child_runnable_config", None)
    config = variable.get() if variable is not None else None
    thread_id = (config.get("configurable") or {}).get("thread_id") if config else None
    return protocol.clean_id(str(thread_id)) if thread_id is not None else None
