"""The simulator: an event heap on a virtual clock that drives the served scheduler.

It reports to the scheduler what the gateway reports, when the gateway would, and carries its
actions out on modelled engines. Events at the same instant happen in the order in which they
were foreseen, so the same workload gives the same result to the last digit. Prompts' lengths
are told as they are (the gateway estimates a first turn's); output tokens are reported when a
turn ends. No time-out is modelled: who waits, waits.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from conserve_server.core.turn import Placement, Turn
from conserve_server.scheduling.actions import Action, PlacementFailed, StartPrefill
from conserve_server.scheduling.policy import Policy
from conserve_server.scheduling.scheduler import Scheduler
from conserve_server.simulation.engine_model import EngineModel
from conserve_server.simulation.fleet import Failure, Fleet, Options
from conserve_server.simulation.kv_blocks import BLOCK_TOKENS
from conserve_server.simulation.link import Links
from conserve_server.simulation.live_turns import LiveConversation, TurnLegs, total_tokens
from conserve_server.simulation.records import LiveTurn, Records
from conserve_server.simulation.request import Request
from conserve_server.simulation.workload import Arrival, ConversationShape, Workload

Event = tuple[float, int, Callable[..., None], tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left behind, `ends_s` seconds after its start. Records number conversations by arrival."""

    records: Records
    engines: dict[str, EngineModel]
    ends_s: float
    events: int
    scheduler: Scheduler


