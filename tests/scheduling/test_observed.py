"""What a policy gets to see of engines and of the load, as the scheduler was told."""

from itertools import count

import pytest

from conserve_sdk.protocol import Path
from conserve_server.core.policy_config import EstimatesConfig
from conserve_server.core.turn import Placement, Turn
from conserve_server.scheduling.engine_state import EngineProfile
from conserve_server.scheduling.observations import RunningMean, Smoothed, Window
from conserve_server.scheduling.policy import ClusterView, EngineView, TurnView
from conserve_server.scheduling.scheduler import Scheduler

_ids = count(1)


class Watching:
    """Prefills first turns on p0, keeps later ones on d0, and remembers what it saw."""

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement:
        self.turn, self.cluster = turn, cluster
        if turn.bound_decoder is not None:
            return Placement(Path.PINNED, "d0")
        return Placement(Path.REMOTE_PREFILL, "d0", "p0")


@pytest.fixture
def policy() -> Watching:
    return Watching()


@pytest.fixture
def scheduler(policy: Watching) -> Scheduler:
    engines = [EngineProfile("p0", takes_prefills=True), EngineProfile("d0", takes_conversations=True)]
    scheduler = Scheduler(
        policy, engines=engines, kv_budget_fraction=1.0, estimates=EstimatesConfig(window_s=10.0)
    )
    for engine in engines:
        scheduler.on_engine_up(engine.name, 100_000, 0.0)
    return scheduler


def view(scheduler: Scheduler, name: str, now_s: float = 0.0) -> EngineView:
    return next(v for v in scheduler.pools.views(now_s) if v.name == name)


def arrive(scheduler: Scheduler, now_s: float, prompt_tokens: int = 1000, conversation: str = "a") -> Turn:
    turn = Turn(next(_ids), conversation, prompt_tokens)
    scheduler.on_turn(turn, now_s)
    return turn


def bind(scheduler: Scheduler, conversation: str = "a") -> None:
    """A first turn of 1,000 tokens: prefilled in 0.5 s, answered at 1 s, 101 tokens until 3 s."""
    turn = arrive(scheduler, 0.0, 1000, conversation)
    scheduler.on_prefilled(turn.id, 1000, 0.5)
    scheduler.on_first_token(turn.id, 1.0)
    scheduler.on_tokens(turn.id, 100, 3.0)
    scheduler.on_turn_ended(turn.id, 1101, 3.0)


def test_prompt_tokens_are_queued_on_the_prefiller_until_it_has_answered(scheduler: Scheduler) -> None:
    turn = arrive(scheduler, 0.0)
    assert (view(scheduler, "p0").queued_tokens, view(scheduler, "d0").running_turns) == (1000, 0)
    scheduler.on_prefilled(turn.id, 1000, 1.0)
    assert (view(scheduler, "p0").queued_tokens, view(scheduler, "d0").running_turns) == (0, 1)


def test_a_later_turn_queues_what_its_decoder_has_not_seen(scheduler: Scheduler) -> None:
    bind(scheduler)
    turn = arrive(scheduler, 4.0, 1500)
    assert view(scheduler, "d0").queued_tokens == 399
    scheduler.on_first_token(turn.id, 5.0)
    assert view(scheduler, "d0").queued_tokens == 0


def test_a_policy_knows_what_each_engine_has_seen_of_the_conversation(
    scheduler: Scheduler, policy: Watching
) -> None:
    bind(scheduler)
    arrive(scheduler, 4.0, 1500)
    assert (policy.turn.index, policy.turn.last_prefiller) == (1, "p0")
    assert [policy.turn.uncached_tokens(name) for name in ("d0", "p0", "elsewhere")] == [399, 500, 1500]


def test_a_restarted_engine_has_seen_nothing(scheduler: Scheduler, policy: Watching) -> None:
    bind(scheduler)
    scheduler.on_engine_down("p0", 0.0)
    scheduler.on_engine_up("p0", 100_000, 0.0)
    arrive(scheduler, 4.0, 1500)
    assert policy.turn.uncached_tokens("p0") == 1500


def test_prefill_speed_is_learned_first_come_first_served(scheduler: Scheduler) -> None:
    first, second = arrive(scheduler, 0.0, 1000, "a"), arrive(scheduler, 0.0, 1000, "b")
    scheduler.on_prefilled(first.id, 1000, 0.5)
    assert view(scheduler, "p0").prefill_tokens_per_s == 2000
    scheduler.on_prefilled(second.id, 1000, 1.0)  # it had the engine for half a second, too
    assert view(scheduler, "p0").prefill_tokens_per_s == 2000


def test_a_cached_prefix_is_no_speed(scheduler: Scheduler) -> None:
    turn = arrive(scheduler, 0.0, 1000)
    scheduler.on_prefilled(turn.id, 1000, 0.1, cached_tokens=500)
    assert view(scheduler, "p0").prefill_tokens_per_s == 5000


