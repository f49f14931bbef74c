"""ConServe+, on views made by hand."""

import pytest

from conserve_sdk.protocol import Path
from conserve_server.core.policy_config import ConServePlusConfig, EstimatesConfig
from conserve_server.core.turn import Placement
from conserve_server.scheduling.acting import roles_now
from conserve_server.scheduling.policies.conserve_plus import ConServePlus
from conserve_server.scheduling.policy import EngineView
from tests.scheduling.views import CAPACITY, cluster, decoder, first, later, prefiller


def plus(**changes: object) -> ConServePlus:
    return ConServePlus(ConServePlusConfig(**changes), EstimatesConfig())  # type: ignore[arg-type]


def both(name: str, **more: object) -> EngineView:
    return decoder(name, takes_prefills=True, **more)  # type: ignore[arg-type]


def test_a_first_turn_is_prefilled_elsewhere_while_the_pool_is_quick() -> None:
    engines = cluster(prefiller("p0", queued=8000), decoder("d0", free=900), decoder("d1"))
    assert plus().place(first(100), engines) == Placement(Path.REMOTE_PREFILL, "d1", "p0")


def test_a_first_turn_spills_to_its_decoder_when_the_pool_is_slower_than_that() -> None:
    engines = cluster(prefiller("p0", queued=40_000), decoder("d0"), decoder("d1", turns=9))
    assert plus().place(first(100), engines) == Placement(Path.LOCAL_PREFILL, "d0")


def test_a_first_turn_still_goes_to_a_slow_pool_when_decoders_are_slower() -> None:
    engines = cluster(prefiller("p0", queued=40_000), decoder("d0", queued_tokens=50_000))
    assert plus().place(first(100), engines) == Placement(Path.REMOTE_PREFILL, "d0", "p0")


def test_the_spill_wait_is_a_constant() -> None:
    engines = cluster(prefiller("p0", queued=40_000), decoder("d0"))
    patient = plus(spill_wait_s=10.0)
    assert patient.place(first(100), engines) == Placement(Path.REMOTE_PREFILL, "d0", "p0")


def test_a_spilled_turn_weighs_kv_against_waits() -> None:
    pool = prefiller("p0", queued=10**6)
    full_but_idle, empty_but_busy = decoder("d0", free=500), decoder("d1", queued_tokens=8000)
    engines = cluster(pool, full_but_idle, empty_but_busy)
    assert plus(load_weight=0.3).place(first(100), engines) == Placement(Path.LOCAL_PREFILL, "d1")
    assert plus(load_weight=1.0).place(first(100), engines) == Placement(Path.LOCAL_PREFILL, "d0")


def test_a_new_conversation_needs_room_for_the_growth_of_those_before_it() -> None:
    engines = cluster(decoder("d0", free=299), mean_output_tokens=100)
    assert plus().place(first(100), engines) is None
    assert plus(growth_outputs=1.0).place(first(100), engines) is not None


def test_a_prompt_larger_than_any_budget_is_admitted_to_an_empty_decoder_only() -> None:
    turn = first(5000)
    assert plus().place(turn, cluster(decoder("d0", free=999), mean_output_tokens=9)) is None
    placement = plus().place(turn, cluster(decoder("d0"), mean_output_tokens=9))
    assert placement == Placement(Path.LOCAL_PREFILL, "d0")


def test_without_prefillers_first_turns_are_prefilled_where_they_will_live() -> None:
    engines = cluster(decoder("d0", free=500), decoder("d1", free=900))
    assert plus().place(first(100), engines) == Placement(Path.LOCAL_PREFILL, "d1")


def test_a_later_turn_stays_on_its_decoder() -> None:
    engines = cluster(prefiller("p0"), decoder("d0", turns=50, queued_tokens=10**6), decoder("d1"))
    assert plus().place(later(5000, "d0", context=4000), engines) == Placement(Path.PINNED, "d0")


def test_a_long_append_goes_through_the_pool_when_its_decoder_would_take_much_longer() -> None:
    busy = cluster(prefiller("p0"), decoder("d0", turns=10, queued_tokens=40_000))
    turn = later(9000, "d0", context=4000)
    assert plus().place(turn, busy) == Placement(Path.REMOTE_APPEND, "d0", "p0")
    assert plus(sends_long_appends=False).place(turn, busy) == Placement(Path.PINNED, "d0")


