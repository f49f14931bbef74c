"""A conversation: what belongs together, from the first model call to the release."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Final, ParamSpec, Self, TypeVar

from conserve_sdk import _decorating
from conserve_sdk._branches import join
from conserve_sdk._branches_agents import current_span
from conserve_sdk._control import Gateway, afetch_report, fetch_report
from conserve_sdk._current import Entry, innermost, innermost_entry, is_inside
from conserve_sdk._delivery import Delivery, process_delivery
from conserve_sdk._errors import ReportUnavailable
from conserve_sdk._follow import afollow, follow
from conserve_sdk._identity import Identity
from conserve_sdk._link import Link, is_on_event_loop, wait, wait_async
from conserve_sdk._settings import DISABLED_VARIABLE, is_disabled
from conserve_sdk._tool_call import ToolCall
from conserve_sdk._turn import Turn
from conserve_sdk.protocol import ConversationReport, ConversationUpdate, clean_id

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

P = ParamSpec("P")
R = TypeVar("R")

_EXIT_WAIT_S: Final = 0.5
_REPORT_WAIT_S: Final = 2.0

Metadatum = str | bool | int | float
"""What a span attribute can hold."""


class Conversation:
    """A conversation for `with`, `async with` and `@`; made by `conversation()`.

    Leaving the block restores the conversation around it, sends what tool boundaries are
    left and releases the conversation on each gateway that saw it, waiting half a second at
    most (not at all in a plain `with` on an event loop, which must not be held up). One
    object may be entered again, and by several tasks at once.

    As a decorator of a function, coroutine function, generator function or async generator
    function it opens a conversation for each call: a new one unless an id was given.
    """

    def __init__(
        self,
        conversation_id: str,
        *,
        agent: str | None = None,
        parent_id: str | None = None,
        root_id: str | None = None,
        metadata: Mapping[str, Metadatum] | None = None,
        keep_open: bool = False,
        delivery: Delivery | None = None,
        again: Callable[[], Conversation] | None = None,
    ) -> None:
        self.id: Final = conversation_id
        self.agent: Final = agent
        self.parent_id: Final = parent_id
        self.root_id: Final = root_id or parent_id or conversation_id
        """The outermost conversation as far as it is known here: with it the traces are kept or dropped."""
        self.metadata: Final = MappingProxyType(dict(metadata or {}))
        self._keep_open = keep_open
        self._is_inert = is_disabled()
        self._link = Link(conversation_id, delivery or process_delivery())
        self._identity = Identity(
            conversation_id, parent_id, self.root_id, agent, self.metadata, note_gateway=self._link.connect
        )
        # Reentrant: a generator collected while the lock is held may close its own block.
        self._lock = threading.RLock()
        self._entries: list[Entry] = []
        self._turn_indexes = itertools.count(1)
        self._again = again or (lambda: self)

    def __repr__(self) -> str:
        return f"Conversation({self.id!r}, agent={self.agent!r}, parent_id={self.parent_id!r})"

    # -- what an agent uses ------------------------------------------------------------

    def tool(self, name: str, call_id: str | None = None, *, traced: bool = True) -> ToolCall:
        """A tool call of this conversation, for `with` and `async with`.

        `call_id` is the model's id of the call, made up where none is given. `traced=False`
        makes no span: for frameworks whose own instrumentation has one already.
        """
        emit = None if self._is_inert else self._link.emit
        return ToolCall(name, call_id, agent=self.agent, emit=emit, traced=traced)

    @contextmanager
    def branch(self, name: str) -> Iterator[Self]:
        """A part of this conversation whose prompts grow beside the others', for `with`: another agent's.

        Each time that a branch of this name is entered it goes on where it was, with a decoder
        of its own; the end of the conversation releases it. A branch inside a branch is another
        one. Tool calls inside are the conversation's. Raises ValueError as `conversation` does.
        """
        around = innermost_entry()
        outer = around.identity.branch if around is not None and around.conversation is self else None
        branch = join(outer, _checked(name, "name"))
        entry = Entry(self, around, replace(self._identity, branch=branch, agent=name), current_span())
        innermost.set(entry)
        try:
            yield self
        finally:
            entry.is_open = False
            innermost.set(innermost_entry())

    def turn(self) -> Turn:
        """A turn of the application, for `with` and `async with`, where it is more than one model call."""
        return Turn(self.id, self.agent, next(self._turn_indexes), traced=not self._is_inert)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function, each call of it in a conversation like this one."""
        return _decorating.around(self._again, function)

    def report(self) -> ConversationReport:
        """What the gateway observed, during the block or after it.

        Raises ReportUnavailable, with what to do about it, when there is none to be had.
        """
        gateway = self._reporting_gateway()
        wait(self._link.flushed(), _REPORT_WAIT_S)
        return fetch_report(gateway, self.id)

    async def areport(self) -> ConversationReport:
        """`report` for asyncio."""
        gateway = self._reporting_gateway()
        await wait_async(self._link.flushed(), _REPORT_WAIT_S)
        return await afetch_report(gateway, self.id)

    def follow(self) -> Iterator[ConversationUpdate]:
        """Each change that the gateway tells, as it happens, until the conversation has ended.

        For another thread than the agent's, once its first model call was made. At most four a
        second; the first holds everything. Raises ReportUnavailable as `report` does.
        """
        return follow(self._reporting_gateway(), self.id)

    def afollow(self) -> AsyncIterator[ConversationUpdate]:
        """`follow` for asyncio, for another task than the agent's."""
        return afollow(self._reporting_gateway(), self.id)

    def _reporting_gateway(self) -> Gateway:
        if self._is_inert:
            raise ReportUnavailable(
                f"the SDK is switched off by {DISABLED_VARIABLE}: unset it to get reports"
            )
        return self._link.last_gateway()

    def langgraph_config(self) -> RunnableConfig:
        """The configuration for a LangGraph run whose thread is this conversation."""
        return {"configurable": {"thread_id": self.id}}

    # -- the block ---------------------------------------------------------------------

    def __enter__(self) -> Self:
        entry = Entry(self, innermost_entry(), self._identity, current_span())
        with self._lock:
            self._entries.append(entry)
        innermost.set(entry)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sent = self._leave()
        if sent is not None and not is_on_event_loop():
            wait(sent, _EXIT_WAIT_S)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sent = self._leave()
        if sent is not None and is_on_event_loop():
            await wait_async(sent, _EXIT_WAIT_S)

    def _leave(self) -> Future[None] | None:
        """Close the entry, here or in another context; a future of what is left to be sent, if anything."""
        with self._lock:
            entry = self._entry_to_close()
            entry.is_open = False
            self._entries.remove(entry)
            is_over = not self._entries and not self._keep_open
        around = innermost_entry()
        innermost.set(around)
        if is_over and not is_inside(around, self.id):
            self._link.release()
        return self._link.flushed() if self._link.is_connected else None

    def _entry_to_close(self) -> Entry:
        """This context's own entry; where an async generator is closed from elsewhere, the latest."""
        entry = innermost.get()
        while entry is not None:
            if entry in self._entries:
                return entry
            entry = entry.outer
        return self._entries[-1]


