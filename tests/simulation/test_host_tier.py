"""The host tier of the engine model: what is copied, what goes first, what comes back and when."""

from __future__ import annotations

import pytest

from conserve_server.simulation.engine_model import EngineModel, EngineSettings
from conserve_server.simulation.fleet import Failure, Fleet, Options
from conserve_server.simulation.host_tier import HostMemory, HostTier
from conserve_server.simulation.request import Request
from tests.simulation.fleets import (
    LINK,
    TIMING,
    conversation,
    engine,
    random_workload,
    rows,
    run,
    ttft_s,
    workload,
)
from tests.simulation.test_engine_model import Bench

MEMORY = HostMemory(capacity_tokens=160_000, bytes_per_s=1e9, latency_s=0.002)
"""2 ms, and 0.1 ms a token: the speed of TIMING's prefills, so that times tell what was computed twice."""
FAST = HostMemory(capacity_tokens=160_000, bytes_per_s=25e9, latency_s=0.001)


def tier(tokens: int = 160) -> HostTier:
    return HostTier(HostMemory(tokens), block_tokens=16)


def test_copies_of_ended_conversations_go_first_then_the_oldest_from_its_end() -> None:
    host = tier()
    for name in "abc":
        host.store(name, 3)
    host.end("b")
    host.store("d", 2)
    assert [host.reach(name, None, 0) for name in "abcd"] == [3, 2, 3, 2]
    host.store("e", 3)
    assert [host.reach(name, None, 0) for name in "abcde"] == [2, 0, 3, 2, 3]


def test_a_conversation_that_goes_on_after_its_end_is_not_ended() -> None:
    host = tier()
    for name in "ab":
        host.store(name, 5)
    host.end("b")
    host.store("b", 5)
    host.store("c", 5)
    assert [host.reach(name, None, 0) for name in "abc"] == [0, 5, 5]


def test_a_copy_is_of_use_only_behind_its_prefix() -> None:
    host = tier()
    host.store("a", 3, shared_blocks=2)
    assert [host.reach("a", "system", resident) for resident in (0, 1, 2)] == [0, 1, 5]
    host.store("system", 2)
    assert host.reach("a", "system", 0) == 5
    assert host.reach("stranger", "system", 0) == 2


def test_a_copy_is_cut_where_its_history_was_rewritten_and_never_larger_than_the_tier() -> None:
    host = tier()
    host.store("a", 4, shared_blocks=2)
    host.truncate("a", 5)
    assert (host.used, host.reach("a", None, 2)) == (3, 5)
    host.truncate("a", 1)
    host.truncate("stranger", 1)
    assert host.used == 0
    host.store("b", 99)
    assert host.used == 10


def test_loads_come_one_after_the_other() -> None:
    host = HostTier(MEMORY, block_tokens=16)
    assert host.load(1000, 100_000, now_s=1.0) == pytest.approx(1.102)
    assert host.load(1000, 100_000, now_s=1.0) == pytest.approx(1.204)
    assert host.load(1000, 100_000, now_s=5.0) == pytest.approx(5.102)


def evicted_a(host: HostMemory | None) -> Bench:
    """An engine whose cache conversation `a` has left."""
    one = Bench(EngineModel("e", TIMING, EngineSettings(), kv_capacity_tokens=3200, host=host))
    for name, prompt in (("a", 1600), ("b", 3190)):
        one.submit(name, prompt, output=10)
        one.run()
    return one


def test_what_was_evicted_is_loaded_before_the_request_runs() -> None:
    one = evicted_a(MEMORY)
    a = one.submit("a", 1700)
    one.run()
    assert one.engine.loads == [a]
    assert (a.load_tokens, a.hit_tokens, a.prompt_hit_tokens, a.computed) == (1600, 1600, 1600, 0)
    one.engine.loads.clear()
    one.now_s = began_s = one.engine.begin_load(a.load_tokens, one.now_s)
    one.engine.loaded(a)
    one.run()
    assert one.firsts["a"] == pytest.approx(began_s + 0.01 + 100 * 0.0001)
    assert one.engine.loaded_tokens == 1600


def test_without_a_host_tier_what_was_evicted_is_computed_again() -> None:
    one = evicted_a(None)
    a = one.submit("a", 1700)
    one.run()
    assert (a.load_tokens, a.prompt_hit_tokens) == (0, 0)
    with pytest.raises(RuntimeError, match="no host tier"):
        one.engine.begin_load(1, 0.0)


def test_a_fetched_conversation_is_cached_again_if_there_is_room() -> None:
    one = evicted_a(MEMORY)
    context = Request(0, "a", 1700, 0, 0)
    assert one.engine.kv.missing_tokens(context) == 1600
    assert one.engine.kv.restore(context, one.now_s)
    assert (one.engine.kv.missing_tokens(context), one.engine.kv.cached) == (0, 200)
    assert not one.engine.kv.restore(context, one.now_s)
    one.submit("c", 3150, output=30)
    one.engine.plan(one.now_s)
    assert one.engine.kv.missing_tokens(context) > 0
    assert not one.engine.kv.restore(context, one.now_s)


def crowded(host: HostMemory | None, *, fetch_lead_s: float | None = None) -> list[float]:
    """Seconds to the first token of turns: `a` speaks, `b` crowds it out, `a` speaks again."""
    decoder = engine("d0", decodes=True, capacity=8_000, host=host)
    work = workload(
        (0.0, conversation("a", (6_000, 2), (100, 2), gap_s=10.0)), (5.0, conversation("b", (7_000, 2)))
    )
    options = Options(kv_budget_fraction=2.0, fetch_lead_s=fetch_lead_s)
    return ttft_s(run("conserve", work, Fleet((decoder,), LINK), options))


def test_a_later_turn_waits_for_its_load_and_not_for_a_prefill() -> None:
    computed, loaded = crowded(None)[-1], crowded(FAST)[-1]
    assert computed > 0.5
    assert loaded == pytest.approx(0.001 + 6_000 * 1e5 / 25e9 + 0.01 + 0.01, abs=0.005)


def test_a_fetch_ahead_of_the_turn_leaves_nothing_to_load() -> None:
    assert crowded(FAST, fetch_lead_s=2.0)[-1] == pytest.approx(0.02, abs=0.005)
    assert crowded(FAST, fetch_lead_s=0.001)[-1] >= crowded(FAST)[-1]


@pytest.mark.parametrize("host", [None, FAST, HostMemory(20_000)])
@pytest.mark.parametrize("policy", ["conserve", "conserve_plus", "collocated"])
def test_every_turn_ends_and_a_run_repeats_with_any_tier(host: HostMemory | None, policy: str) -> None:
    decoders = [engine(f"d{i}", decodes=True, prefills=True, capacity=12_000, host=host) for i in range(2)]
    options = Options(releases_kv=True, fetch_lead_s=0.05, failures=(Failure(5.0, "d0", 2.0),))
    work = random_workload(40, 2.0)
    first, again = (run(policy, work, Fleet(tuple(decoders), LINK), options) for _ in range(2))
    assert rows(first) == rows(again)
    assert len(first.records.arrived_s) == 40 * 5
    for each in first.engines.values():
        assert each.kv.used == 0
        assert 0 <= each.kv.cached <= each.kv.total
        assert each.kv.host is None or 0 <= each.kv.host.used <= each.kv.host.total
