"""The laws of the books: every joule has exactly one place, whatever happens and in whatever order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_sdk.protocol import EnergySource
from conserve_server.energy.accounts import PENDING, ConversationAccount, Factors, TurnAccount
from conserve_server.energy.domain import Reading
from conserve_server.energy.ledger import EnergyLedger
from conserve_server.energy.legs import Counted, Leg
from conserve_server.energy.totals import summed

ENGINES = ("prefill-0", "decode-0", "decode-1")
NONE = Factors()


def measured(energy_j: float | None, idle_w: float = 50.0) -> Reading:
    return Reading(energy_j, idle_w, EnergySource.MEASURED)


@dataclass
class World:
    """A ledger, its time, and everything that was ever opened in it."""

    ledger: EnergyLedger = field(
        default_factory=lambda: EnergyLedger({"p": ("prefill-0",), "d": ("decode-0", "decode-1")}, 0.0)
    )
    now_s: float = 0.0
    conversations: list[ConversationAccount] = field(default_factory=list)
    settled: list[TurnAccount] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger.on_settled = self.settled.append

    def conversation(self, name: str = "c") -> ConversationAccount:
        self.conversations.append(ConversationAccount("default", name))
        return self.conversations[-1]

    def leg(self, turn: TurnAccount, engine: str = "decode-0", tokens: int = 100) -> Leg:
        return self.ledger.leg_started(turn, engine, self.now_s, expected_tokens=tokens)

    def close(self, name: str, energy_j: float | None, idle_w: float = 50.0) -> None:
        self.ledger.close(name, measured(energy_j, idle_w), self.now_s)
        self.ledger.settle(self.now_s)

    def served(self, conversation: ConversationAccount, start_s: float, end_s: float) -> TurnAccount:
        """A turn that was prefilled in its first tenth and decoded for the rest."""
        self.now_s = start_s
        turn = self.ledger.turn_began(conversation, start_s)
        leg = self.leg(turn)
        self.ledger.first_token(leg, start_s + (end_s - start_s) / 10)
        self.now_s = end_s
        self.ledger.leg_ended(leg, end_s, Counted(100, decode_tokens=50))
        self.ledger.hold(conversation, "decode-0", 150, end_s)
        self.ledger.turn_ended(turn, end_s, output_tokens=50, context_tokens=150)
        return turn

    @property
    def charged_j(self) -> float:
        return math.fsum(c.energy.total_j + c.gap_j for c in self.conversations)


def test_a_turn_alone_on_its_device_pays_for_all_of_it() -> None:
    world = World()
    conversation = world.conversation()
    turn = world.served(conversation, 0.0, 2.0)
    world.close("d", 400.0)
    report = turn.report(NONE)
    assert (report.source, report.total_j, report.idle_j) == (EnergySource.MEASURED, 400, 100)
    assert report.total_j == pytest.approx((report.prefill_j or 0) + (report.decode_j or 0) + 100)
    assert report.j_per_output_token == 8
    assert report.context_tokens_per_j == 150 / 400
    assert world.settled == [turn]


def test_a_tool_gap_costs_and_is_shown_as_such() -> None:
    world = World()
    conversation = world.conversation()
    world.served(conversation, 0.0, 2.0)
    world.close("d", 400.0)
    world.now_s = 12.0
    world.close("d", 500.0)
    report = conversation.report(NONE)
    assert report.gap_j == pytest.approx(500)
    assert report.total_j == pytest.approx(900)
    assert report.pending  # it still holds KV


def test_after_its_release_a_conversation_pays_nothing_more() -> None:
    world = World()
    conversation = world.conversation()
    world.served(conversation, 0.0, 2.0)
    world.ledger.release_all(conversation, 3.0)
    world.now_s = 4.0
    world.close("d", 250.0)
    domain = world.ledger.domains["d"].totals
    assert conversation.gap_j == pytest.approx(50)
    assert domain.unallocated_idle_j == pytest.approx(50)


def test_an_interval_waits_for_the_turns_that_ran_in_it() -> None:
    world = World()
    conversation = world.conversation()
    turn = world.ledger.turn_began(conversation, 0.0)
    leg = world.leg(turn)
    world.now_s = 1.0
    world.close("d", 100.0)
    assert conversation.report(NONE).reason == PENDING
    assert turn.report(NONE).pending
    world.ledger.leg_ended(leg, 1.5, Counted(100))
    world.ledger.turn_ended(turn, 1.5)
    world.now_s = 2.0
    world.close("d", 100.0)
    assert turn.is_settled
    assert turn.report(NONE).total_j == 175  # the last half second is the gap's
    assert conversation.gap_j == 25


def test_a_turn_that_runs_on_is_estimated_when_patience_ends() -> None:
    world = World()
    turn = world.ledger.turn_began(world.conversation(), 0.0)
    leg = world.leg(turn)
    world.ledger.first_token(leg, 0.5)
    for second in range(1, 40):
        world.now_s = float(second)
        world.close("d", 100.0)
    assert world.ledger.domains["d"].totals.intervals == 9
    assert turn.energy.total_j == pytest.approx(900)


def test_a_dropped_interval_makes_its_turns_unknown_and_not_cheap() -> None:
    world = World()
    turn = world.served(world.conversation(), 0.0, 2.0)
    world.close("d", None)
    report = turn.report(NONE)
    assert report.total_j is None
    assert report.reason is not None
    assert report.reason.startswith("not measured: 2 s of its time are missing")
    assert world.ledger.domains["d"].totals.dropped_s == 2.0


def test_an_engine_without_a_meter_is_named() -> None:
    world = World()
    turn = world.ledger.turn_began(world.conversation(), 0.0)
    leg = world.leg(turn, "decode-9")
    world.ledger.first_token(leg, 0.5)
    world.ledger.leg_ended(leg, 1.0, Counted(100))
    world.ledger.turn_ended(turn, 1.0)
    assert turn.report(NONE).reason == "not measured: decode-9 has no energy meter"
    assert world.settled == [turn]


def test_a_lost_engine_holds_nothing() -> None:
    world = World()
    conversation = world.conversation()
    world.served(conversation, 0.0, 2.0)
    world.ledger.engine_lost("decode-0", 2.0)
    assert conversation.holdings == {}
    world.now_s = 3.0
    world.close("d", 150.0)
    assert conversation.gap_j == 0


def test_carbon_and_cost_follow_from_joules_where_the_factors_are_known() -> None:
    world = World()
    conversation = world.conversation()
    world.served(conversation, 0.0, 2.0)
    world.close("d", 3600.0)
    report = conversation.report(Factors(carbon_g_per_kwh=400, price_per_kwh=0.3, currency="EUR"))
    assert report.carbon_g == pytest.approx(0.4)
    assert report.cost == pytest.approx(0.0003)
    assert report.currency == "EUR"


def test_a_sum_is_no_better_known_than_its_least_known_part() -> None:
    world = World()
    conversation = world.conversation()
    turn = world.ledger.turn_began(conversation, 0.0)
    for engine in ("prefill-0", "decode-0"):
        leg = world.leg(turn, engine)
        world.ledger.leg_ended(leg, 1.0, Counted(100))
    world.ledger.turn_ended(turn, 1.0)
    world.ledger.close("p", Reading(100.0, 50.0, EnergySource.MODELLED), 1.0)
    world.ledger.close("d", measured(100.0), 1.0)
    world.ledger.settle(1.0)
    assert turn.report(NONE).source is EnergySource.MODELLED
    assert turn.report(NONE).total_j == 200


# -- laws ------------------------------------------------------------------------------------

KINDS = ("turn", "leg", "token", "end_leg", "end_turn", "rebind", "release", "lost", "close")
Draw = tuple[str, int, float, int]
steps = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 3), st.floats(0, 3), st.integers(0, 5000)), max_size=60
)


class Story(World):
    """A world in which draws happen, in whatever order they make sense."""

    def __init__(self, draws: list[Draw]) -> None:
        super().__init__()
        self.turns: list[TurnAccount] = []
        self.legs: list[Leg] = []
        self.metered_j = 0.0
        for number in range(3):
            self.conversation(str(number))
        for kind, pick, delay_s, amount in draws:
            self.now_s += delay_s
            getattr(self, f"do_{kind}")(pick, amount)
        self.do_close(0, 100)
        self.do_close(1, 100)
        self.ledger.settle(self.now_s + 1e6)

    def do_turn(self, pick: int, _amount: int) -> None:
        self.turns.append(self.ledger.turn_began(self.conversations[pick % 3], self.now_s))

    def do_leg(self, pick: int, amount: int) -> None:
        running = [turn for turn in self.turns if turn.ended_s is None]
        if running:
            self.legs.append(self.leg(running[pick % len(running)], ENGINES[pick % 3], amount))

    def do_token(self, pick: int, _amount: int) -> None:
        running = [leg for leg in self.legs if leg.ended_s is None]
        if running:
            self.ledger.first_token(running[pick % len(running)], self.now_s)

    def do_end_leg(self, pick: int, amount: int) -> None:
        if self.legs:
            counted = Counted(amount, amount // 2, amount // 3, amount // 10) if pick else None
            leg = self.legs[amount % len(self.legs)]
            self.ledger.leg_ended(leg, self.now_s, counted, transfer_s=amount / 1000 if pick == 1 else 0.0)

    def do_end_turn(self, pick: int, _amount: int) -> None:
        running = [turn for turn in self.turns if turn.ended_s is None]
        if not running:
            return
        turn = running[pick % len(running)]
        for leg in self.legs:
            if leg.turn is turn:
                self.ledger.leg_ended(leg, self.now_s, None)
        self.ledger.turn_ended(turn, self.now_s)

    def do_rebind(self, pick: int, amount: int) -> None:
        self.ledger.hold(self.conversations[amount % 3], ENGINES[pick % 3], amount, self.now_s)
        self.ledger.release_all(self.conversations[amount % 3], self.now_s, but=ENGINES[pick % 3])

    def do_release(self, pick: int, _amount: int) -> None:
        self.ledger.release_all(self.conversations[pick % 3], self.now_s)

    def do_lost(self, pick: int, _amount: int) -> None:
        self.ledger.engine_lost(ENGINES[pick % 3], self.now_s)

    def do_close(self, pick: int, amount: int) -> None:
        self.metered_j += amount / 10
        self.close("p" if pick % 2 else "d", amount / 10)


@settings(max_examples=300)
@given(steps)
def test_every_metered_joule_is_charged_once_or_left_unallocated(draws: list[Draw]) -> None:
    story = Story(draws)
    domains = [domain.totals for domain in story.ledger.domains.values()]
    unallocated_j = math.fsum(d.unallocated_idle_j + d.unallocated_dynamic_j for d in domains)
    whole_j = math.fsum((story.charged_j, unallocated_j))
    assert whole_j == pytest.approx(story.metered_j, rel=1e-9, abs=1e-9)
    assert max(d.worst_residual_j for d in domains) <= 1e-9 * story.metered_j
    assert summed(story.ledger.totals.uses.values()).total_j == pytest.approx(story.charged_j, abs=1e-9)
    assert min(c.energy.total_j + c.gap_j for c in story.conversations) >= 0


@given(steps)
def test_every_turn_that_ended_is_settled_once(draws: list[Draw]) -> None:
    story = Story(draws)
    ended = [turn for turn in story.turns if turn.ended_s is not None]
    assert sorted(map(id, story.settled)) == sorted(map(id, ended))
    running = [turn for turn in story.turns if turn.ended_s is None]
    for conversation in story.conversations:
        assert conversation.unsettled_turns == sum(t.conversation is conversation for t in running)


@given(steps)
def test_a_conversation_is_charged_what_its_turns_are(draws: list[Draw]) -> None:
    story = Story(draws)
    for conversation in story.conversations:
        of_turns_j = math.fsum(t.energy.total_j for t in story.turns if t.conversation is conversation)
        assert conversation.energy.total_j == pytest.approx(of_turns_j, rel=1e-9, abs=1e-9)
