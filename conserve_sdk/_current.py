"""Which conversation's block is running here, kept in one context variable."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Final, ParamSpec, Protocol, TypeVar

from conserve_sdk._identity import Identity

P = ParamSpec("P")
R = TypeVar("R")


class Named(Protocol):
    """A conversation, as far as its blocks know it."""

    @property
    def id(self) -> str: ...


@dataclass(slots=True, eq=False)
class Entry:
    """One entering of a conversation, linked to the one around it.

    `identity` is what requests and spans inside carry, and whom to tell where requests went.
    `agents_span` is the OpenAI Agents SDK's span that was current outside, if any.
    """

    conversation: Named
    outer: Entry | None
    identity: Identity
    agents_span: object | None = None
    is_open: bool = True


innermost: Final[ContextVar[Entry | None]] = ContextVar("conserve_conversation", default=None)


def innermost_entry() -> Entry | None:
    """The innermost entry that has not been left, wherever it was left."""
    entry = innermost.get()
    while entry is not None and not entry.is_open:
        entry = entry.outer
    return entry


def is_inside(entry: Entry | None, conversation_id: str) -> bool:
    """Whether an open block of that conversation lies around: it goes on after an inner one ends."""
    while entry is not None:
        if entry.is_open and entry.conversation.id == conversation_id:
            return True
        entry = entry.outer
    return False


def bind_context(function: Callable[P, R]) -> Callable[P, R]:
    """`function` as seen from here: run in another thread, it keeps this conversation and span.

    For `ThreadPoolExecutor.submit` and `map`, whose threads know no conversation of their
    own. Each call runs in a copy, so nothing stays behind on a thread that is used again.
    """
    here = copy_context()

    @functools.wraps(function)
    def bound(*args: P.args, **kwargs: P.kwargs) -> R:
        return here.copy().run(function, *args, **kwargs)

    return bound
