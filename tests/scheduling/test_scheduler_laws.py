"""Laws that hold under every policy, over every interleaving of turns, failures, releases and engines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from conserve_server.core.policy_config import SchedulerConfig
from conserve_server.core.turn import Placement, Turn
from conserve_server.scheduling.actions import Action, PlacementFailed, StartDecode, StartPrefill
from conserve_server.scheduling.engine_state import EngineProfile
from conserve_server.scheduling.policies import POLICIES
from conserve_server.scheduling.policy import ClusterView, Policy, TurnView
from conserve_server.scheduling.scheduler import Scheduler

CAPACITY = 400
ENGINES = (
    EngineProfile("p0", takes_prefills=True),
    EngineProfile("p1", takes_prefills=True),
    EngineProfile("d0", takes_conversations=True),
    EngineProfile("d1", takes_conversations=True),
    EngineProfile("both", takes_prefills=True, takes_conversations=True),
)
NAMES = tuple(engine.name for engine in ENGINES)
# Small constants, so that runs of a few turns reach every branch.
CONFIG = SchedulerConfig.model_validate(
    {
        "estimates": {"prefill_tokens_per_s": 100.0, "chunk_tokens": 64, "mean_output_tokens": 10},
        "conserve_plus": {"long_append_tokens": 50, "append_gain": 1.0, "first_turn_priority": 10},
        "collocated_sticky": {"min_load_turns": 1},
        "conditional": {"threshold_tokens": 100},
        "ppd": {"short_append_tokens": 20},
        "ampd": {"itl_slo_s": 0.5, "reorders_prefills": True},
        "ampd_emulated": {"wrong_share": 0.5},
    }
)
TENANTS = {"a": "x", "b": "x", "c": "x", "d": "y", "e": "y", "f": "z"}
"""Whose each conversation is."""


class Moody:
    """A policy that raises while it is out of order."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.is_broken = False

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        if self.is_broken:
            raise ArithmeticError("out of order")
        return self.policy.place(turn, cluster)


