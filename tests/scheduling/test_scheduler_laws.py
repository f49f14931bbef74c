"""Laws that hold over every interleaving of turns, failures, releases and engines."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from conserve_server.core.turn import Turn
from conserve_server.scheduling.actions import Action, StartDecode, StartPrefill
from conserve_server.scheduling.conserve import ConServe
from conserve_server.scheduling.scheduler import Scheduler

CAPACITY = 400
DECODERS = ("d0", "d1")
PREFILLERS = ("p0", "p1")


class Interleavings(RuleBasedStateMachine):
    """A driver that does in any order what a gateway may do."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(
            ConServe(), prefillers=PREFILLERS, decoders=DECODERS, kv_budget_fraction=0.9
        )
        self.next_id = 1
        self.arrived: dict[int, Turn] = {}
        self.prefilling: list[int] = []
        self.decoding: dict[int, str] = {}
        self.answered: set[int] = set()
        self.started_first: list[int] = []
        self.queued_first: list[int] = []
        self.grown: dict[str, int] = {}

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            turn_id = action.turn_id
            assert turn_id in self.arrived, "an action for a turn that has ended"
            assert turn_id not in self.decoding, "a turn was told to decode twice"
            if turn_id in self.queued_first:
                assert turn_id == self.queued_first.pop(0), "admission out of order"
            if isinstance(action, StartPrefill):
                assert turn_id not in self.prefilling
                self.prefilling.append(turn_id)
            else:
                self.decoding[turn_id] = action.placement.decoder

    @initialize()
    def engines_come_up(self) -> None:
        for name in (*PREFILLERS, *DECODERS):
            self.carry_out(self.scheduler.on_engine_up(name, CAPACITY))

    @rule(conversation=st.sampled_from("abcdef"), prompt=st.integers(1, 500))
    def turn_arrives(self, conversation: str, prompt: int) -> None:
        turn = Turn(self.next_id, conversation, prompt)
        self.next_id += 1
        self.arrived[turn.id] = turn
        found = self.scheduler.find(conversation)
        leads = found is None or (found.decoder is None and found.leader is None)
        if leads:
            self.queued_first.append(turn.id)
        self.carry_out(self.scheduler.on_turn(turn))

    @precondition(lambda self: self.prefilling)
    @rule(data=st.data(), counted=st.integers(1, 400))
    def prefill_answers(self, data: st.DataObject, counted: int) -> None:
        turn_id = data.draw(st.sampled_from(self.prefilling))
        self.prefilling.remove(turn_id)
        self.carry_out(self.expect_requeue(turn_id, self.scheduler.on_prefilled(turn_id, counted)))

    @precondition(lambda self: self.prefilling)
    @rule(data=st.data())
    def prefill_breaks(self, data: st.DataObject) -> None:
        turn_id = data.draw(st.sampled_from(self.prefilling))
        self.prefilling.remove(turn_id)
        self.carry_out(self.expect_requeue(turn_id, self.scheduler.on_prefill_failed(turn_id)))

    def expect_requeue(self, turn_id: int, actions: list[Action]) -> list[Action]:
        """A turn whose decoder was lost goes back to the head of the queue."""
        if self.scheduler.is_waiting(turn_id):
            self.queued_first.insert(0, turn_id)
        return actions

    @precondition(lambda self: self.decoding)
    @rule(data=st.data())
    def decoder_answers(self, data: st.DataObject) -> None:
        turn_id = data.draw(st.sampled_from(sorted(self.decoding)))
        self.answered.add(turn_id)
        self.carry_out(self.scheduler.on_bound(turn_id))

    @precondition(lambda self: self.arrived)
    @rule(data=st.data(), kv_tokens=st.one_of(st.none(), st.integers(1, 600)))
    def turn_ends(self, data: st.DataObject, kv_tokens: int | None) -> None:
        turn_id = data.draw(st.sampled_from(sorted(self.arrived)))
        del self.arrived[turn_id]
        self.decoding.pop(turn_id, None)
        if turn_id in self.prefilling:
            self.prefilling.remove(turn_id)
        if turn_id in self.queued_first:
            self.queued_first.remove(turn_id)
        before = {c.id: c.leader for c in self.scheduler.conversations}
        actions = self.scheduler.on_turn_ended(turn_id, kv_tokens, now_s=0.0)
        self.note_new_leaders(before, actions)
        self.carry_out(actions)

    def note_new_leaders(self, before: dict[str, Turn | None], actions: list[Action]) -> None:
        """A follower that takes over joins the end of the admission queue."""
        started = {a.turn_id for a in actions}
        for conversation in self.scheduler.conversations:
            leader = conversation.leader
            if leader is None or leader == before.get(conversation.id):
                continue
            if leader.id in started or self.scheduler.is_waiting(leader.id):
                self.queued_first.append(leader.id)

    @rule(conversation=st.sampled_from("abcdef"))
    def conversation_ends(self, conversation: str) -> None:
        self.carry_out(self.scheduler.on_conversation_ended(conversation))

    @rule(engine=st.sampled_from((*PREFILLERS, *DECODERS)))
    def engine_restarts(self, engine: str) -> None:
        self.carry_out(self.scheduler.on_engine_down(engine))
        self.carry_out(self.scheduler.on_engine_up(engine, CAPACITY))

    @invariant()
    def no_conversation_holds_kv_on_two_decoders(self) -> None:
        for conversation in self.scheduler.conversations:
            holders = [
                n for n, ledger in self.scheduler.pools.ledgers.items() if ledger.held(conversation.id)
            ]
            assert len(holders) <= 1, f"{conversation.id} holds KV on {holders}"
            if conversation.decoder is not None:
                assert holders in ([], [conversation.decoder])

    @invariant()
    def the_books_balance(self) -> None:
        live = {c.id for c in self.scheduler.conversations}
        for ledger in self.scheduler.pools.ledgers.values():
            assert ledger.reserved_tokens == sum(ledger.held(c) for c in ledger.conversations)
            assert set(ledger.conversations) <= live

    @invariant()
    def nothing_is_queued_on_a_prefiller_but_running_prefills(self) -> None:
        queued = sum(p.queued_tokens for p in self.scheduler.pools.view().prefillers)
        assert queued <= sum(self.arrived[t].prompt_tokens for t in self.prefilling)

    def teardown(self) -> None:
        """When all turns and conversations have ended nothing is left."""
        for turn_id in sorted(self.arrived):
            del self.arrived[turn_id]
            for action in self.scheduler.on_turn_ended(turn_id, None, now_s=0.0):
                assert isinstance(action, StartDecode | StartPrefill)
        for conversation in list(self.scheduler.conversations):
            self.scheduler.on_conversation_ended(conversation.id)
        assert not self.scheduler.conversations
        assert self.scheduler.waiting_turns == 0
        assert all(ledger.reserved_tokens == 0 for ledger in self.scheduler.pools.ledgers.values())
        view = self.scheduler.pools.view()
        assert all(p.queued_tokens == 0 for p in view.prefillers)
        assert all(d.running_turns == 0 for d in view.decoders)


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
