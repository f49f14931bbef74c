"""ConServe's placement rule, on views made by hand."""

from conserve_sdk.protocol import Path
from conserve_server.core.turn import Placement
from conserve_server.scheduling.conserve import ConServe
from conserve_server.scheduling.policy import ClusterView, DecoderView, PrefillerView, TurnView


def cluster(*, queued: tuple[int, ...], free: tuple[int, ...]) -> ClusterView:
    return ClusterView(
        tuple(PrefillerView(f"p{i}", tokens) for i, tokens in enumerate(queued)),
        tuple(DecoderView(f"d{i}", 1000, 1000 - tokens, 0) for i, tokens in enumerate(free)),
    )


def test_first_turn_goes_to_the_shortest_prefill_queue_and_the_freest_decoder() -> None:
    placement = ConServe().place(TurnView(100, None), cluster(queued=(50, 10, 30), free=(200, 900)))
    assert placement == Placement(Path.REMOTE_PREFILL, "d1", "p1")


def test_ties_go_to_the_engine_listed_first() -> None:
    placement = ConServe().place(TurnView(100, None), cluster(queued=(5, 5), free=(300, 300)))
    assert placement == Placement(Path.REMOTE_PREFILL, "d0", "p0")


def test_a_first_turn_that_fits_nowhere_waits() -> None:
    assert ConServe().place(TurnView(301, None), cluster(queued=(0,), free=(300, 299))) is None


def test_without_prefillers_a_first_turn_is_prefilled_where_it_will_live() -> None:
    placement = ConServe().place(TurnView(10, None), cluster(queued=(), free=(20, 30)))
    assert placement == Placement(Path.LOCAL_PREFILL, "d1")


def test_a_later_turn_stays_on_its_decoder_however_full_it_is() -> None:
    placement = ConServe().place(TurnView(500, "d0"), cluster(queued=(0,), free=(-100, 900)))
    assert placement == Placement(Path.PINNED, "d0")