class Interleavings(RuleBasedStateMachine):
    """A driver that does in any order what a gateway may do."""

    policy: Callable[[], Policy]

    def __init__(self) -> None:
        super().__init__()
        self.moody = Moody(type(self).policy())
        self.scheduler = Scheduler(
            self.moody, engines=ENGINES, kv_budget_fraction=0.9, estimates=CONFIG.estimates
        )
        self.now_s = 0.0
        self.next_id = 1
        self.arrived: dict[int, Turn] = {}
        self.prefilling: dict[int, str] = {}
        self.decoding: dict[int, str] = {}
        self.confirmed: set[int] = set()
        self.answered: set[int] = set()
        self.stale: set[int] = set()
        self.unplaced: set[int] = set()

    def carry_out(self, actions: list[Action], *, queued: bool = True, admits: bool = True) -> None:
        """Check each action. One that binds was admitted now, from the queue, unless it is said otherwise."""
        starts = [a for a in actions if not isinstance(a, PlacementFailed)]
        for action in actions:
            turn_id = action.turn_id
            assert turn_id in self.arrived, "an action for a turn that has ended"
            assert turn_id not in self.decoding, "a turn was told to decode twice"
            assert turn_id not in self.prefilling, "a turn was sent to two engines"
            assert turn_id not in self.unplaced, "a turn that could not be placed came back"
            if isinstance(action, PlacementFailed):
                assert self.moody.is_broken, action.error
                self.unplaced.add(turn_id)
                continue
            placement = action.placement
            assert placement.prefiller != placement.decoder
            if isinstance(action, StartPrefill):
                assert placement.prefiller is not None
                self.prefilling[turn_id] = placement.prefiller
            else:
                self.decoding[turn_id] = placement.decoder
        binding = [a for a in starts if a.placement.path.binds and a.turn_id not in self.confirmed]
        admitted = binding if admits else []
        for action in admitted:
            ledger = self.scheduler.pools.ledgers[action.placement.decoder]
            assert ledger.overcommitted_tokens == 0, "admitted beyond the budget"
        # Ids are given in the order of arrival.
        for tenant in set(TENANTS.values()) if queued else ():
            waiting = [t for t in self.arrived if self.scheduler.is_waiting(t) and self.is_of(t, tenant)]
            now = [a.turn_id for a in admitted if self.is_of(a.turn_id, tenant)]
            assert not waiting or not now or max(now) < min(waiting), "admission out of order"

    def is_of(self, turn_id: int, tenant: str) -> bool:
        return self.arrived[turn_id].tenant == tenant

    def later(self, seconds: float) -> float:
        self.now_s += seconds
        return self.now_s

    # -- what may happen -------------------------------------------------------------------------

    @initialize()
    def engines_come_up(self) -> None:
        for name in NAMES:
            self.carry_out(self.scheduler.on_engine_up(name, CAPACITY, self.now_s))

    @rule(conversation=st.sampled_from("abcdef"), prompt=st.integers(1, 500), wait_s=st.floats(0, 5))
    def turn_arrives(self, conversation: str, prompt: int, wait_s: float) -> None:
        turn = Turn(self.next_id, conversation, prompt, tenant=TENANTS[conversation])
        self.next_id += 1
        self.arrived[turn.id] = turn
        found = self.scheduler.find(conversation)
        may_be_moved = found is not None and found.decoder is not None
        self.carry_out(self.scheduler.on_turn(turn, self.later(wait_s)), queued=not may_be_moved)

    @precondition(lambda self: self.prefilling)
    @rule(data=st.data(), counted=st.integers(-1, 400), cached=st.one_of(st.none(), st.integers(-1, 500)))
    def prefill_answers(self, data: st.DataObject, counted: int, cached: int | None) -> None:
        turn_id = data.draw(st.sampled_from(sorted(self.prefilling)))
        prefiller = self.prefilling.pop(turn_id)
        actions = self.scheduler.on_prefilled(turn_id, counted, self.later(0.1), cached)
        if actions and isinstance(actions[0], StartDecode) and actions[0].turn_id == turn_id:
            self.confirmed.add(turn_id)
        for action in actions:
            pulls = isinstance(action, StartDecode) and action.placement.prefiller == prefiller
            assert not (action.turn_id == turn_id in self.stale and pulls), "a pull of KV that is gone"
        # KV that is gone is a leg that broke: the turn goes on in its place, it is not admitted again.
        is_stale = turn_id in self.stale
        self.stale.discard(turn_id)
        self.carry_out(actions, admits=not is_stale)

    @precondition(lambda self: self.prefilling)
    @rule(data=st.data(), is_lost=st.booleans())
    def prefill_breaks(self, data: st.DataObject, is_lost: bool) -> None:
        turn_id = data.draw(st.sampled_from(sorted(self.prefilling)))
        del self.prefilling[turn_id]
        self.stale.discard(turn_id)
        self.carry_out(self.scheduler.on_prefill_failed(turn_id, self.now_s, is_lost=is_lost), admits=False)

    @precondition(lambda self: self.decoding)
    @rule(data=st.data(), was_seen=st.booleans())
    def decoder_answers(self, data: st.DataObject, was_seen: bool) -> None:
        turn_id = data.draw(st.sampled_from(sorted(self.decoding)))
        self.answered.add(turn_id)
        self.carry_out(self.scheduler.on_first_token(turn_id, self.later(0.1), was_seen=was_seen))

    @precondition(lambda self: self.decoding)
    @rule(data=st.data(), is_lost=st.booleans())
    def decode_breaks(self, data: st.DataObject, is_lost: bool) -> None:
        """Before the first token the turn goes on by itself; after it the turn is ours to end."""
        turn_id = data.draw(st.sampled_from(sorted(self.decoding)))
        decoder = self.decoding[turn_id]
        if turn_id not in self.answered:
            del self.decoding[turn_id]
            self.confirmed.discard(turn_id)
        conversation = self.scheduler.find(self.arrived[turn_id].conversation_id)
        assert conversation is not None
        is_elsewhere = conversation.decoder not in (None, decoder)
        actions = self.scheduler.on_decode_failed(turn_id, self.later(0.1), is_lost=is_lost)
        if turn_id in self.answered:
            assert all(action.turn_id != turn_id for action in actions), "an answered turn was sent again"
            assert not (is_lost and conversation.decoder == decoder), "still bound where it was lost"
        self.carry_out(actions, queued=not is_elsewhere)

    @precondition(lambda self: self.decoding)
    @rule(data=st.data(), count=st.integers(1, 50), elapsed_s=st.floats(0, 20))
    def tokens_come(self, data: st.DataObject, count: int, elapsed_s: float) -> None:
        turn_id = data.draw(st.sampled_from(sorted(self.decoding)))
        self.carry_out(self.scheduler.on_tokens(turn_id, count, self.later(elapsed_s)))

    @precondition(lambda self: self.arrived)
    @rule(
        data=st.data(),
        kv_tokens=st.one_of(st.none(), st.integers(-1, 600)),
        output_tokens=st.one_of(st.none(), st.integers(-1, 600)),
        cached_tokens=st.one_of(st.none(), st.integers(-1, 600)),
    )
    def turn_ends(
        self,
        data: st.DataObject,
        kv_tokens: int | None,
        output_tokens: int | None,
        cached_tokens: int | None,
    ) -> None:
        turn_id = data.draw(st.sampled_from(sorted(self.arrived)))
        del self.arrived[turn_id]
        self.decoding.pop(turn_id, None)
        self.prefilling.pop(turn_id, None)
        self.unplaced.discard(turn_id)
        self.carry_out(
            self.scheduler.on_turn_ended(
                turn_id, kv_tokens, self.later(0.1), output_tokens=output_tokens, cached_tokens=cached_tokens
            )
        )

    @rule(conversation=st.sampled_from("abcdef"), expires=st.booleans())
    def conversation_ends(self, conversation: str, expires: bool) -> None:
        end = self.scheduler.on_conversation_expired if expires else self.scheduler.on_conversation_ended
        self.carry_out(end(conversation, self.now_s))

    @rule(conversation=st.sampled_from("abcdef"))
    def conversation_yields(self, conversation: str) -> None:
        self.carry_out(self.scheduler.on_conversation_yielded(conversation, self.now_s))
        found = self.scheduler.find(conversation)
        assert found is None or found.has_turns or found.decoder is None

    @rule()
    def policy_breaks_or_is_repaired(self) -> None:
        self.moody.is_broken = not self.moody.is_broken

    @rule(engine=st.sampled_from(NAMES))
    def engine_goes_down(self, engine: str) -> None:
        self.stale |= {turn_id for turn_id, prefiller in self.prefilling.items() if prefiller == engine}
        self.carry_out(self.scheduler.on_engine_down(engine, self.now_s))

    @rule(engine=st.sampled_from(NAMES))
    def engine_is_up(self, engine: str) -> None:
        self.carry_out(self.scheduler.on_engine_up(engine, CAPACITY, self.now_s))

    @rule(engine=st.sampled_from(NAMES), is_draining=st.booleans())
    def engine_drains(self, engine: str, is_draining: bool) -> None:
        self.carry_out(self.scheduler.on_engine_draining(engine, self.now_s, is_draining=is_draining))

    @rule(engine=st.sampled_from(NAMES))
    def engine_is_vacated(self, engine: str) -> None:
        self.carry_out(self.scheduler.on_engine_draining(engine, self.now_s))
        self.carry_out(self.scheduler.on_engine_vacated(engine, self.now_s))
        ledger = self.scheduler.pools.ledgers.get(engine)
        assert ledger is None or not ledger.conversations

    @rule(engine=st.sampled_from(NAMES), usage=st.floats(0, 1), turns=st.integers(0, 9))
    def engine_reports(self, engine: str, usage: float, turns: int) -> None:
        self.carry_out(self.scheduler.on_kv_observed(engine, usage, turns, 0, self.now_s))

    # -- what must hold --------------------------------------------------------------------------

    @invariant()
    def no_conversation_has_two_decoders(self) -> None:
        for conversation in self.scheduler.conversations:
            ledgers = self.scheduler.pools.ledgers
            holders = [n for n, ledger in ledgers.items() if ledger.held(conversation.id)]
            assert len(holders) <= 1, f"{conversation.id} holds KV on {holders}"
            assert conversation.decoder is None or conversation.leader is None
            if conversation.decoder is not None:
                assert holders in ([], [conversation.decoder])

    @invariant()
    def no_turn_is_forgotten(self) -> None:
        following = {t.id for c in self.scheduler.conversations for t in c.followers}
        for turn_id in self.arrived:
            places = [
                turn_id in self.prefilling,
                turn_id in self.decoding,
                turn_id in following,
                self.scheduler.is_waiting(turn_id),
                turn_id in self.unplaced,
            ]
            assert sum(places) == 1, f"turn {turn_id} is in {sum(places)} places"

    @invariant()
    def the_books_balance(self) -> None:
        live = {c.id for c in self.scheduler.conversations}
        for ledger in self.scheduler.pools.ledgers.values():
            assert all(ledger.held(c) > 0 for c in ledger.conversations)
            assert ledger.reserved_tokens == sum(ledger.held(c) for c in ledger.conversations)
            assert ledger.overcommitted_tokens == max(0, ledger.reserved_tokens - ledger.budget_tokens)
            assert set(ledger.conversations) <= live

    @invariant()
    def each_tenant_is_charged_for_what_its_conversations_hold(self) -> None:
        for tenant in set(TENANTS.values()):
            own = [name for name, of in TENANTS.items() if of == tenant]
            held = sum(led.held(name) for led in self.scheduler.pools.ledgers.values() for name in own)
            assert self.scheduler.pools.shares.reserved(tenant) == held

    @invariant()
    def engines_are_debited_for_what_runs_and_for_nothing_else(self) -> None:
        running = {*self.prefilling, *self.decoding}
        for view in self.scheduler.pools.views(self.now_s):
            assert view.queued_tokens >= 0
            assert view.running_turns <= len([d for d in self.decoding.values() if d == view.name])
            if not running:
                assert view.queued_tokens == 0

    @invariant()
    def nobody_waits_before_an_empty_cluster(self) -> None:
        views = [v for v in self.scheduler.pools.views(self.now_s) if v.takes_conversations]
        if views and all(v.free_tokens == v.budget_tokens for v in views):
            assert self.scheduler.waiting_turns == 0

    @invariant()
    def a_drained_engine_holds_nothing(self) -> None:
        for name in NAMES:
            ledger = self.scheduler.pools.ledgers.get(name)
            if ledger is not None and self.scheduler.pools.is_drained(name):
                assert not ledger.conversations

    def teardown(self) -> None:
        """When all turns and conversations have ended nothing is left."""
        for turn_id in sorted(self.arrived):
            self.scheduler.on_turn_ended(turn_id, None, self.now_s)
            with pytest.raises(KeyError):
                self.scheduler.on_turn_ended(turn_id, None, self.now_s)
        for conversation in list(self.scheduler.conversations):
            self.scheduler.on_conversation_ended(conversation.id, self.now_s)
        assert not self.scheduler.conversations
        assert self.scheduler.waiting_turns == 0
        assert all(ledger.reserved_tokens == 0 for ledger in self.scheduler.pools.ledgers.values())
        for view in self.scheduler.pools.views(self.now_s):
            assert (view.queued_tokens, view.running_turns) == (0, 0)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_the_laws_hold_over_every_interleaving(name: str) -> None:
    machine = type(
        f"Interleavings_{name}",
        (Interleavings,),
        {"policy": staticmethod(lambda: POLICIES[name](CONFIG))},
    )
    budget = settings(
        max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=budget)
