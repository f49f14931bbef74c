"""A small cluster on a virtual clock: an event heap that drives the scheduler as the gateway does.

Engines are first come, first served: one prefill at a time, tokens one step apart, a step
longer while the engine also prefills. It is for laws and comparisons within tests; it
models no machine.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from conserve_server.core.turn import Placement, Turn
from conserve_server.scheduling.actions import Action, PlacementFailed, StartPrefill
from conserve_server.scheduling.engine_state import EngineProfile
from conserve_server.scheduling.policy import Policy
from conserve_server.scheduling.scheduler import Scheduler

PREFILL_TOKENS_PER_S = 1000.0
STEP_S = 0.02
TRANSFER_S = 0.01


@dataclass(frozen=True)
class Script:
    """A conversation: when it starts, what each turn appends and produces, the gaps between them."""

    id: str
    start_s: float
    appended: tuple[int, ...]
    produced: tuple[int, ...]
    gap_s: float = 1.0

    @property
    def total_tokens(self) -> int:
        return sum(self.appended) + sum(self.produced)


@dataclass
class Log:
    """What happened: each action with its time and turn, turns by how often they ended.

    `most_overcommitted_tokens`: the most by which reservations exceeded budgets at any time.
    """

    actions: list[tuple[float, str, Placement]] = field(default_factory=list)
    ends: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    ttft_s: dict[tuple[str, int], float] = field(default_factory=dict)
    most_overcommitted_tokens: int = 0

    def placements(self, conversation: str) -> list[Placement]:
        return [placement for _, name, placement in self.actions if name.partition("/")[0] == conversation]

    def before(self, time_s: float) -> list[tuple[float, str, Placement]]:
        return [action for action in self.actions if action[0] < time_s]


@dataclass
class _Live:
    turn: Turn
    script: Script
    index: int
    arrived_s: float

    @property
    def key(self) -> tuple[str, int]:
        return self.script.id, self.index


class VirtualCluster:
    """Runs conversations to their end; `capacity` is each engine's KV in tokens."""

    def __init__(
        self,
        policy: Policy,
        engines: Sequence[EngineProfile],
        *,
        capacity: int = 100_000,
        is_replay: bool = False,
        reports_every_s: float | None = None,
    ) -> None:
        self.scheduler = Scheduler(policy, engines=engines, kv_budget_fraction=0.9)
        self.log = Log()
        self._capacity = capacity
        self._names = [engine.name for engine in engines]
        self._is_replay = is_replay
        self._reports_every_s = reports_every_s
        self._events: list[tuple[float, int, Callable[[], list[Action]]]] = []
        self._order = count()
        self._ids = count(1)
        self._now_s = 0.0
        self._free_at_s: dict[str, float] = defaultdict(float)
        self._live: dict[int, _Live] = {}
        self._decoding: dict[int, _Live] = {}

    def run(self, scripts: Sequence[Script], *, most_events: int = 200_000) -> Log:
        """Run until nothing is left to happen. Fails when that takes too many events."""
        for name in self._names:
            self._perform(self.scheduler.on_engine_up(name, self._capacity, self._now_s))
        for script in scripts:
            self._at(script.start_s, lambda script=script: self._arrive(script, 0))  # type: ignore[misc]
        if self._reports_every_s is not None:
            self._at(self._reports_every_s, self._report)
        for _ in range(most_events):
            if not self._events:
                return self.log
            self._now_s, _, happen = heapq.heappop(self._events)
            self._perform(happen())
            excess = self.scheduler.pools.overcommitted_tokens
            self.log.most_overcommitted_tokens = max(self.log.most_overcommitted_tokens, excess)
        raise AssertionError("the cluster does not come to rest")

    # -- events ----------------------------------------------------------------------------------

    def _at(self, time_s: float, happen: Callable[[], list[Action]]) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), happen))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            assert not isinstance(action, PlacementFailed), action.error
            live = self._live[action.turn_id]
            self.log.actions.append((self._now_s, f"{live.script.id}/{live.index}", action.placement))
            if isinstance(action, StartPrefill):
                self._prefill(live, action.placement)
            else:
                self._decode(live, action.placement)

    def _arrive(self, script: Script, index: int) -> list[Action]:
        total = script.total_tokens if self._is_replay else None
        turn = Turn(next(self._ids), script.id, _prompt(script, index), total)
        self._live[turn.id] = _Live(turn, script, index, self._now_s)
        return self.scheduler.on_turn(turn, self._now_s)

    def _prefill(self, live: _Live, placement: Placement) -> None:
        assert placement.prefiller is not None
        done_s = self._compute(placement.prefiller, live.turn.prompt_tokens)
        tokens = live.turn.prompt_tokens
        self._at(done_s, lambda: self.scheduler.on_prefilled(live.turn.id, tokens, self._now_s))

    def _decode(self, live: _Live, placement: Placement) -> None:
        self._decoding[live.turn.id] = live
        if placement.prefiller is None:
            first_s = self._compute(placement.decoder, live.script.appended[live.index])
        else:
            first_s = self._now_s + TRANSFER_S
        self._at(first_s, lambda: self._first_token(live, placement.decoder))

    def _compute(self, engine: str, tokens: int) -> float:
        begins_s = max(self._now_s, self._free_at_s[engine])
        self._free_at_s[engine] = begins_s + tokens / PREFILL_TOKENS_PER_S
        return self._free_at_s[engine]

    def _first_token(self, live: _Live, decoder: str) -> list[Action]:
        self.log.ttft_s[live.key] = self._now_s - live.arrived_s
        later_tokens = live.script.produced[live.index] - 1
        prefill_s = max(0.0, self._free_at_s[decoder] - self._now_s)
        self._at(self._now_s + later_tokens * STEP_S + prefill_s, lambda: self._end(live, later_tokens))
        return self.scheduler.on_first_token(live.turn.id, self._now_s)

    def _end(self, live: _Live, later_tokens: int) -> list[Action]:
        self.log.ends[live.key] += 1
        del self._decoding[live.turn.id]
        script, index = live.script, live.index
        if later_tokens:
            self._perform(self.scheduler.on_tokens(live.turn.id, later_tokens, self._now_s))
        held_tokens = live.turn.prompt_tokens + script.produced[index]
        actions = self.scheduler.on_turn_ended(live.turn.id, held_tokens, self._now_s)
        if index + 1 < len(script.appended):
            self._at(self._now_s + script.gap_s, lambda: self._arrive(script, index + 1))
            return actions
        return [*actions, *self.scheduler.on_conversation_ended(script.id, self._now_s)]

    def _report(self) -> list[Action]:
        """Engines say what they hold, truthfully, as long as anything else is to happen."""
        if self._events and self._reports_every_s is not None:
            self._at(self._now_s + self._reports_every_s, self._report)
        actions: list[Action] = []
        for view in self.scheduler.pools.views(self._now_s):
            ledger = self.scheduler.pools.ledgers.get(view.name)
            running = {live.script.id for live in self._decoding.values()}
            used_tokens = sum(map(ledger.held, running)) if ledger else 0
            usage = min(1.0, used_tokens / self._capacity)
            actions += self.scheduler.on_kv_observed(view.name, usage, view.running_turns, 0, self._now_s)
        return actions


def _prompt(script: Script, index: int) -> int:
    return sum(script.appended[: index + 1]) + sum(script.produced[:index])
