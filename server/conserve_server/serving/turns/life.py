"""The life of a turn as one block: what begins with it ends with it, once, however the block is left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from conserve_sdk.protocol import Outcome
from conserve_server.core.clock import Clock
from conserve_server.serving.asked.estimate import kind_of
from conserve_server.serving.asked.identity import Identity
from conserve_server.serving.asked.request import TurnRequest
from conserve_server.serving.conversations import Conversations
from conserve_server.serving.driving.coordinator import Coordinator
from conserve_server.serving.recognition.recognition import Watch
from conserve_server.serving.turns.books import Ended, TurnBooks
from conserve_server.serving.turns.live import LiveTurn


class TurnLives:
    """Begins turns within the limits, and ends them in every book."""

    def __init__(
        self, coordinator: Coordinator, conversations: Conversations, books: TurnBooks, clock: Clock
    ) -> None:
        self._coordinator = coordinator
        self._conversations = conversations
        self._clock = clock
        self.books = books

    @contextmanager
    def turn(
        self, request: TurnRequest, identity: Identity, carrier: Mapping[str, str], watch: Watch | None
    ) -> Iterator[LiveTurn]:
        """A block in which the turn lives. `carrier` has the client's trace context.

        Entering it raises LimitReached (429) or NoCapacity (503) before anything has begun.
        """
        live = self._new(request, identity, carrier, watch)
        self.books.begins(live)
        try:
            yield live
        except BaseException as error:
            self._end(live, error)
            raise
        else:
            self._end(live, None)

    def _new(
        self, request: TurnRequest, identity: Identity, carrier: Mapping[str, str], watch: Watch | None
    ) -> LiveTurn:
        now_s = self._clock.now_s()
        turn = self._coordinator.new_turn(identity.key, kind_of(identity, request.path), request.size)
        record = self._conversations.open(identity, now_s)
        return LiveTurn(turn, request, identity, record, now_s, carrier, watch)

    def _end(self, live: LiveTurn, error: BaseException | None) -> None:
        self.books.ends(live, Ended(live, _outcome(live, error), self._clock.now_s()))


def _outcome(live: LiveTurn, error: BaseException | None) -> Outcome:
    """`live.error` was told to the client, or is why it can't be told anything."""
    if live.is_abandoned:
        return Outcome.CANCELLED
    if live.error is not None or live.refused:
        return Outcome.FAILED
    if isinstance(error, asyncio.CancelledError) and not live.is_answered:
        return Outcome.CANCELLED
    return Outcome.COMPLETED if error is None or live.is_answered else Outcome.FAILED