class Simulator:
    """One fleet under one policy. `run` once."""

    def __init__(self, policy: Policy, fleet: Fleet, options: Options | None = None) -> None:
        self._options = options or Options()
        self._fleet = fleet
        self._scheduler = Scheduler(
            policy,
            engines=[engine.profile for engine in fleet.engines],
            kv_budget_fraction=self._options.kv_budget_fraction,
            estimates=self._options.estimates,
        )
        self._engines = {engine.name: engine.model() for engine in fleet.engines}
        self._links = Links(fleet.link)
        self._records = Records()
        self._events: list[Event] = []
        self._now_s = 0.0
        self._order = 0
        self._next_turn = 0
        self._next_request = 0
        self._turns: dict[int, TurnLegs] = {}
        self._begun = 0
        self._arrivals: Iterator[Arrival] = iter(())
        self._live = 0
        self._has_more = True
        self._said_empty: set[str] = set()

    def run(self, workload: Workload) -> Outcome:
        """Run the workload to its end."""
        for name, engine in self._engines.items():
            self._perform(self._scheduler.on_engine_up(name, engine.capacity_tokens, self._now_s))
        for failure in self._options.failures:
            self._at(failure.at_s, self._fail, failure)
        if self._options.reports_every_s is not None:
            self._at(self._options.reports_every_s, self._report)
        self._arrivals = iter(workload.arrivals)
        self._await_next()
        events, heap = 0, self._events
        while heap and (self._live or self._has_more):
            self._now_s, _, happen, arguments = heapq.heappop(heap)
            happen(*arguments)
            events += 1
        return Outcome(
            self._records,
            self._engines,
            self._now_s,
            events,
            self._scheduler,
        )

    def _at(self, time_s: float, happen: Callable[..., None], *arguments: object) -> None:
        self._order += 1
        heapq.heappush(self._events, (time_s, self._order, happen, arguments))

    # -- conversations and turns ---------------------------------------------------------------

    def _await_next(self) -> None:
        arrival = next(self._arrivals, None)
        self._has_more = arrival is not None
        if arrival is not None:
            self._at(max(arrival.at_s, self._now_s), self._begin, arrival.conversation)

    def _begin(self, shape: ConversationShape) -> None:
        conversation = LiveConversation(self._begun, shape)
        self._begun += 1
        self._live += 1
        gap_s = shape.turns[0].gap_s
        if gap_s > 0:
            self._at(self._now_s + gap_s, self._arrive, conversation, 0)
        else:
            self._arrive(conversation, 0)
        self._await_next()

    def _arrive(self, conversation: LiveConversation, index: int) -> None:
        """The conversation's next turn is sent."""
        shape = conversation.shape
        conversation.is_waiting = False
        turn = shape.turns[index]
        if turn.rewrites_from_tokens is not None:
            conversation.history_tokens = min(turn.rewrites_from_tokens, conversation.history_tokens)
            for name in conversation.seen_by:
                self._engines[name].kv.truncate(shape.id, conversation.history_tokens)
        prompt_tokens = conversation.history_tokens + turn.appended_tokens
        conversation.history_tokens = prompt_tokens + turn.output_tokens
        is_last = index + 1 == len(shape.turns)
        live = LiveTurn(
            conversation.number, index, is_last, prompt_tokens, turn.output_tokens, arrived_s=self._now_s
        )
        self._send(conversation, live)

    def _send(self, conversation: LiveConversation, live: LiveTurn) -> None:
        self._next_turn += 1
        shape = conversation.shape
        total = total_tokens(shape) if self._options.is_replay else None
        turn = Turn(self._next_turn, shape.id, live.prompt_tokens, total)
        state = self._turns[turn.id] = TurnLegs(turn, conversation, live)
        if self._options.tells_resident:  # engines tell once a second; what they hold at a turn matters
            for name in conversation.seen_by:
                held = {shape.id: self._engines[name].kv.cached_tokens(state.context())}
                self._scheduler.on_resident(name, held, BLOCK_TOKENS, self._now_s)
        self._perform(self._scheduler.on_turn(turn, self._now_s))

    def _end(self, state: TurnLegs) -> None:
        """The turn's last token came."""
        live, request = state.live, state.decode
        cached_tokens = request.prompt_hit_tokens if request is not None else None
        if live.output_tokens > 1:
            self._perform(self._scheduler.on_tokens(state.turn.id, live.output_tokens - 1, self._now_s))
        self._records.add(live, self._now_s)
        self._close(state, live.prompt_tokens + live.output_tokens, live.output_tokens, cached_tokens)
        conversation = state.conversation
        if live.is_last:
            self._finish(conversation)
            return
        conversation.is_waiting = True
        gap_s = conversation.shape.turns[live.index + 1].gap_s
        lead_s = self._options.fetch_lead_s
        if lead_s is not None and lead_s <= gap_s:
            self._at(self._now_s + gap_s - lead_s, self._fetch, state)
        self._at(self._now_s + gap_s, self._arrive, conversation, live.index + 1)

    def _close(self, state: TurnLegs, kv_tokens: int | None, output: int | None, cached: int | None) -> None:
        del self._turns[state.turn.id]
        self._perform(
            self._scheduler.on_turn_ended(
                state.turn.id, kv_tokens, self._now_s, output_tokens=output, cached_tokens=cached
            )
        )

    def _finish(self, conversation: LiveConversation) -> None:
        self._live -= 1
        self._perform(self._scheduler.on_conversation_ended(conversation.shape.id, self._now_s))
        if self._options.releases_kv:
            for name in conversation.seen_by:
                self._engines[name].kv.drop(conversation.shape.id)
                self._go(self._engines[name])

    # -- the scheduler's actions ---------------------------------------------------------------

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, PlacementFailed):
                raise action.error
            state = self._turns[action.turn_id]
            if state.live.placed_s is None:
                state.live.placed_s = self._now_s
            state.live.path = action.placement.path
            if isinstance(action, StartPrefill):
                self._prefill(state, action.placement)
            else:
                self._decode(state, action.placement)

    def _prefill(self, state: TurnLegs, placement: Placement) -> None:
        if placement.prefiller is None:
            raise RuntimeError("a prefill leg needs a prefiller")
        self._end_lease(state)
        state.leg_engine, state.leg_started_s = placement.prefiller, self._now_s
        state.leg = self._request(state, placement, output_tokens=1, is_leased=True)
        self._submit(placement.prefiller, state.leg, state)

    def _decode(self, state: TurnLegs, placement: Placement) -> None:
        if placement.prefiller is None:
            self._end_lease(state)
        state.decoder = placement.decoder
        is_pulled = placement.prefiller is not None
        state.decode = self._request(state, placement, state.live.output_tokens, is_pulled=is_pulled)
        self._submit(placement.decoder, state.decode, state)

    def _request(
        self,
        state: TurnLegs,
        placement: Placement,
        output_tokens: int,
        *,
        is_leased: bool = False,
        is_pulled: bool = False,
    ) -> Request:
        self._next_request += 1
        shape = state.conversation.shape
        return Request(
            turn_id=state.turn.id,
            conversation=shape.id,
            prompt_tokens=state.live.prompt_tokens,
            output_tokens=output_tokens,
            order=self._next_request,
            priority=self._priority(state, placement),
            prefix=shape.prefix,
            shared_tokens=shape.shared_prefix_tokens,
            is_leased=is_leased,
            is_pulled=is_pulled,
        )

    def _priority(self, state: TurnLegs, placement: Placement) -> int:
        if placement.priority is not None:
            return placement.priority
        return (self._options.first_turn_priority or 0) if state.live.index == 0 else 0

    # -- engines -------------------------------------------------------------------------------

    def _submit(self, name: str, request: Request, state: TurnLegs) -> None:
        state.conversation.seen_by[name] = None
        engine = self._engines[name]
        engine.submit(request)
        self._disturb(engine)

    def _disturb(self, engine: EngineModel) -> None:
        """Something came to the engine: let it in at the end of the step in flight."""
        if engine.run is None:
            self._go(engine)
            return
        ends_s = engine.shorten(self._now_s)
        if ends_s is not None:
            self._at(ends_s, self._run_ended, engine, engine.runs)

    def _go(self, engine: EngineModel) -> None:
        """Let the engine begin its next run if it can, and fetch what it waits for."""
        ends_s = engine.plan(self._now_s)
        if ends_s is not None:
            self._at(ends_s, self._run_ended, engine, engine.runs)
        if engine.pulls:
            for request in engine.pulls:
                self._pull(engine, request)
            engine.pulls.clear()
        if engine.loads:
            for request in engine.loads:
                ends_s = engine.begin_load(request.load_tokens, self._now_s)
                self._at(ends_s, self._loaded, engine, request)
            engine.loads.clear()

    def _run_ended(self, engine: EngineModel, run: int) -> None:
        if run != engine.runs:
            return  # it was shortened, or the engine has died
        firsts, done = engine.finish(self._now_s)
        for request in firsts:
            if not request.is_leased and request.turn_id in self._turns:
                self._first_token(request)
        for request in done:
            state = self._turns.get(request.turn_id)
            if state is None:
                continue  # nobody waits for it
            if request.is_leased:
                self._prefilled(state, request)
            else:
                self._end(state)
        self._go(engine)

    def _prefilled(self, state: TurnLegs, leg: Request) -> None:
        """The prefill leg is over; its KV stays held until the decoder has fetched it."""
        state.live.prefill_s += self._now_s - state.leg_started_s
        state.live.cached_tokens = leg.prompt_hit_tokens or 0
        self._perform(
            self._scheduler.on_prefilled(
                state.turn.id, state.live.prompt_tokens, self._now_s, leg.prompt_hit_tokens
            )
        )

    def _first_token(self, request: Request) -> None:
        state = self._turns[request.turn_id]
        state.live.first_token_s = self._now_s
        if not request.is_pulled:
            state.live.cached_tokens = request.prompt_hit_tokens or 0
        self._perform(self._scheduler.on_first_token(state.turn.id, self._now_s))

    # -- the host tier -------------------------------------------------------------------------

    def _loaded(self, engine: EngineModel, request: Request) -> None:
        if not request.is_over:  # or the engine died meanwhile
            engine.loaded(request)
            self._disturb(engine)

    def _fetch(self, ended: TurnLegs) -> None:
        """The tool after that turn has ended: bring the conversation's KV back to its decoder."""
        engine, context = self._engines[ended.decoder], ended.context()
        tokens = engine.kv.missing_tokens(context)
        if tokens:
            ends_s = engine.begin_load(tokens, self._now_s)
            self._at(ends_s, self._fetched, engine, ended.conversation, context)

    def _fetched(self, engine: EngineModel, conversation: LiveConversation, context: Request) -> None:
        if conversation.is_waiting:  # or its turn loads for itself
            engine.kv.restore(context, self._now_s)

    # -- transfers -----------------------------------------------------------------------------

    def _pull(self, engine: EngineModel, request: Request) -> None:
        """The decoder fetches what it has not cached, in whole blocks."""
        state = self._turns[request.turn_id]
        if state.leg is None:
            engine.received(request, has_come=False)
            self._disturb(engine)
            return
        tokens = request.length - request.hit_tokens
        state.live.moved_tokens += tokens
        blocks_tokens = -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS
        bytes_per_token = engine.timing.kv_bytes_per_token
        ends_s = self._links.begin(state.leg_engine, engine.name, blocks_tokens, bytes_per_token, self._now_s)
        self._at(ends_s, self._received, engine, request, state.leg)

    def _received(self, engine: EngineModel, request: Request, leg: Request) -> None:
        state = self._turns.get(request.turn_id)
        if request.is_over or state is None or state.decode is not request:
            return  # the decoder died meanwhile
        has_come = state.leg is leg
        engine.received(request, has_come=has_come)
        self._end_lease(state)
        self._disturb(engine)

    def _end_lease(self, state: TurnLegs) -> None:
        """Free the KV that the turn's prefill leg holds, if it still does."""
        leg, state.leg = state.leg, None
        if leg is None:
            return
        prefiller = self._engines[state.leg_engine]
        prefiller.end_lease(leg)
        self._go(prefiller)

    # -- failures and reports ------------------------------------------------------------------

    def _fail(self, failure: Failure) -> None:
        """The engine dies with all it holds. Clients try turns that it had begun to answer again at once."""
        engine = self._engines[failure.engine]
        lost = engine.lose_all()
        for state in self._turns.values():
            if state.leg is not None and state.leg_engine == engine.name and state.leg.is_over:
                state.leg = None  # held there for a decoder that fetches it now, or was about to
        self._perform(self._scheduler.on_engine_down(engine.name, self._now_s))
        for request in lost:
            state = self._turns[request.turn_id]
            state.live.tries += 1
            if request.is_leased:
                state.leg = None
                self._perform(self._scheduler.on_prefill_failed(request.turn_id, self._now_s))
            else:
                self._retry(state)
        self._at(self._now_s + failure.down_s, self._recover, engine)

    def _retry(self, state: TurnLegs) -> None:
        self._end_lease(state)
        live, conversation = state.live, state.conversation
        self._close(state, None, None, None)
        self._send(conversation, live)

    def _recover(self, engine: EngineModel) -> None:
        self._perform(self._scheduler.on_engine_up(engine.name, engine.capacity_tokens, self._now_s))

    def _report(self) -> None:
        """Engines say what they hold and run, as the gateway's probe reads it.

        One that is empty and said so before has nothing to say.
        """
        for name, engine in self._engines.items():
            share, running, waiting = engine.kv.used / engine.kv.total, engine.running, engine.waiting
            is_empty = not (share or running or waiting)
            if is_empty and name in self._said_empty:
                continue
            (self._said_empty.add if is_empty else self._said_empty.discard)(name)
            self._perform(self._scheduler.on_kv_observed(name, share, running, waiting, self._now_s))
        self._at(self._now_s + (self._options.reports_every_s or 0.0), self._report)