def test_a_long_append_stays_where_the_pool_would_compute_the_whole_history_again() -> None:
    engines = cluster(prefiller("p0"), decoder("d0", queued_tokens=8000))
    assert plus().place(later(40_000, "d0", context=37_000), engines) == Placement(Path.PINNED, "d0")
    held_there = later(40_000, "d0", context={"d0": 37_000, "p0": 39_000})
    assert plus().place(held_there, engines) == Placement(Path.REMOTE_APPEND, "d0", "p0")


def test_first_turns_alone_carry_a_priority() -> None:
    policy = plus(first_turn_priority=10)
    engines = cluster(prefiller("p0"), decoder("d0"))
    assert policy.place(first(10), engines) == Placement(Path.REMOTE_PREFILL, "d0", "p0", priority=10)
    assert policy.place(later(10, "d0"), engines) == Placement(Path.PINNED, "d0")
    placed_anew = policy.place(first(10, index=3), engines)
    assert placed_anew == Placement(Path.REMOTE_PREFILL, "d0", "p0")


def test_no_priority_is_asked_of_engines_that_may_not_know_it() -> None:
    placement = plus().place(first(10), cluster(decoder("d0")))
    assert placement == Placement(Path.LOCAL_PREFILL, "d0")


def test_on_mixed_tiers_the_faster_prefiller_takes_more() -> None:
    fast = prefiller("p1", queued=10_000, prefill_tokens_per_s=40_000.0)
    slow = prefiller("p0", queued=4_000, prefill_tokens_per_s=10_000.0)
    placement = plus().place(first(500), cluster(slow, fast, decoder("d0")))
    assert placement == Placement(Path.REMOTE_PREFILL, "d0", "p1")


def test_on_mixed_tiers_a_decoder_is_chosen_by_its_load_and_not_by_room_alone() -> None:
    slow = decoder("d0", free=950, turns=20, decode_step_s=0.06)
    fast = decoder("d1", free=900, turns=20, decode_step_s=0.02)
    placement = plus().place(first(10), cluster(prefiller("p0"), slow, fast))
    assert placement == Placement(Path.REMOTE_PREFILL, "d1", "p0")


def acting(*engines: EngineView, load: float = 0.0, **changes: object) -> list[str]:
    """`load`: first-turn prefill seconds a second, at the views' 8,000 tokens a second; equals may act."""
    config = ConServePlusConfig(**{"min_prefill_speedup": 1.0, **changes})  # type: ignore[arg-type]
    view = cluster(*engines, first_turn_tokens_per_s=load * 8000)
    holding = roles_now(view, config).holding
    return [engine.name for engine in view.prefillers if engine.name not in holding]


FOUR = [both(f"e{i}") for i in range(4)]


@pytest.mark.parametrize(("load", "count"), [(0.0, 0), (0.35, 0), (0.36, 1), (1.35, 1), (1.4, 2), (9.0, 2)])
def test_the_number_of_prefillers_follows_the_first_turn_load_up_to_half_of_all(
    load: float, count: int
) -> None:
    assert len(acting(*FOUR, load=load)) == count


def test_engines_stop_acting_as_prefillers_when_conversations_need_their_kv() -> None:
    def holding(share: float) -> list[EngineView]:
        return [both(f"e{i}", free=round(CAPACITY * (1 - share))) for i in range(4)]

    assert [len(acting(*holding(s), load=9.0)) for s in (0.3, 0.45, 0.6)] == [2, 1, 0]


def test_engines_with_one_role_keep_it() -> None:
    assert acting(prefiller("p0"), *FOUR, load=0.0) == ["p0"]
    assert acting(prefiller("p0"), decoder("d0"), load=9.0) == ["p0"]


def test_the_engine_with_least_kv_bound_acts_first_and_ties_go_to_the_engine_listed_first() -> None:
    assert acting(both("e0", free=500), both("e1", free=900), both("e2", free=500), load=1.0) == ["e1"]
    assert acting(*FOUR, load=1.0) == ["e0"]


def test_the_fastest_kind_acts_first() -> None:
    fast = both("e2", free=500, prefill_tokens_per_s=20_000.0)
    assert acting(both("e0"), both("e1"), fast, both("e3"), load=1.0) == ["e2"]


def test_among_equals_nobody_prefills_for_others_unless_that_is_asked_for() -> None:
    assert acting(*FOUR, load=9.0, min_prefill_speedup=1.5) == []
    assert plus().place(first(100), cluster(*FOUR, first_turn_tokens_per_s=10**5)) == Placement(
        Path.LOCAL_PREFILL, "e0"
    )


