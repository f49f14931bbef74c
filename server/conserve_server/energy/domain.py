"""One domain: the devices that the same engines run on, read together and attributed together.

An interval is attributed once everything that ran in it is known, that is when its legs have
ended; after `patience_s` what still runs is estimated. A change costs the same whatever the
load; an interval costs one step for each leg that ran in it and each conversation that holds KV.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from conserve_sdk.protocol import EnergySource
from conserve_server.energy.accounts import ConversationAccount, TurnAccount
from conserve_server.energy.attribution import Joules, Metered, attribute
from conserve_server.energy.fitting import FittedWeights
from conserve_server.energy.legs import Leg, Pace, work_between
from conserve_server.energy.shared_time import SharedTime
from conserve_server.energy.totals import MeterTotals
from conserve_server.energy.work import Work, WorkTimes

Account = TurnAccount | ConversationAccount
Payer = tuple[Account, str]
"""Who pays, and the engine that it is for."""
Holding = tuple[ConversationAccount, str]
"""Who holds KV, and on which engine."""
Charge = Callable[[Account, str, Joules, EnergySource], None]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a domain's meter said of an interval. `energy_j` is None where it must be dropped."""

    energy_j: float | None
    idle_w: float
    source: EnergySource


@dataclass(frozen=True, slots=True)
class _Interval:
    """A closed interval whose legs may still run."""

    start_s: float
    end_s: float
    reading: Reading
    held: dict[Payer, float]
    held_s: float
    legs: Sequence[Leg]
    batched: dict[Leg, float]


class Domain:
    """Who holds KV on it, what runs on it, and the intervals that wait for what ran to end."""

    def __init__(
        self, name: str, engines: Sequence[str], now_s: float, *, times: WorkTimes, fits_weights: bool
    ) -> None:
        self.name = name
        self.engines = tuple(engines)
        self.holders: SharedTime[Holding, Payer] = SharedTime(now_s)
        self.batches: dict[str, SharedTime[Leg, Leg]] = {e: SharedTime(now_s) for e in engines}
        self.totals = MeterTotals()
        self.weights = FittedWeights(times.weights())
        self.since_s = now_s
        self._fits_weights = fits_weights
        self._pace = Pace(times)
        self._open: dict[Leg, None] = {}
        self._ended: list[Leg] = []
        self._pending: deque[_Interval] = deque()
        self._waiting: deque[TurnAccount] = deque()

    @property
    def was_idle(self) -> bool:
        """Whether no leg ran since the last interval."""
        return not self._open and not self._ended

    # -- what runs -----------------------------------------------------------------------------

    def leg_started(self, leg: Leg) -> None:
        self._open[leg] = None
        leg.turn.domains = leg.turn.domains | {self.name}

    def leg_ended(self, leg: Leg) -> None:
        del self._open[leg]
        self._ended.append(leg)
        self._pace.learn(leg)

    def turn_ended(self, turn: TurnAccount) -> None:
        """The turn is settled here once everything up to its end was attributed."""
        self._waiting.append(turn)
        turn.waits_for += 1

    # -- intervals -----------------------------------------------------------------------------

    def begin(self, now_s: float) -> None:
        """The first interval begins now; nothing before it was read."""
        self.holders.close(now_s)
        self.since_s = now_s

    def close(self, reading: Reading, now_s: float) -> None:
        """The interval since the last one has ended."""
        held, held_s = self.holders.close(now_s)
        batched = {leg: s for each in self.batches.values() for leg, s in each.close(now_s)[0].items()}
        legs = (*self._ended, *self._open)
        self._pending.append(_Interval(self.since_s, now_s, reading, held, held_s, legs, batched))
        self.since_s, self._ended = now_s, []

    def settle(self, now_s: float, patience_s: float, charge: Charge) -> list[TurnAccount]:
        """Attribute what is known by now, oldest interval first: the turns that were read to their end."""
        read: list[TurnAccount] = []
        while self._pending and self._is_known(self._pending[0], now_s - patience_s):
            interval = self._pending.popleft()
            if interval.reading.energy_j is None:
                self._miss(interval)
            else:
                self._attribute(interval, interval.reading.energy_j, now_s, charge)
            while self._waiting and (self._waiting[0].ended_s or 0.0) <= interval.end_s:
                read.append(self._waiting.popleft())
        return read

    def _is_known(self, interval: _Interval, limit_s: float) -> bool:
        return interval.end_s <= limit_s or all(leg.ended_s is not None for leg in interval.legs)

    def _attribute(self, interval: _Interval, energy_j: float, now_s: float, charge: Charge) -> None:
        metered = Metered(energy_j, interval.end_s - interval.start_s, interval.reading.idle_w)
        work = [(leg, self._work(interval, leg, now_s)) for leg in interval.legs]
        split = attribute(
            metered,
            held=interval.held,
            held_s=interval.held_s,
            work=[((leg.turn, leg.engine), done) for leg, done in work],
            weights=self.weights.weights,
        )
        for (account, engine), joules in split.shares:
            charge(account, engine, joules, interval.reading.source)
        self.totals.add(metered, split)
        if self._fits_weights:
            self.weights.learn(metered.dynamic_j, [done for _, done in work])

    def _work(self, interval: _Interval, leg: Leg, now_s: float) -> Work:
        return work_between(
            leg,
            leg.counted or self._pace.estimate(leg, now_s),
            interval.start_s,
            interval.end_s,
            until_s=now_s,
            batched_s=interval.batched.get(leg, 0.0),
        )

    def _miss(self, interval: _Interval) -> None:
        """Nobody can say what this time cost: those who ran or held KV then are told so."""
        duration_s = interval.end_s - interval.start_s
        self.totals.drop(duration_s)
        there: set[Account] = {leg.turn for leg in interval.legs}
        there.update(account for account, _ in interval.held)
        there.update(a.conversation for a in tuple(there) if isinstance(a, TurnAccount))
        for account in there:
            account.missed_s += duration_s
