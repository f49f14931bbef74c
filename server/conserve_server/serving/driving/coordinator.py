"""Drives the pure scheduler: reports in, actions out to the turns that wait for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count

from conserve_server.core.clock import Clock
from conserve_server.core.errors import NoCapacity, TurnError
from conserve_server.core.turn import Turn
from conserve_server.scheduling.actions import Action, PlacementFailed, Start
from conserve_server.scheduling.engine_state import EngineProfile
from conserve_server.scheduling.scheduler import Scheduler
from conserve_server.serving.asked.estimate import Kind, TokenEstimate
from conserve_server.serving.asked.prompt_size import PromptSize
from conserve_server.serving.driving.telling import BookErrors


class _Inbox:
    """Actions for one turn, mostly there before it asks. asyncio's own queue costs more than the decision."""

    __slots__ = ("actions", "asked")

    def __init__(self) -> None:
        self.actions: deque[Action] = deque()
        self.asked: asyncio.Future[None] | None = None

    def put(self, action: Action) -> None:
        self.actions.append(action)
        if self.asked is not None and not self.asked.done():
            self.asked.set_result(None)

    async def get(self) -> Action:
        while not self.actions:
            self.asked = asyncio.get_running_loop().create_future()
            await self.asked
        return self.actions.popleft()


def _nothing_known() -> str:
    return "no engine is watched"


