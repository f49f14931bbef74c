"""The simulator: the served scheduler on modelled engines, from arrival to the end of every conversation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_sdk.protocol import Path, RebindCause
from conserve_server.core.policy_config import ConServeConfig, SchedulerConfig
from conserve_server.scheduling.policies import POLICIES
from conserve_server.scheduling.policies.conserve import ConServe
from conserve_server.simulation.engine_model import EngineSettings
from conserve_server.simulation.fleet import Failure, Options
from conserve_server.simulation.records import PATHS
from conserve_server.simulation.simulator import Outcome, Simulator
from conserve_server.simulation.workload import ConversationShape, TurnShape
from tests.simulation.fleets import conversation, fleet, random_workload, rows, run, ttft_s, workload

SERVED = sorted(POLICIES)


def blocks_in_use(outcome: Outcome) -> int:
    return sum(engine.kv.used for engine in outcome.engines.values())


def paths(outcome: Outcome) -> list[Path]:
    return [PATHS[number] for number in outcome.records.path]


def test_a_conversation_is_prefilled_elsewhere_moved_once_and_stays() -> None:
    outcome = run("conserve", workload((0.0, conversation("a", (1600, 17), (100, 5), (100, 5)))))
    assert paths(outcome) == [Path.REMOTE_PREFILL, Path.PINNED, Path.PINNED]
    assert list(outcome.records.moved_tokens) == [1600, 0, 0]
    assert list(outcome.records.cached_tokens) == [0, 1616, 1712]


def test_a_first_token_waits_for_the_prefill_the_transfer_and_one_step() -> None:
    outcome = run("conserve", workload((0.0, conversation("a", (1600, 1)))))
    prefill_s, transfer_s, last_token_s = 0.01 + 0.16, 0.005 + 0.16, 0.01 + 0.0001
    assert ttft_s(outcome) == [pytest.approx(prefill_s + transfer_s + last_token_s)]
    assert outcome.records.prefill_s[0] == pytest.approx(prefill_s)


def test_transfers_to_one_decoder_follow_one_another() -> None:
    work = workload((0.0, conversation("a", (1600, 1))), (0.0, conversation("b", (1600, 1))))
    together = run("conserve", work, fleet(2, 1))
    apart = run("conserve", work, fleet(2, 2))
    assert max(ttft_s(together)) == pytest.approx(max(ttft_s(apart)) + 0.165, abs=0.02)


def test_prefilled_kv_stays_held_until_the_decoder_has_fetched_it() -> None:
    simulator_outcome = run("conserve", workload((0.0, conversation("a", (1600, 1)))))
    prefiller = simulator_outcome.engines["p0"].kv
    assert (prefiller.used, prefiller.cached) == (0, 100)


def test_the_time_between_turns_passes() -> None:
    outcome = run("conserve", workload((0.0, conversation("a", (100, 5), (100, 5), gap_s=7.0))))
    assert outcome.records.arrived_s[1] == pytest.approx(outcome.records.ended_s[0] + 7.0)


def test_full_disaggregation_moves_kv_on_every_turn() -> None:
    outcome = run("full_disaggregation", workload((0.0, conversation("a", (1600, 17), (100, 5), (100, 5)))))
    assert all(outcome.records.moved_tokens)


def test_a_full_decoder_lets_a_conversation_wait_and_counts_it() -> None:
    work = workload((0.0, conversation("a", (1000, 50))), (0.0, conversation("b", (1000, 50))))
    outcome = run("conserve", work, fleet(1, 1, capacity=1600))
    assert outcome.records.wait_s[1] > 0
    assert len(outcome.records) == 2


def test_an_oracle_reserves_what_a_conversation_will_hold() -> None:
    shape = conversation("a", (100, 400), (100, 400))
    work = workload((0.0, shape), (0.0, ConversationShape("b", shape.turns)))
    oracle = ConServe(ConServeConfig(mode="oracle"))
    outcome = Simulator(oracle, fleet(1, 1, capacity=1600), Options(is_replay=True)).run(work)
    assert max(outcome.records.wait_s) > 0


def test_a_rewritten_history_shortens_the_prompt_and_the_hit() -> None:
    turns = (TurnShape(1600, 17), TurnShape(100, 5, 1.0, rewrites_from_tokens=800))
    outcome = run("conserve", workload((0.0, ConversationShape("a", turns))))
    assert outcome.records.prompt_tokens[1] == 900
    assert outcome.records.cached_tokens[1] == 800


def test_kv_of_ended_conversations_is_freed_where_engines_release_it() -> None:
    work = workload((0.0, conversation("a", (1600, 17))))
    for releases, cached in ((False, True), (True, False)):
        outcome = run("conserve", work, options=Options(releases_kv=releases))
        assert any(engine.kv.cached for engine in outcome.engines.values()) is cached


@pytest.mark.parametrize("tells_resident", [False, True])
def test_a_turn_whose_kv_was_evicted_is_placed_anew_where_engines_tell_it(*, tells_resident: bool) -> None:
    work = workload(
        (0.0, conversation("evicted", (1600, 17), (100, 5), gap_s=20.0)),
        (0.5, conversation("on the other until then", (1800, 17), (10, 5), gap_s=4.0)),
        (1.0, conversation("in its place", (1500, 17), (10, 5), gap_s=100.0)),
    )
    options = Options(kv_budget_fraction=2.0, tells_resident=tells_resident)
    outcome = run("conserve_plus", work, fleet(0, 2, capacity=2000), options=options)
    assert outcome.scheduler.rebinds_by_cause.get(RebindCause.MOVED, 0) == int(tells_resident)


@pytest.mark.parametrize("policy", SERVED)
def test_every_turn_ends_once_and_nothing_stays_held(policy: str) -> None:
    work = random_workload(40, rate=2.0)
    outcome = run(policy, work, fleet(1, 2, capacity=20_000))
    turns = sorted(zip(outcome.records.conversation, outcome.records.index, strict=True))
    assert turns == [(c, i) for c in range(40) for i in range(5)]
    assert blocks_in_use(outcome) == 0
    assert not outcome.scheduler.conversations
    produced = sum(engine.activity.output_tokens for engine in outcome.engines.values())
    assert produced >= sum(outcome.records.output_tokens)


@pytest.mark.parametrize("policy", SERVED)
def test_the_same_workload_gives_the_same_result_to_the_last_digit(policy: str) -> None:
    one, other = (run(policy, random_workload(30, rate=3.0)) for _ in range(2))
    assert rows(one) == rows(other)


@pytest.mark.parametrize("policy", ["conserve", "collocated", "full_disaggregation"])
def test_runs_of_many_steps_give_the_result_of_single_steps(policy: str) -> None:
    work = random_workload(30, rate=2.0)
    many, single = (
        run(policy, work, fleet(settings=EngineSettings(most_steps=most))).records for most in (4096, 1)
    )
    assert many.conversation == single.conversation
    assert list(many.ended_s) == pytest.approx(list(single.ended_s), rel=1e-9)


def test_a_lost_engine_costs_time_and_no_conversation() -> None:
    work = random_workload(30, rate=3.0)
    for policy in SERVED:
        options = Options(failures=(Failure(3.0, "d0", 2.0), Failure(6.0, "p0", 2.0)))
        outcome = run(policy, work, options=options)
        assert len(outcome.records) == 150, policy
        assert blocks_in_use(outcome) == 0, policy
        assert max(outcome.records.tries) > 1, policy


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    policy=st.sampled_from(SERVED),
    capacity=st.integers(8_000, 40_000),
    failures=st.lists(
        st.builds(Failure, st.floats(0, 20), st.sampled_from(["p0", "d0", "d1"]), st.floats(0.1, 5)),
        max_size=3,
        unique_by=lambda failure: failure.engine,
    ),
)
def test_all_conversations_end_whatever_fails(
    seed: int, policy: str, capacity: int, failures: list[Failure]
) -> None:
    work = random_workload(12, rate=2.0, turns=3, seed=seed)
    options = Options(failures=tuple(failures))
    outcome = Simulator(POLICIES[policy](SchedulerConfig()), fleet(capacity=capacity), options).run(work)
    assert len(outcome.records) == 36
    assert blocks_in_use(outcome) == 0