def test_only_a_faster_kind_prefills_for_others() -> None:
    fast = both("e2", prefill_tokens_per_s=20_000.0)
    assert acting(both("e0"), both("e1"), fast, load=9.0, min_prefill_speedup=1.5) == ["e2"]


def mixed(**of_fast: object) -> tuple[EngineView, ...]:
    """Two engines, the first of them three times as slow and with more room, both holding conversations."""
    slow = both("slow", prefill_tokens_per_s=8000.0, decode_step_s=0.03)
    return slow, both("fast", **({"free": 100, "prefill_tokens_per_s": 24_000.0} | of_fast))


def test_a_faster_engine_prefills_for_a_slower_one_beside_its_own_conversations() -> None:
    placement = plus().place(first(500), cluster(*mixed()))
    assert placement == Placement(Path.REMOTE_PREFILL, "slow", "fast")


def test_but_not_when_the_slower_one_is_ready_sooner() -> None:
    placement = plus().place(first(500), cluster(*mixed(queued_tokens=8000, running_turns=3)))
    assert placement == Placement(Path.LOCAL_PREFILL, "slow")


def test_nor_when_it_is_hardly_faster() -> None:
    placement = plus().place(first(500), cluster(*mixed(prefill_tokens_per_s=10_000.0)))
    assert placement == Placement(Path.LOCAL_PREFILL, "slow")


def test_a_faster_engine_takes_conversations_of_its_own() -> None:
    busy = both("slow", prefill_tokens_per_s=8000.0, running_turns=4, decode_step_s=0.03)
    placement = plus().place(first(500), cluster(busy, mixed(free=1000)[1]))
    assert placement == Placement(Path.LOCAL_PREFILL, "fast")


def test_a_turn_whose_kv_was_evicted_is_placed_anew() -> None:
    engines = cluster(decoder("d0", turns=3), decoder("d1"))
    evicted = later(900, "d0", context=100, evicted_tokens=700)
    assert plus().place(evicted, engines) == Placement(Path.LOCAL_PREFILL, "d1")
    assert plus(evicted_share=0.8).place(evicted, engines) == Placement(Path.PINNED, "d0")


def test_it_stays_where_no_other_has_room_and_while_another_of_its_turns_runs() -> None:
    engines = cluster(decoder("d0", turns=3), decoder("d1", free=800))
    evicted = later(900, "d0", context=0, evicted_tokens=899)
    assert plus().place(evicted, engines) == Placement(Path.PINNED, "d0")
    engines = cluster(decoder("d0", turns=3), decoder("d1"))
    running = later(900, "d0", context=0, evicted_tokens=899, may_move=False)
    assert plus().place(running, engines) == Placement(Path.PINNED, "d0")


def test_a_large_append_to_a_small_context_is_no_eviction() -> None:
    engines = cluster(decoder("d0", turns=3), decoder("d1"))
    assert plus().place(later(900, "d0", context=10), engines) == Placement(Path.PINNED, "d0")


def test_only_what_a_conversation_does_not_share_needs_room() -> None:
    engines = cluster(decoder("d0", free=300))
    assert plus().place(first(900), engines) is None
    assert plus().place(first(900, shared_tokens=700), engines) == Placement(Path.LOCAL_PREFILL, "d0")


def test_all_that_may_act_do_when_their_number_is_not_adapted() -> None:
    assert acting(*FOUR, load=0.0, adapts_prefillers=False) == ["e0", "e1", "e2", "e3"]


def test_nobody_is_bound_to_an_acting_prefiller_while_others_have_room() -> None:
    engines = cluster(*FOUR, first_turn_tokens_per_s=8000.0)
    assert plus(min_prefill_speedup=1.0).place(first(100), engines) == Placement(
        Path.REMOTE_PREFILL, "e1", "e0"
    )


def test_an_acting_prefiller_takes_a_conversation_that_nobody_else_has_room_for() -> None:
    full = [both(f"e{i}", free=50) for i in (1, 2, 3)]
    engines = cluster(both("e0"), *full, first_turn_tokens_per_s=10**6)
    assert plus(kv_headroom=1.0, min_prefill_speedup=1.0).place(first(100), engines) == Placement(
        Path.LOCAL_PREFILL, "e0"
    )
