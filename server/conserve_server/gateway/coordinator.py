"""Drives the pure scheduler: reports in, actions out to the turns that wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import count

from conserve_server.core.clock import Clock
from conserve_server.core.errors import NoCapacity
from conserve_server.core.turn import Turn
from conserve_server.gateway.estimate import TokenEstimate
from conserve_server.scheduling.actions import Action
from conserve_server.scheduling.scheduler import Scheduler


class Coordinator:
    """One inbox a turn. Every call is synchronous up to the scheduler, so decisions never interleave."""

    def __init__(
        self, scheduler: Scheduler, clock: Clock, *, max_wait_s: float, leg_timeout_s: float
    ) -> None:
        self.scheduler = scheduler
        self._clock = clock
        self._max_wait_s = max_wait_s
        # A turn behind another's placement also waits for that one's two legs.
        self._follower_wait_s = max_wait_s + 2 * leg_timeout_s
        self._inboxes: dict[int, asyncio.Queue[Action]] = {}
        self._ids = count(1)
        self.estimate = TokenEstimate()

    def arrive(self, conversation_id: str, body_bytes: int) -> Turn:
        """A turn arrived; end it with `ended`, whatever happens."""
        turn = Turn(next(self._ids), conversation_id, self.estimate.prompt_tokens(body_bytes))
        self._inboxes[turn.id] = asyncio.Queue()
        self._deliver(self.scheduler.on_turn(turn))
        return turn

    async def next_action(self, turn: Turn) -> Action:
        """What to do next for this turn. Raises NoCapacity when no room came free in time."""
        inbox = self._inboxes[turn.id]
        limit_s = self._max_wait_s if self.scheduler.is_waiting(turn.id) else self._follower_wait_s
        try:
            async with asyncio.timeout(limit_s):
                return await inbox.get()
        except TimeoutError as error:
            raise self._no_room(limit_s) from error

    def prefilled(self, turn: Turn, prompt_tokens: int, body_bytes: int) -> None:
        """The prefill leg answered with the true length of its prompt."""
        self.estimate.learn(body_bytes, prompt_tokens)
        self._deliver(self.scheduler.on_prefilled(turn.id, prompt_tokens))

    def prefill_failed(self, turn: Turn) -> None:
        self._deliver(self.scheduler.on_prefill_failed(turn.id))

    def bound(self, turn: Turn) -> None:
        """The first byte of the decode leg has come."""
        self._deliver(self.scheduler.on_bound(turn.id))

    def ended(self, turn: Turn, kv_tokens: int | None) -> None:
        """The turn is over. `kv_tokens`: prompt and output as the engine counted them."""
        del self._inboxes[turn.id]
        self._deliver(self.scheduler.on_turn_ended(turn.id, kv_tokens, self._clock.now_s()))

    def end_conversation(self, conversation_id: str) -> None:
        self._deliver(self.scheduler.on_conversation_ended(conversation_id))

    def engine_up(self, name: str, kv_capacity_tokens: int | None) -> None:
        self._deliver(self.scheduler.on_engine_up(name, kv_capacity_tokens))

    def engine_down(self, name: str) -> None:
        self._deliver(self.scheduler.on_engine_down(name))

    def _deliver(self, actions: Iterable[Action]) -> None:
        for action in actions:
            self._inboxes[action.turn_id].put_nowait(action)

    def _no_room(self, waited_s: float) -> NoCapacity:
        if not self.scheduler.pools.ledgers:
            return NoCapacity(f"no decode engine came up within {waited_s:g} s", code="no_decode_engine")
        return NoCapacity(
            f"no decoder had room for this conversation within {waited_s:g} s: "
            "try again later, or end conversations that are done (DELETE /v1/conversations/{id})",
            code="no_kv_capacity",
        )
