"""Recognises the conversations that no client named, by the message history that each request repeats.

What is remembered of such a conversation is its head: the boundary after its last answer. A
request belongs to the conversation whose head is the longest one within its own history.
The turn that goes on from a head takes it, and leaves a new one behind its answer (or puts
the old one back if it failed). So a system prompt that many share is nobody's head; two
conversations with the same beginning and different answers have different heads; and of two
requests with the very same history the first goes on and the second begins a conversation.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from conserve_server.engines.wire import Api
from conserve_server.serving.answers.answer import AnswerGatherer, raise_error
from conserve_server.serving.asked.identity import Identity, read_previous_response
from conserve_server.serving.asked.json_text import has_more_items
from conserve_server.serving.asked.request import TurnRequest
from conserve_server.serving.recognition.history import History, read_history, read_items, response_boundary

MAX_RECOGNISED_ITEMS: Final = 75_000
"""Strings, objects, lists and commas of a request whose history is looked at: more than one of a million
tokens has. Reading so many holds up everybody else for about a tenth of a second."""


class Heads:
    """The heads of one tenant and model, of at most `kept` conversations; the one untouched for longest
    goes first. A conversation has two heads where its client may go on in two ways.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._of: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        # Two conversations may have one head, if all they have said so far is the same.
        self._at: dict[int, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def take(self, boundary: int) -> tuple[str, tuple[int, ...]] | None:
        """The conversation with this head, which it loses with all others; the earliest one of several."""
        at = self._at.get(boundary)
        if at is None:
            return None
        conversation_id = next(iter(at))
        boundaries = self._of[conversation_id]
        self.forget(conversation_id)
        return conversation_id, boundaries

    def put(self, conversation_id: str, *boundaries: int) -> None:
        """Give a conversation its heads, in place of those that it had."""
        self.forget(conversation_id)
        self._of[conversation_id] = boundaries
        for boundary in boundaries:
            self._at.setdefault(boundary, {})[conversation_id] = None
        if len(self._of) > self._kept:
            self.forget(next(iter(self._of)))

    def forget(self, conversation_id: str) -> None:
        for boundary in self._of.pop(conversation_id, ()):
            at = self._at[boundary]
            del at[conversation_id]
            if not at:
                del self._at[boundary]


@dataclass(slots=True)
class Watch:
    """One turn of a recognised (or new) conversation: its history, the heads it took, its answer."""

    history: History | None
    taken: tuple[int, ...] = ()
    answer: AnswerGatherer = field(default_factory=AnswerGatherer)


class Recognition:
    """The heads of all tenants and models.

    `on_error` hears of a history or answer that could not be read because of a fault in here: the turn is
    served all the same, and nothing will be recognised by it.
    """

    def __init__(self, kept: int, on_error: Callable[[Exception], None] = raise_error) -> None:
        self._kept = kept
        self._on_error = on_error
        self._heads: dict[tuple[str, str], Heads] = {}
        # Nobody outside can make two histories collide on purpose.
        self._seed = secrets.randbits(64)

    def __len__(self) -> int:
        return sum(len(heads) for heads in self._heads.values())

    def recognise(self, identity: Identity, request: TurnRequest) -> tuple[Identity, Watch | None]:
        """The identity of a request that named none, and what to watch; None where nothing ever will be
        recognised by it.
        """
        if not self._kept or not ("messages" in request.fields or "input" in request.fields):
            return identity, None
        previous = read_previous_response(request.fields)
        if previous is None:
            history = self._read_history(request)
            watch, boundaries = self._watch(history), history.boundaries[::-1] if history is not None else []
        else:
            boundaries = [response_boundary(previous, self._seed)]
            watch = self._watch(None, taken=tuple(boundaries))
        heads = self._heads.get((identity.tenant, identity.model))
        for boundary in boundaries if heads is not None else ():
            if heads is not None and (found := heads.take(boundary)) is not None:
                conversation_id, watch.taken = found
                return replace(identity, conversation_id=conversation_id), watch
        return identity, watch

    def _watch(self, history: History | None, taken: tuple[int, ...] = ()) -> Watch:
        return Watch(history, taken, AnswerGatherer(self._on_error))

    def _read_history(self, request: TurnRequest) -> History | None:
        try:
            return self._history(request)
        except Exception as error:  # noqa: BLE001 - whoever counts it is told
            self._on_error(error)
            return None

    def _history(self, request: TurnRequest) -> History | None:
        """What a request repeats of its conversation; None where it is nothing, or too much to look at."""
        fields = request.fields
        if has_more_items(request.body, MAX_RECOGNISED_ITEMS, counts_commas=True):
            return None
        if request.api is Api.RESPONSES:
            return (
                read_items(fields["input"], self._seed, fields.get("instructions"))
                if "input" in fields
                else None
            )
        system = fields.get("system") if request.api is Api.MESSAGES else None
        return read_history(fields["messages"], self._seed, system) if "messages" in fields else None

    def settle(self, identity: Identity, watch: Watch, *, is_completed: bool) -> bool:
        """The turn has ended: move the conversation's head. Whether its next turn will be recognised."""
        boundaries = self._next_heads(watch) if is_completed else watch.taken
        if not boundaries:
            return False
        heads = self._heads.setdefault((identity.tenant, identity.model), Heads(self._kept))
        heads.put(identity.conversation_id, *boundaries)
        return True

    def forget(self, identity: Identity) -> None:
        """The conversation has ended."""
        scope = (identity.tenant, identity.model)
        heads = self._heads.get(scope)
        if heads is not None:
            heads.forget(identity.conversation_id)
            if not heads:
                del self._heads[scope]

    def _next_heads(self, watch: Watch) -> tuple[int, ...]:
        """By the answer's id (Responses API), and by the history that it makes."""
        response_id, answer = watch.answer.response_id, watch.answer.canonical()
        heads = () if response_id is None else (response_boundary(response_id, self._seed),)
        if watch.history is None or answer is None:
            return heads
        return *heads, watch.history.boundary_after(answer)
