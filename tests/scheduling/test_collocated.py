"""The collocated policies, on views made by hand."""

from conserve_sdk.protocol import Path
from conserve_server.core.policy_config import CollocatedStickyConfig
from conserve_server.core.turn import Placement
from conserve_server.scheduling.policies.collocated import Collocated
from conserve_server.scheduling.policies.collocated_sticky import CollocatedSticky
from tests.scheduling.views import cluster, decoder, first, later, prefiller

STICKY = CollocatedSticky(CollocatedStickyConfig())


def test_least_loaded_counts_turns_and_then_queued_tokens() -> None:
    engines = cluster(decoder("d0", turns=2), decoder("d1", turns=1, queued_tokens=9), decoder("d2", turns=1))
    assert Collocated().place(first(100), engines) == Placement(Path.LOCAL_PREFILL, "d2")


def test_least_loaded_counts_turns_that_others_sent() -> None:
    engines = cluster(decoder("d0", unaccounted_turns=2), decoder("d1", turns=1))
    assert Collocated().place(first(100), engines) == Placement(Path.LOCAL_PREFILL, "d1")


def test_least_loaded_has_no_affinity() -> None:
    engines = cluster(decoder("d0", turns=1), decoder("d1"))
    assert Collocated().place(later(100, "d0"), engines) == Placement(Path.LOCAL_PREFILL, "d1")


def test_least_loaded_moves_nobody_to_an_engine_without_room() -> None:
    engines = cluster(decoder("d0", turns=5, free=-10), decoder("d1", free=99))
    assert Collocated().place(later(100, "d0"), engines) == Placement(Path.PINNED, "d0")


def test_least_loaded_moves_nobody_whose_other_turns_run() -> None:
    engines = cluster(decoder("d0", turns=5), decoder("d1"))
    assert Collocated().place(later(100, "d0", may_move=False), engines) == Placement(Path.PINNED, "d0")


def test_least_loaded_ignores_prefillers_and_holds_what_fits_nowhere() -> None:
    assert Collocated().place(first(100), cluster(prefiller("p0"), decoder("d0", free=99))) is None


def test_sticky_balances_a_first_turn() -> None:
    engines = cluster(decoder("d0", turns=1), decoder("d1"))
    assert STICKY.place(first(100), engines) == Placement(Path.LOCAL_PREFILL, "d1")


def test_sticky_stays_at_twice_the_mean_load_and_leaves_above() -> None:
    at_twice = cluster(decoder("d0", turns=8), decoder("d1"))
    assert STICKY.place(later(100, "d0"), at_twice) == Placement(Path.PINNED, "d0")
    above = cluster(decoder("d0", turns=8), decoder("d1"), decoder("d2"))
    assert STICKY.place(later(100, "d0"), above) == Placement(Path.LOCAL_PREFILL, "d1")


def test_sticky_compares_no_small_numbers() -> None:
    engines = cluster(decoder("d0", turns=3), decoder("d1"), decoder("d2"))
    assert STICKY.place(later(100, "d0"), engines) == Placement(Path.PINNED, "d0")


def test_sticky_leaves_an_engine_that_lost_its_cache() -> None:
    engines = cluster(decoder("d0", turns=2), decoder("d1"))
    kept, lost = later(100, "d0", hit_share=0.9), later(100, "d0", hit_share=0.89)
    assert STICKY.place(kept, engines) == Placement(Path.PINNED, "d0")
    assert STICKY.place(lost, engines) == Placement(Path.LOCAL_PREFILL, "d1")


def test_sticky_stays_where_nobody_else_has_room() -> None:
    engines = cluster(decoder("d0", free=-5), decoder("d1", free=10))
    assert STICKY.place(later(100, "d0", hit_share=0.0), engines) == Placement(Path.PINNED, "d0")