def current_conversation() -> Conversation | None:
    """The conversation whose block is running here; None outside of one.

    Tasks, and threads started with `bind_context`, see the conversation that was current
    where they were started, until its block ends.
    """
    entry = innermost_entry()
    return entry.conversation if entry is not None and isinstance(entry.conversation, Conversation) else None


def conversation(
    id: str | None = None,  # noqa: A002 - the word that users and the wire have for it
    *,
    agent: str | None = None,
    parent: Conversation | str | None = None,
    metadata: Mapping[str, Metadatum] | None = None,
    keep_open: bool = False,
) -> Conversation:
    """A conversation to be entered with `with` or `async with`, or to decorate a function with.

    A given `id` continues that conversation, also across processes; none makes a new one.
    Inside another conversation's block, that one is the parent unless `parent` names
    another. `metadata` goes on the spans of this process, never on the wire. `keep_open`
    leaves the conversation and its KV cache on the gateway for a later process; else the end
    of the block releases it. Raises ValueError for an `id` or `parent` without a printable
    character, and TypeError for metadata that a span can't hold.
    """
    own_id = uuid.uuid4().hex if id is None else _checked(id, "id")
    parent_id, root_id = _ancestors(own_id, parent)
    return Conversation(
        own_id,
        agent=agent,
        parent_id=parent_id,
        root_id=root_id,
        metadata=_checked_metadata(metadata or {}),
        keep_open=keep_open,
        again=partial(conversation, id, agent=agent, parent=parent, metadata=metadata, keep_open=keep_open),
    )


def _ancestors(own_id: str, parent: Conversation | str | None) -> tuple[str | None, str | None]:
    """The parent's id and the outermost conversation's, as far as they are known."""
    if isinstance(parent, str):
        return _checked(parent, "parent"), None
    around = parent if parent is not None else current_conversation()
    if around is None:
        return None, None
    return (around.parent_id if around.id == own_id else around.id), around.root_id


def _checked_metadata(metadata: Mapping[str, Metadatum]) -> Mapping[str, Metadatum]:
    for key, value in metadata.items():
        if not isinstance(value, (str, bool, int, float)):
            raise TypeError(f"metadata[{key!r}] is a {type(value).__name__}: give text, a number or a bool")
    return metadata


def _checked(text: str, argument: str) -> str:
    cleaned = clean_id(text)
    if cleaned is None:
        raise ValueError(f"{argument}={text!r} has no printable character to name a conversation by")
    return cleaned