def test_a_tiers_speeds_are_not_learned() -> None:
    fast = EngineProfile("d0", takes_conversations=True, prefill_tokens_per_s=50_000.0, decode_step_s=0.01)
    scheduler = Scheduler(Watching(), engines=[fast], kv_budget_fraction=1.0)
    scheduler.on_engine_up("d0", None, 0.0)
    seen = view(scheduler, "d0")
    assert (seen.prefill_tokens_per_s, seen.decode_step_s) == (50_000, 0.01)


def test_latencies_are_means_over_the_window(scheduler: Scheduler) -> None:
    bind(scheduler)
    assert (view(scheduler, "p0", 3.0).ttft_s, view(scheduler, "d0", 3.0).itl_s) == (1.0, 0.02)
    assert (view(scheduler, "p0", 13.0).ttft_s, view(scheduler, "d0", 13.0).itl_s) == (None, None)
    assert view(scheduler, "d0", 13.0).decode_step_s == pytest.approx(0.02)  # a speed is not forgotten


def test_a_first_token_that_was_not_seen_tells_no_latency(scheduler: Scheduler) -> None:
    turn = arrive(scheduler, 0.0)
    scheduler.on_prefilled(turn.id, 1000, 0.5)
    scheduler.on_first_token(turn.id, 9.0, was_seen=False)
    scheduler.on_turn_ended(turn.id, 1300, 9.0, output_tokens=300)
    assert view(scheduler, "p0", 9.0).ttft_s is None


def test_the_mean_answer_and_the_first_turn_load_follow_what_came(
    scheduler: Scheduler, policy: Watching
) -> None:
    arrive(scheduler, 0.0, 10, "probe")
    assert policy.cluster.mean_output_tokens == 256
    bind(scheduler)
    arrive(scheduler, 4.0, 1500)
    assert policy.cluster.mean_output_tokens == 101
    assert policy.cluster.first_turn_tokens_per_s == pytest.approx(101.0)  # 10 + 1,000 tokens in 10 s


def test_a_decoders_cache_hit_is_compared_with_what_it_had_seen(
    scheduler: Scheduler, policy: Watching
) -> None:
    bind(scheduler)
    turn = arrive(scheduler, 4.0, 1500)
    assert policy.turn.hit_share is None
    scheduler.on_turn_ended(turn.id, 1600, 5.0)
    assert policy.turn.hit_share is None  # it never answered
    turn = arrive(scheduler, 6.0, 1800)
    scheduler.on_first_token(turn.id, 6.0)
    scheduler.on_turn_ended(turn.id, 1900, 7.0, cached_tokens=734)
    arrive(scheduler, 8.0, 2000)
    assert policy.turn.hit_share == pytest.approx(734 / 1101)


def test_a_conversation_may_move_only_while_none_of_its_turns_runs(
    scheduler: Scheduler, policy: Watching
) -> None:
    bind(scheduler)
    arrive(scheduler, 4.0)
    assert policy.turn.may_move
    arrive(scheduler, 4.0)
    assert not policy.turn.may_move


def test_turns_that_others_sent_count_as_load(scheduler: Scheduler) -> None:
    turn = arrive(scheduler, 0.0)
    scheduler.on_prefilled(turn.id, 1000, 0.5)
    scheduler.on_kv_observed("d0", 0.0, running=2, waiting=3, now_s=0.5)
    seen = view(scheduler, "d0")
    assert (seen.running_turns, seen.unaccounted_turns, seen.batch) == (1, 4, 5)


def test_a_total_is_known_to_a_policy_only_where_a_trace_gave_it(
    scheduler: Scheduler, policy: Watching
) -> None:
    arrive(scheduler, 0.0)
    assert policy.turn.total_tokens is None
    scheduler.on_turn(Turn(next(_ids), "b", 10, total_tokens=99), 0.0)
    assert policy.turn.total_tokens == 99


def test_a_window_forgets_what_is_older_than_its_span() -> None:
    window = Window(10.0)
    window.add(0.0, 6.0, 2.0)
    window.add(5.0, 2.0, 2.0)
    assert (window.mean(5.0), window.rate_per_s(5.0)) == (2.0, 0.8)
    assert (window.mean(10.0), window.mean(15.0)) == (1.0, None)


def test_means_start_where_they_are_told_and_then_follow_what_was_observed() -> None:
    smoothed, mean = Smoothed(9.0, 0.5), RunningMean(9.0)
    assert (smoothed.value, mean.value) == (9.0, 9.0)
    for observed in (1.0, 3.0, 5.0):
        smoothed.add(observed)
        mean.add(observed)
    assert (smoothed.value, mean.value) == (3.5, 3.0)
