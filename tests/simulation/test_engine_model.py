"""The engine model alone: batching, chunks, order, preemption, the prefix cache, runs of many steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from conserve_server.simulation.engine_model import EngineModel, EngineSettings
from conserve_server.simulation.request import Request
from tests.simulation.fleets import TIMING

STEP_S = 0.01


@dataclass
class Bench:
    """One engine, run by hand; when requests had their first token and were done, by conversation."""

    engine: EngineModel
    now_s: float = 0.0
    firsts: dict[str, float] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    order: int = 0

    def submit(
        self, name: str, prompt: int, output: int = 1, *, priority: int = 0, prefix: str | None = None,
        shared: int = 0,
    ) -> Request:  # fmt: skip
        self.order += 1
        request = Request(0, name, prompt, output, self.order, priority, prefix, shared)
        self.engine.submit(request)
        return request

    def run(self, until_s: float = 1e9) -> None:
        """Run until nothing is left, or the run in flight ends later than that."""
        while True:
            if self.engine.run is None and self.engine.plan(self.now_s) is None:
                return
            assert self.engine.run is not None
            if self.engine.run.ends_s > until_s:
                return
            self.now_s = self.engine.run.ends_s
            firsts, done = self.engine.finish(self.now_s)
            self.firsts |= {request.conversation: self.now_s for request in firsts}
            self.ends |= {request.conversation: self.now_s for request in done}


def bench(*, capacity: int = 64_000, **settings: int | bool) -> Bench:
    chosen = EngineSettings(**settings)  # type: ignore[arg-type]
    return Bench(EngineModel("e", TIMING, chosen, kv_capacity_tokens=capacity))


def test_a_prompt_is_prefilled_in_chunks_of_the_token_budget() -> None:
    one = bench(max_num_batched_tokens=1000)
    one.submit("a", 2500)
    one.run()
    assert one.engine.activity.steps == 3
    assert one.firsts["a"] == pytest.approx(3 * STEP_S + 0.25)


def test_an_answer_of_n_tokens_takes_n_minus_one_decode_steps() -> None:
    one = bench()
    one.submit("a", 1000, output=11)
    one.run()
    reads_s = sum(1000 + i for i in range(10)) * 1e-7
    assert one.ends["a"] - one.firsts["a"] == pytest.approx(10 * 0.011 + reads_s)


def test_requests_are_prefilled_first_come_first_served() -> None:
    one = bench(max_num_batched_tokens=1000)
    for name in ("a", "b", "c"):
        one.submit(name, 1000)
    one.run()
    assert list(one.firsts) == ["a", "b", "c"]


def test_a_lower_priority_value_goes_first_where_the_engine_schedules_by_priority() -> None:
    for by_priority, order in ((True, ["b", "a"]), (False, ["a", "b"])):
        one = bench(max_num_batched_tokens=1000, schedules_by_priority=by_priority)
        one.submit("a", 1000, priority=10)
        one.submit("b", 1000)
        one.run()
        assert list(one.firsts) == order


def test_a_long_prompt_leaves_room_in_the_step_for_a_short_one() -> None:
    one = bench(max_num_batched_tokens=1000, long_prefill_token_threshold=500)
    one.submit("long", 5000)
    one.submit("short", 100)
    one.run()
    assert one.firsts["short"] == pytest.approx(STEP_S + 0.06)
    assert one.firsts["long"] > one.firsts["short"]


def test_decoding_goes_on_while_a_prompt_is_prefilled() -> None:
    one = bench(max_num_batched_tokens=1000)
    one.submit("a", 100, output=6)
    one.run(until_s=0.03)
    one.submit("b", 5000)
    one.engine.shorten(one.now_s)
    one.run()
    assert one.firsts["a"] < one.ends["a"] < one.firsts["b"]


def test_no_more_than_max_num_seqs_run_at_once() -> None:
    one = bench(max_num_seqs=2)
    for name in ("a", "b", "c"):
        one.submit(name, 100, output=5)
    one.run()
    assert one.firsts["c"] > one.ends["a"]


def test_a_request_waits_until_its_whole_prompt_fits() -> None:
    one = bench(capacity=1600)
    one.submit("a", 1000, output=20)
    one.submit("b", 1000)
    one.run()
    assert one.firsts["b"] > one.ends["a"]


def test_a_request_that_can_never_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 2001 tokens of KV, engine 'e' has 1600"):
        bench(capacity=1600).submit("a", 2000)


def test_a_later_turn_computes_only_what_is_not_cached() -> None:
    one = bench()
    one.submit("a", 1600, output=17)
    one.run()
    later = one.submit("a", 1600 + 17 + 100)
    one.run()
    assert later.prompt_hit_tokens == 1616  # whole blocks of the 1616 tokens that were in KV


def test_at_least_one_token_is_computed_of_a_prompt_that_is_cached() -> None:
    one = bench()
    one.submit("a", 1600)
    one.run()
    again = one.submit("a", 1600)
    one.run()
    assert again.prompt_hit_tokens == 1584


def test_a_prefix_is_shared_by_the_conversations_that_name_it() -> None:
    one = bench()
    one.submit("a", 1000, prefix="system", shared=800)
    one.run()
    other = one.submit("b", 900, prefix="system", shared=800)
    unlike = one.submit("c", 900, prefix="another", shared=800)
    one.run()
    assert (other.prompt_hit_tokens, unlike.prompt_hit_tokens) == (800, 0)


def test_a_shared_prefix_is_held_once() -> None:
    one = bench()
    one.submit("a", 17, output=50, prefix="system", shared=16)
    one.run(until_s=0.05)
    alone = one.engine.kv.used
    one.submit("b", 17, output=50, prefix="system", shared=16)
    one.engine.plan(one.now_s)
    one.engine.shorten(one.now_s)
    one.run(until_s=one.now_s + 0.05)
    assert one.engine.kv.used == alone + 1


def test_the_least_recently_used_conversation_is_evicted_first_and_from_its_end() -> None:
    one = bench(capacity=3200)
    for name in ("a", "b"):
        one.submit(name, 1280)
        one.run()
    one.submit("c", 960)  # 40 blocks are free, the other 20 are a's
    one.run()
    b, a = one.submit("b", 1297), one.submit("a", 1297)  # b needs 2 more
    one.run()
    assert b.prompt_hit_tokens == 1280
    assert a.prompt_hit_tokens == 1280 - 16 * 22


def test_a_kept_conversation_is_evicted_after_all_others() -> None:
    one = bench(capacity=3200)
    for name in ("a", "b"):
        one.submit(name, 1280)
        one.run()
    one.engine.kv.keep("a", until_s=100.0)
    one.submit("c", 1600)
    one.run()
    a = one.submit("a", 1297)
    one.run()
    assert a.prompt_hit_tokens == 1280


def test_a_dropped_conversation_leaves_its_blocks_free() -> None:
    one = bench()
    one.submit("a", 1600)
    one.run()
    assert one.engine.kv.cached == 100
    one.engine.kv.drop("a")
    assert one.engine.kv.cached == 0


def test_a_rewritten_history_hits_only_what_is_left_of_it() -> None:
    one = bench()
    one.submit("a", 1600)
    one.run()
    one.engine.kv.truncate("a", 800)
    again = one.submit("a", 1600)
    one.run()
    assert again.prompt_hit_tokens == 800


def test_the_latest_request_is_preempted_when_a_decoding_one_finds_no_block() -> None:
    one = bench(capacity=480)
    for name in ("a", "b"):
        one.submit(name, 200, output=100)
    one.run()
    assert one.engine.activity.preemptions > 0
    assert one.ends["a"] < one.ends["b"]
    assert one.engine.activity.output_tokens == 200
    assert one.engine.kv.used == 0


def test_many_steps_in_one_run_give_the_times_of_single_ones() -> None:
    ends = []
    for most in (1, 4096):
        one = bench(most_steps=most, capacity=4000)
        for number in range(12):
            one.submit(f"c{number}", 100 + 7 * number, output=150 + 13 * number)
        one.run()
        ends.append(one.ends)
        assert one.engine.kv.used == 0
    assert list(ends[0]) == list(ends[1])
    assert ends[0] == pytest.approx(ends[1])


def test_a_run_is_shortened_to_the_step_in_flight() -> None:
    one = bench()
    one.submit("a", 100, output=100)
    one.run(until_s=0.03)
    begun_s = one.now_s
    one.engine.plan(begun_s)
    ends_s = one.engine.shorten(begun_s + 0.0351)
    assert ends_s == pytest.approx(begun_s + 4 * 0.011, rel=0.01)


def test_a_dead_engine_gives_back_all_its_requests_and_starts_empty() -> None:
    one = bench(max_num_seqs=1)
    names = [one.submit(name, 100, output=10).conversation for name in ("a", "b")]
    one.run(until_s=0.05)
    assert [request.conversation for request in one.engine.lose_all()] == names
    assert (one.engine.kv.used, one.engine.running, one.engine.waiting) == (0, 0, 0)
    assert one.engine.plan(1.0) is None


def test_chunks_that_follow_the_load_are_small_beside_a_decode_and_large_alone() -> None:
    one = bench(adapts_chunks=True)
    one.submit("a", 4096)
    one.run()
    assert one.engine.activity.steps == 2
    one.submit("decodes", 16, 500)
    one.run(one.now_s + 0.02)
    steps = one.engine.activity.steps
    one.submit("b", 1920)
    one.engine.shorten(one.now_s)
    while "b" not in one.firsts:
        one.run(one.engine.run.ends_s if one.engine.run else one.now_s + 0.02)
    assert one.engine.activity.steps - steps >= 10  # 192 tokens each
