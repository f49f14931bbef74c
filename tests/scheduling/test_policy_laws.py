"""Laws of whole runs: each policy drives random conversations to their end on a virtual clock."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_server.core.policy_config import SchedulerConfig
from conserve_server.scheduling.engine_state import EngineProfile
from conserve_server.scheduling.policies import POLICIES, policy_of
from conserve_server.scheduling.policy import Policy
from tests.scheduling.virtual_cluster import Log, Script, VirtualCluster

ENGINES = (
    EngineProfile("p0", takes_prefills=True),
    EngineProfile("d0", takes_conversations=True),
    EngineProfile("d1", takes_conversations=True),
    EngineProfile("both", takes_prefills=True, takes_conversations=True),
)
CAPACITY = 6000
EVERY_POLICY = pytest.mark.parametrize("name", sorted(POLICIES))
FEW = settings(max_examples=15, deadline=None)


@st.composite
def scripts(draw: st.DrawFn) -> list[Script]:
    """Up to 25 conversations of up to 4 turns, more than fit at once."""
    made = []
    start_s = 0.0
    for i in range(draw(st.integers(1, 25))):
        start_s += draw(st.floats(0, 2))
        turns = draw(st.integers(1, 4))
        appended = draw(st.lists(st.integers(1, 900), min_size=turns, max_size=turns))
        produced = draw(st.lists(st.integers(1, 100), min_size=turns, max_size=turns))
        made.append(Script(f"c{i}", start_s, tuple(appended), tuple(produced), draw(st.floats(0, 3))))
    return made


def policy_named(name: str) -> Policy:
    return policy_of(SchedulerConfig(policy=name))


def cluster_of(name: str) -> VirtualCluster:
    return VirtualCluster(policy_named(name), ENGINES, capacity=CAPACITY, reports_every_s=1.0)


def run(name: str, conversations: list[Script]) -> Log:
    return cluster_of(name).run(conversations)


@EVERY_POLICY
@FEW
@given(scripts())
def test_every_turn_ends_exactly_once_and_the_ledger_returns_to_zero(name: str, made: list[Script]) -> None:
    cluster = cluster_of(name)
    log = cluster.run(made)
    assert dict(log.ends) == {(s.id, i): 1 for s in made for i in range(len(s.appended))}
    assert not cluster.scheduler.conversations
    assert all(ledger.reserved_tokens == 0 for ledger in cluster.scheduler.pools.ledgers.values())


@EVERY_POLICY
@FEW
@given(scripts())
def test_the_same_conversations_get_the_same_decisions(name: str, made: list[Script]) -> None:
    assert run(name, made).actions == run(name, made).actions


@EVERY_POLICY
@FEW
@given(scripts(), st.floats(0.1, 20))
def test_what_has_not_happened_yet_changes_no_decision(name: str, made: list[Script], until_s: float) -> None:
    """Two worlds that differ only in answers not yet finished at `until_s`, and in what comes after."""
    log = run(name, made)
    other = run(name, [_with_another_future(script, log, until_s) for script in made])
    assert other.before(until_s) == log.before(until_s)


def _with_another_future(script: Script, log: Log, until_s: float) -> Script:
    """The same conversation, its turns that were placed at `until_s` or later made longer."""
    first_times: dict[int, float] = {}
    for time_s, turn, _ in log.actions:
        conversation, _, index = turn.partition("/")
        if conversation == script.id:
            first_times.setdefault(int(index), time_s)
    is_future = [first_times[i] >= until_s for i in range(len(script.appended))]
    produced = tuple(n + 37 * f for n, f in zip(script.produced, is_future, strict=True))
    return replace(script, produced=produced)


STICKY = ("ampd", "ampd_emulated", "conditional", "conserve", "conserve_plus", "ppd")


@pytest.mark.parametrize("name", STICKY)
@FEW
@given(scripts())
def test_a_policy_by_the_conversation_keeps_each_on_one_decoder(name: str, made: list[Script]) -> None:
    log = run(name, made)
    for script in made:
        assert len({placement.decoder for placement in log.placements(script.id)}) == 1


@FEW
@given(scripts())
def test_under_conserve_a_conversations_kv_moves_at_most_once(made: list[Script]) -> None:
    log = run("conserve", made)
    for script in made:
        moved = [p for _, turn, p in log.actions if turn == f"{script.id}/0" and p.path.moves_kv]
        later = [
            p for _, turn, p in log.actions if turn != f"{script.id}/0" and turn.startswith(f"{script.id}/")
        ]
        assert len(moved) in (0, 2)  # the prefill leg and the decode leg of one placement
        assert not any(p.path.moves_kv for p in later)


@FEW
@given(scripts())
def test_the_oracle_never_outgrows_a_budget(made: list[Script]) -> None:
    log = replay().run([s for s in made if s.total_tokens <= 0.9 * CAPACITY])
    assert log.most_overcommitted_tokens == 0


def replay() -> VirtualCluster:
    config = SchedulerConfig.model_validate({"policy": "conserve", "conserve": {"mode": "oracle"}})
    return VirtualCluster(policy_of(config, is_replay=True), ENGINES, capacity=CAPACITY, is_replay=True)


def test_only_the_oracle_is_moved_by_what_has_not_happened_yet() -> None:
    """So the law above can fail."""
    short = [Script(f"c{i}", float(i), (500, 10), (10, 10)) for i in range(20)]
    longer = [replace(script, appended=(500, 3000)) for script in short]
    assert replay().run(short).before(9.0) != replay().run(longer).before(9.0)
    assert run("conserve", short).before(1.0) == run("conserve", longer).before(1.0)
