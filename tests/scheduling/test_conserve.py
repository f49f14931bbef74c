"""ConServe's placement rule, on views made by hand."""

import pytest

from conserve_sdk.protocol import Path
from conserve_server.core.errors import ConfigError
from conserve_server.core.policy_config import ConServeConfig
from conserve_server.core.turn import Placement
from conserve_server.scheduling.policies.conserve import ConServe
from tests.scheduling.views import cluster, decoder, first, later, pools, prefiller


def test_first_turn_goes_to_the_shortest_prefill_queue_and_the_freest_decoder() -> None:
    placement = ConServe().place(first(100), pools(queued=(50, 10, 30), free=(200, 900)))
    assert placement == Placement(Path.REMOTE_PREFILL, "d1", "p1")


def test_ties_go_to_the_engine_listed_first() -> None:
    placement = ConServe().place(first(100), pools(queued=(5, 5), free=(300, 300)))
    assert placement == Placement(Path.REMOTE_PREFILL, "d0", "p0")


def test_a_first_turn_that_fits_nowhere_waits() -> None:
    assert ConServe().place(first(301), pools(queued=(0,), free=(300, 299))) is None


def test_without_prefillers_a_first_turn_is_prefilled_where_it_will_live() -> None:
    placement = ConServe().place(first(10), pools(free=(20, 30)))
    assert placement == Placement(Path.LOCAL_PREFILL, "d1")


def test_a_later_turn_stays_on_its_decoder_however_full_it_is() -> None:
    placement = ConServe().place(later(500, "d0"), pools(queued=(0,), free=(-100, 900)))
    assert placement == Placement(Path.PINNED, "d0")


def test_what_an_engine_reports_beyond_the_books_is_no_room() -> None:
    full = decoder("d0", free=900, unaccounted_tokens=850)
    placement = ConServe().place(first(100), cluster(full, decoder("d1", free=200)))
    assert placement == Placement(Path.LOCAL_PREFILL, "d1")


def test_an_engine_with_both_roles_never_prefills_for_itself() -> None:
    both = [decoder(f"e{i}", free=1000 - i, takes_prefills=True) for i in range(2)]
    assert ConServe().place(first(10), cluster(*both)) == Placement(Path.REMOTE_PREFILL, "e0", "e1")
    assert ConServe().place(first(10), cluster(both[0])) == Placement(Path.LOCAL_PREFILL, "e0")


def test_the_oracle_needs_room_for_the_whole_conversation_and_reserves_it() -> None:
    oracle = ConServe(ConServeConfig(mode="oracle"))
    assert oracle.place(first(100, total_tokens=301), pools(free=(300, 200))) is None
    placement = oracle.place(first(100, total_tokens=300), pools(free=(300, 200)))
    assert placement == Placement(Path.LOCAL_PREFILL, "d0", reserve_tokens=300)


def test_the_oracle_refuses_turns_that_come_from_no_trace() -> None:
    with pytest.raises(ConfigError, match=r'scheduler\.conserve\.mode = "oracle" needs the replay'):
        ConServe(ConServeConfig(mode="oracle")).place(first(100), pools(free=(300,)))


def test_tiers_that_are_for_a_phase_go_first_in_it_while_they_have_room() -> None:
    fast = prefiller("fast", queued=900, prefers="prefill")
    capped = decoder("capped", free=200, prefers="decode")
    view = cluster(prefiller("p0"), fast, decoder("d0", free=900), capped)
    assert ConServe().place(first(100), view) == Placement(Path.REMOTE_PREFILL, "capped", "fast")
    assert ConServe().place(first(300), view) == Placement(Path.REMOTE_PREFILL, "d0", "fast")


def test_a_tier_for_the_other_phase_comes_last() -> None:
    for_prefill = decoder("d0", free=900, prefers="prefill")
    view = cluster(for_prefill, decoder("d1", free=200))
    assert ConServe().place(first(100), view) == Placement(Path.LOCAL_PREFILL, "d1")
    assert ConServe().place(first(300), view) == Placement(Path.LOCAL_PREFILL, "d0")