class Coordinator:
    """One inbox a turn. Every call is synchronous up to the scheduler, so decisions never interleave."""

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Clock,
        errors: BookErrors,
        *,
        max_wait_s: float,
        leg_timeout_s: float,
    ) -> None:
        self.scheduler = scheduler
        self._clock = clock
        self._errors = errors
        self._max_wait_s = max_wait_s
        # A turn behind another's placement also waits for that one's two legs.
        self._follower_wait_s = max_wait_s + 2 * leg_timeout_s
        self._inboxes: dict[int, _Inbox] = {}
        self._ids = count(1)
        self.estimate = TokenEstimate()
        self.longest_of: Callable[[str], int | None] = lambda _model: None
        """The longest prompt that a model takes, where engines have said so."""
        self.why_no_decoder: Callable[[], str] = _nothing_known
        """What is said to a turn that no decode engine could take."""

    @property
    def open_turns(self) -> int:
        """Turns that have arrived and not ended."""
        return len(self._inboxes)

    def new_turn(self, conversation_id: str, kind: Kind, size: PromptSize) -> Turn:
        """A turn that has still to arrive; its prompt's length is an estimate."""
        tokens = self.estimate.prompt_tokens(kind, size, self.longest_of(kind.model))
        return Turn(next(self._ids), conversation_id, tokens, tenant=kind.tenant)

    def arrive(self, turn: Turn) -> None:
        """The turn arrived; end it with `ended`, whatever happens."""
        inbox = self._inboxes[turn.id] = _Inbox()
        try:
            actions = self.scheduler.on_turn(turn, self._clock.now_s())
        except Exception as error:
            inbox.put(PlacementFailed(turn.id, error))  # or it would wait for an action that never comes
            raise
        self._deliver(actions)

    async def next_action(self, turn: Turn) -> Start:
        """What to do next for this turn.

        Raises NoCapacity when no room came free in time, and TurnError where the policy failed to place it.
        """
        inbox = self._inboxes.get(turn.id)
        if inbox is None:
            raise _never_arrived()
        action = inbox.actions.popleft() if inbox.actions else await self._wait(turn, inbox)
        if isinstance(action, PlacementFailed):
            raise _placement_failed(action.error)
        return action

    async def _wait(self, turn: Turn, inbox: _Inbox) -> Action:
        limit_s = self._max_wait_s if self.scheduler.is_waiting(turn.id) else self._follower_wait_s
        try:
            async with asyncio.timeout(limit_s):
                return await inbox.get()
        except TimeoutError as error:
            raise self._no_room(limit_s) from error

    def prefilled(self, turn: Turn, prompt_tokens: int, cached_tokens: int | None = None) -> None:
        """The prefill leg answered with the true length of its prompt."""
        now_s = self._clock.now_s()
        self._deliver(self.scheduler.on_prefilled(turn.id, prompt_tokens, now_s, cached_tokens))

    def prefill_failed(self, turn: Turn, *, is_lost: bool = False) -> None:
        self._deliver(self.scheduler.on_prefill_failed(turn.id, self._clock.now_s(), is_lost=is_lost))

    def decode_failed(self, turn: Turn, *, is_lost: bool) -> None:
        """The decode leg broke; before its first token `next_action` says where the turn goes now."""
        self._deliver(self.scheduler.on_decode_failed(turn.id, self._clock.now_s(), is_lost=is_lost))

    def first_token(self, turn: Turn, *, was_seen: bool) -> None:
        """The decode leg has output; `was_seen`: its first token came now, not some time before."""
        self._deliver(self.scheduler.on_first_token(turn.id, self._clock.now_s(), was_seen=was_seen))

    def tokens(self, turn: Turn, count: int) -> None:
        """`count` more output tokens have come."""
        self._deliver(self.scheduler.on_tokens(turn.id, count, self._clock.now_s()))

    def ended(
        self,
        turn: Turn,
        kv_tokens: int | None,
        *,
        output_tokens: int | None = None,
        cached_tokens: int | None = None,
    ) -> None:
        """The turn is over. `kv_tokens`: prompt and output; all three as the engine counted them."""
        self._inboxes.pop(turn.id, None)
        if not self.scheduler.knows(turn.id):
            return  # its arrival failed
        actions = self.scheduler.on_turn_ended(
            turn.id,
            kv_tokens,
            self._clock.now_s(),
            output_tokens=output_tokens,
            cached_tokens=cached_tokens,
        )
        self._deliver(actions)

    def yield_conversation(self, conversation_id: str) -> None:
        """The conversation is at rest: its room is for those that wait; nothing if a turn has come since."""
        self._deliver(self.scheduler.on_conversation_yielded(conversation_id, self._clock.now_s()))

    def end_conversation(self, conversation_id: str) -> None:
        self._deliver(self.scheduler.on_conversation_ended(conversation_id, self._clock.now_s()))

    def expire_conversation(self, conversation_id: str) -> None:
        """The conversation was idle for too long; nothing happens if a turn has come since."""
        self._deliver(self.scheduler.on_conversation_expired(conversation_id, self._clock.now_s()))

    def engine_up(self, name: str, kv_capacity_tokens: int | None) -> None:
        self._deliver(self.scheduler.on_engine_up(name, kv_capacity_tokens, self._clock.now_s()))

    def engine_down(self, name: str) -> None:
        self._deliver(self.scheduler.on_engine_down(name, self._clock.now_s()))

    def engine_added(self, profile: EngineProfile) -> None:
        self._deliver(self.scheduler.on_engine_added(profile, self._clock.now_s()))

    def engine_draining(self, name: str, *, is_draining: bool) -> None:
        now_s = self._clock.now_s()
        self._deliver(self.scheduler.on_engine_draining(name, now_s, is_draining=is_draining))

    def engine_vacated(self, name: str) -> None:
        """What is still bound to a draining engine is placed anew at its next turn."""
        self._deliver(self.scheduler.on_engine_vacated(name, self._clock.now_s()))

    def engine_removed(self, name: str) -> None:
        self._deliver(self.scheduler.on_engine_removed(name, self._clock.now_s()))

    def engine_observed(self, name: str, *, kv_usage: float, running: int, waiting: int) -> None:
        """What the engine said of its own load."""
        now_s = self._clock.now_s()
        self._deliver(self.scheduler.on_kv_observed(name, kv_usage, running, waiting, now_s))

    def _deliver(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, PlacementFailed):
                self._errors.note("policy", "place", action.error)
            inbox = self._inboxes.get(action.turn_id)
            if inbox is not None:  # the others' actions must not be lost with one that nobody waits for
                inbox.put(action)

    def _no_room(self, waited_s: float) -> NoCapacity:
        if not self.scheduler.pools.ledgers:
            return NoCapacity(
                f"no decode engine came up within {waited_s:g} s: {self.why_no_decoder()}",
                code="no_decode_engine",
            )
        return NoCapacity(
            f"no decoder had room for this conversation within {waited_s:g} s: "
            "try again later, or end conversations that are done (DELETE /v1/conversations/{id})",
            code="no_kv_capacity",
        )


def _never_arrived() -> TurnError:
    return TurnError("the scheduler failed on this turn: the gateway's log says why", code="internal_error")


def _placement_failed(error: Exception) -> TurnError:
    return TurnError(
        f"placing this turn failed ({type(error).__name__}): the gateway's log says why",
        code="placement_failed",
    )
