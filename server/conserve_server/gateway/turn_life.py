"""The life of a turn as one block: what begins with it ends with it, once, however the block is left."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType

from conserve_sdk.protocol import Outcome
from conserve_server.core.clock import Clock
from conserve_server.gateway.conversations import Conversations
from conserve_server.gateway.coordinator import Coordinator
from conserve_server.gateway.identity import Identity
from conserve_server.gateway.live_turn import LiveTurn
from conserve_server.gateway.recognition import Watch
from conserve_server.gateway.request import TurnRequest
from conserve_server.gateway.turn_books import Ended, TurnBooks


class TurnLives:
    """Begins turns within the limits, and ends them in every book."""

    def __init__(
        self, coordinator: Coordinator, conversations: Conversations, books: TurnBooks, clock: Clock
    ) -> None:
        self._coordinator = coordinator
        self._conversations = conversations
        self._clock = clock
        self.books = books

    def turn(
        self, request: TurnRequest, identity: Identity, carrier: Mapping[str, str], watch: Watch | None
    ) -> TurnLife:
        """A block in which the turn lives. `carrier` has the client's trace context.

        Entering it raises LimitReached (429) or NoCapacity (503) before anything has begun.
        """
        return TurnLife(self, request, identity, carrier, watch)

    def begin(
        self, request: TurnRequest, identity: Identity, carrier: Mapping[str, str], watch: Watch | None
    ) -> LiveTurn:
        """What `TurnLife` enters with. Every turn that it returns has to be ended."""
        now_s = self._clock.now_s()
        turn = self._coordinator.new_turn(identity.key, len(request.body))
        record = self._conversations.open(identity, now_s)
        live = LiveTurn(turn, request, identity, record, now_s, carrier, watch)
        self.books.begins(live)
        return live

    def end(self, live: LiveTurn, error: BaseException | None) -> None:
        """Every book hears of it; `error` is what has left the block."""
        self.books.ends(live, Ended(live, _outcome(live, error), self._clock.now_s()))


class TurnLife:
    """`with` it a turn lives."""

    __slots__ = ("_carrier", "_identity", "_live", "_lives", "_request", "_watch")

    def __init__(
        self,
        lives: TurnLives,
        request: TurnRequest,
        identity: Identity,
        carrier: Mapping[str, str],
        watch: Watch | None,
    ) -> None:
        self._lives = lives
        self._request = request
        self._identity = identity
        self._carrier = carrier
        self._watch = watch

    def __enter__(self) -> LiveTurn:
        self._live = self._lives.begin(self._request, self._identity, self._carrier, self._watch)
        return self._live

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lives.end(self._live, error)


def _outcome(live: LiveTurn, error: BaseException | None) -> Outcome:
    """`live.error` was told to the client, or is why it can't be told anything."""
    if live.is_abandoned:
        return Outcome.CANCELLED
    if live.error is not None or live.refused:
        return Outcome.FAILED
    if isinstance(error, asyncio.CancelledError) and not live.is_answered:
        return Outcome.CANCELLED
    return Outcome.COMPLETED if error is None or live.is_answered else Outcome.FAILED
