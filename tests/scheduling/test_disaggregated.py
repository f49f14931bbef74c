"""Full and conditional disaggregation, PPD and AMPD, on views made by hand."""

import pytest

from conserve_sdk.protocol import Path
from conserve_server.core.policy_config import (
    AMPDConfig,
    AMPDEmulatedConfig,
    ConditionalConfig,
    EstimatesConfig,
    FullDisaggregationConfig,
    PPDConfig,
)
from conserve_server.core.turn import Placement
from conserve_server.scheduling.policies.ampd import AMPD
from conserve_server.scheduling.policies.ampd_emulated import AMPDEmulated
from conserve_server.scheduling.policies.conditional import Conditional
from conserve_server.scheduling.policies.full_disaggregation import FullDisaggregation
from conserve_server.scheduling.policies.ppd import PPD
from tests.scheduling.views import cluster, decoder, first, later, pools, prefiller

FULL = FullDisaggregation(FullDisaggregationConfig())
CONDITIONAL = Conditional(ConditionalConfig())
PPD_ = PPD(PPDConfig(), EstimatesConfig())
AMPD_ = AMPD(AMPDConfig())


def test_full_disaggregation_sends_a_later_turn_through_a_prefiller_to_the_least_busy_decoder() -> None:
    engines = cluster(prefiller("p0", queued=9), prefiller("p1"), decoder("d0", turns=1), decoder("d1"))
    assert FULL.place(later(100, "d0"), engines) == Placement(Path.REMOTE_PREFILL, "d1", "p1")
    assert FULL.place(later(100, "d1"), engines) == Placement(Path.REMOTE_APPEND, "d1", "p1")


def test_full_disaggregation_may_keep_a_conversations_engines() -> None:
    sticky = FullDisaggregation(FullDisaggregationConfig(is_sticky=True))
    engines = cluster(prefiller("p0", queued=9), prefiller("p1"), decoder("d0", turns=1), decoder("d1"))
    turn = later(100, "d0", last_prefiller="p0")
    assert sticky.place(turn, engines) == Placement(Path.REMOTE_APPEND, "d0", "p0")


def test_full_disaggregation_keeps_the_decoder_while_other_turns_run() -> None:
    engines = cluster(prefiller("p0"), decoder("d0", turns=1), decoder("d1"))
    placement = FULL.place(later(100, "d0", may_move=False), engines)
    assert placement == Placement(Path.REMOTE_APPEND, "d0", "p0")


def test_a_short_turn_is_prefilled_locally_and_one_at_the_threshold_is_not() -> None:
    engines = pools(queued=(0,), free=(1000,))
    assert CONDITIONAL.place(first(511), engines) == Placement(Path.LOCAL_PREFILL, "d0")
    assert CONDITIONAL.place(first(512), engines) == Placement(Path.REMOTE_PREFILL, "d0", "p0")


def test_what_the_decoder_holds_counts_as_cached() -> None:
    engines = pools(queued=(0,), free=(1000,))
    assert CONDITIONAL.place(later(5000, "d0", context=4500), engines) == Placement(Path.PINNED, "d0")
    remote = Placement(Path.REMOTE_APPEND, "d0", "p0")
    assert CONDITIONAL.place(later(5000, "d0", context=4488), engines) == remote


def test_a_turn_that_is_new_for_the_most_part_may_count_as_long() -> None:
    dynamo = Conditional(ConditionalConfig(threshold_tokens=2048, max_local_share=0.7))
    engines = pools(queued=(0,), free=(1000,))
    assert dynamo.place(later(1000, "d0", context=300), engines) == Placement(Path.PINNED, "d0")
    remote = Placement(Path.REMOTE_APPEND, "d0", "p0")
    assert dynamo.place(later(1000, "d0", context=299), engines) == remote


def test_ppd_sends_every_first_turn_through_a_prefiller() -> None:
    engines = pools(queued=(5, 0), free=(1000,))
    assert PPD_.place(first(10), engines) == Placement(Path.REMOTE_PREFILL, "d0", "p1")


