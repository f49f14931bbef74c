"""A conversation: what belongs together, from the first model call to the release."""

from __future__ import annotations

import functools
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, ParamSpec, Self, TypeVar

from conserve_sdk._control import Gateway, afetch_report, fetch_report
from conserve_sdk._delivery import Delivery, process_delivery
from conserve_sdk._errors import ReportUnavailable
from conserve_sdk._link import Link, is_on_event_loop, wait, wait_async
from conserve_sdk._settings import DISABLED_VARIABLE, is_disabled
from conserve_sdk._tool_call import ToolCall
from conserve_sdk.protocol import ConversationReport, clean_id

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

P = ParamSpec("P")
R = TypeVar("R")

_EXIT_WAIT_S: Final = 0.5
_REPORT_WAIT_S: Final = 2.0


@dataclass(slots=True, eq=False)
class Entry:
    """One entering of a conversation, linked to the one around it.

    `note_gateway` is told where the requests made inside went.
    """

    conversation: Conversation
    outer: Entry | None
    note_gateway: Callable[[Gateway], Callable[[], None]]
    is_open: bool = True


_innermost: ContextVar[Entry | None] = ContextVar("conserve_conversation", default=None)


def innermost_entry() -> Entry | None:
    """The innermost entry that has not been left, wherever it was left."""
    entry = _innermost.get()
    while entry is not None and not entry.is_open:
        entry = entry.outer
    return entry


def current_conversation() -> Conversation | None:
    """The conversation whose block is running here; None outside of one.

    Tasks, and threads started with `bind_context`, see the conversation that was current
    where they were started, until its block ends.
    """
    entry = innermost_entry()
    return entry.conversation if entry is not None else None


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


class Conversation:
    """A conversation for `with` and `async with`; made by `conversation()`.

    Leaving the block restores the conversation around it, sends what tool boundaries are
    left and releases the conversation on each gateway that saw it, waiting half a second at
    most (not at all in a plain `with` on an event loop, which must not be held up). One
    object may be entered again, and by several tasks at once.
    """

    def __init__(
        self,
        conversation_id: str,
        *,
        agent: str | None = None,
        parent_id: str | None = None,
        keep_open: bool = False,
        delivery: Delivery | None = None,
    ) -> None:
        self.id: Final = conversation_id
        self.agent: Final = agent
        self.parent_id: Final = parent_id
        self._keep_open = keep_open
        self._is_inert = is_disabled()
        self._link = Link(conversation_id, delivery or process_delivery())
        # Reentrant: a generator collected while the lock is held may close its own block.
        self._lock = threading.RLock()
        self._entries: list[Entry] = []

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
        entry = Entry(self, innermost_entry(), self._link.connect)
        with self._lock:
            self._entries.append(entry)
        _innermost.set(entry)
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
        _innermost.set(around)
        if is_over and not is_inside(around, self.id):
            self._link.release()
        return self._link.flushed() if self._link.is_connected else None

    def _entry_to_close(self) -> Entry:
        """This context's own entry; where an async generator is closed from elsewhere, the latest."""
        entry = _innermost.get()
        while entry is not None:
            if entry.conversation is self and entry.is_open:
                return entry
            entry = entry.outer
        return self._entries[-1]


def is_inside(entry: Entry | None, conversation_id: str) -> bool:
    """Whether an open block of that conversation lies around: it goes on after an inner one ends."""
    while entry is not None:
        if entry.is_open and entry.conversation.id == conversation_id:
            return True
        entry = entry.outer
    return False


def conversation(
    id: str | None = None,  # noqa: A002 - the word that users and the wire have for it
    *,
    agent: str | None = None,
    parent: Conversation | str | None = None,
    keep_open: bool = False,
) -> Conversation:
    """A conversation to be entered with `with` or `async with`.

    A given `id` continues that conversation, also across processes; none makes a new one.
    Inside another conversation's block, that one is the parent unless `parent` names
    another. `keep_open` leaves the conversation and its KV cache on the gateway for a later
    process; else the end of the block releases it. Raises ValueError for an `id` or
    `parent` without a printable ASCII character.
    """
    own_id = uuid.uuid4().hex if id is None else _checked(id, "id")
    return Conversation(own_id, agent=agent, parent_id=_parent_id(own_id, parent), keep_open=keep_open)


def _parent_id(own_id: str, parent: Conversation | str | None) -> str | None:
    if isinstance(parent, str):
        return _checked(parent, "parent")
    around = parent if parent is not None else current_conversation()
    if around is None:
        return None
    return around.parent_id if around.id == own_id else around.id


def _checked(text: str, argument: str) -> str:
    cleaned = clean_id(text)
    if cleaned is None:
        raise ValueError(
            f"{argument}={text!r} has no printable ASCII character left to name a conversation by"
        )
    return cleaned