def test_ppd_keeps_short_appends_without_a_score() -> None:
    busy = cluster(prefiller("p0"), decoder("d0", turns=50, queued_tokens=10**6))
    assert PPD_.place(later(5000, "d0", context=4489), busy) == Placement(Path.PINNED, "d0")


def test_ppd_appends_locally_while_that_is_sooner_than_a_prefill_of_the_whole_history() -> None:
    idle = cluster(prefiller("p0"), decoder("d0"), mean_output_tokens=100)
    assert PPD_.place(later(5000, "d0", context=4000), idle) == Placement(Path.PINNED, "d0")


def test_ppd_spares_a_busy_decoder_when_the_prefiller_has_the_history() -> None:
    busy = cluster(prefiller("p0"), decoder("d0", turns=8, queued_tokens=8000), mean_output_tokens=10)
    turn = later(5000, "d0", context={"d0": 4000, "p0": 3900})
    assert PPD_.place(turn, busy) == Placement(Path.REMOTE_APPEND, "d0", "p0")


def test_ppd_weighs_what_running_answers_lose() -> None:
    engines = cluster(prefiller("p0"), decoder("d0", turns=8), mean_output_tokens=5)
    turn = later(5000, "d0", context={"d0": 3000, "p0": 2000})
    careless = PPD(PPDConfig(tpot_weight=0.0), EstimatesConfig())
    assert careless.place(turn, engines) == Placement(Path.PINNED, "d0")
    assert PPD_.place(turn, engines) == Placement(Path.REMOTE_APPEND, "d0", "p0")


@pytest.mark.parametrize(
    ("itl_s", "ttft_s", "path"),
    [
        (None, None, Path.PINNED),
        (0.030, 9.0, Path.PINNED),
        (0.039, 1.0, Path.REMOTE_APPEND),
        (0.044, 9.0, Path.PINNED),
        (0.400, 9.0, Path.REMOTE_APPEND),
    ],
    ids=[
        "nothing seen",
        "decoder has slack",
        "prefiller has slack",
        "decoder lacks less",
        "prefiller lacks less",
    ],
)
def test_ampd_follows_the_slack(itl_s: float | None, ttft_s: float | None, path: Path) -> None:
    engines = cluster(prefiller("p0", ttft_s=ttft_s), decoder("d0", itl_s=itl_s))
    placement = AMPD_.place(later(1000, "d0"), engines)
    assert placement is not None
    assert placement.path is path


def test_ampd_prefers_the_prefiller_with_most_slack() -> None:
    engines = cluster(prefiller("p0", ttft_s=2.0), prefiller("p1", ttft_s=1.0, queued=99), decoder("d0"))
    assert AMPD_.place(first(100), engines) == Placement(Path.REMOTE_PREFILL, "d0", "p1")


def test_ampd_lets_prefills_carry_their_deadline_when_told_to() -> None:
    ordering = AMPD(AMPDConfig(reorders_prefills=True))
    engines = cluster(prefiller("p0", prefill_tokens_per_s=1000.0), decoder("d0"))
    placement = ordering.place(first(500, arrived_s=10.0), engines)
    assert placement == Placement(Path.REMOTE_PREFILL, "d0", "p0", priority=12_500)


def test_emulated_ampd_errs_on_its_share_of_later_turns_and_on_no_first_turn() -> None:
    emulated = AMPDEmulated(AMPDEmulatedConfig(wrong_share=0.1))
    engines = pools(queued=(0,), free=(1000,))
    wrong = [
        emulated.place(later(100, "d0", index=i), engines) == Placement(Path.REMOTE_APPEND, "d0", "p0")
        for i in range(1, 2001)
    ]
    assert 150 < sum(wrong) < 250
    assert emulated.place(first(100), engines) == Placement(Path.REMOTE_PREFILL, "d0", "p0")


def test_emulated_ampd_errs_on_the_same_turns_again() -> None:
    engines = pools(queued=(0,), free=(1000,))

    def run(seed: int) -> list[Placement | None]:
        policy = AMPDEmulated(AMPDEmulatedConfig(wrong_share=0.5, seed=seed))
        return [policy.place(later(100, "d0", index=i), engines) for i in range(1, 50)]

    assert run(1) == run(1) != run(2)
