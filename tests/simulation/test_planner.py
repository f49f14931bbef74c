from __future__ import annotations

import dataclasses
import tomllib

import pytest

from conserve_server.core.config import parse_config
from conserve_server.core.errors import ConfigError
from conserve_server.simulation.plan_config import plan_config, tier_name
from conserve_server.simulation.planner import Question, assess, families_of, frontier, plan, search
from conserve_server.simulation.plans import Assessed, Candidate, Objectives, Offer
from conserve_server.simulation.workload import ConversationShape, TurnShape, Workload
from conserve_server.simulation.workloads.arrivals import evenly

H100, A100 = Offer("h100", 4, 2.5), Offer("a100", 2, 1.3)
SHAPES = [ConversationShape(f"c{i}", (TurnShape(6000, 60), TurnShape(300, 60, 0.5))) for i in range(8)]


def workload(rate_per_s: float) -> Workload:
    return evenly(SHAPES, rate_per_s=rate_per_s, count=24, seed=1, name="w")


def question(rate_per_s: float = 4.0, *offers: Offer) -> Question:
    objectives = Objectives(first_ttft_p95_s=0.6, later_ttft_p95_s=0.5, gap_p99_s=None)
    return Question(workload(rate_per_s), "qwen3-8b", objectives, offers or (H100,))


def sticky(decoders: int) -> Candidate:
    return Candidate("collocated_sticky", H100, decoders)


def test_families_grow_and_stay_within_their_offers() -> None:
    for family in families_of([H100, A100]):
        prices = [each.price_per_h for each in family.candidates]
        assert prices == sorted(prices)
        for each in family.candidates:
            used = {each.decode.gpu: each.decoders}
            if each.prefill is not None:
                used[each.prefill.gpu] = used.get(each.prefill.gpu, 0) + each.prefillers
            assert all(count <= {"h100": 4, "a100": 2}[gpu] for gpu, count in used.items())


def test_the_smallest_fleet_that_meets_the_objectives_is_found() -> None:
    asked = question()
    (family,) = [each for each in families_of(asked.offers) if each.candidates[0] == sticky(1)]
    met = [assess(asked, candidate).is_plan for candidate in family.candidates]
    assert met == sorted(met), "more engines do better on this workload"
    found = [each.candidate for each in search(asked, family) if each.is_plan]
    assert min(found, key=lambda each: each.engines) == family.candidates[met.index(True)]


def test_an_objective_that_nothing_meets_leaves_no_plan() -> None:
    asked = dataclasses.replace(question(), objectives=Objectives(first_ttft_p95_s=1e-6))
    found = assess(asked, sticky(4))
    assert not found.is_plan
    assert found.missed[0].startswith("first TTFT p95 ")


def test_a_conversation_that_fits_no_engine_is_said_so() -> None:
    huge = Workload("w", evenly([ConversationShape("c", (TurnShape(900_000, 5),))], rate_per_s=1, count=1,
                                seed=1, name="w").arrivals)  # fmt: skip
    found = assess(dataclasses.replace(question(), workload=huge), sticky(1))
    assert "needs 900005 tokens of KV" in found.missed[0]


def test_nothing_on_the_frontier_is_beaten() -> None:
    figures = [(1, 5.0), (2, 4.0), (2, 3.0), (3, 3.5), (4, 1.0)]
    assessed = [Assessed(sticky(engines), joules_per_token=joules) for engines, joules in figures]
    missed = Assessed(sticky(1), ["gap p99 1 s"], 0.1)
    kept = frontier([*assessed, missed])
    assert [(each.candidate.engines, each.joules_per_token) for each in kept] == [
        (1, 5.0),
        (2, 3.0),
        (4, 1.0),
    ]


@pytest.mark.slow
def test_a_question_is_answered_the_same_each_time() -> None:
    told: list[int] = []
    one = plan(question(2.0, Offer("h100", 2, 2.5)), processes=2, tell=lambda done, *_: told.append(done))
    two = plan(question(2.0, Offer("h100", 2, 2.5)), processes=1)
    assert one == two
    assert one.cheapest is not None
    assert one.most_frugal is not None
    assert told == list(range(1, len(told) + 1))


@pytest.mark.parametrize(
    ("candidate", "pools"),
    [
        (sticky(2), (0, 2)),
        (
            Candidate("conserve_plus", Offer("h100", 4, 2.5, cap_w=500.0), 3, smallest_chunk_tokens=512),
            (0, 3),
        ),
        (Candidate("conserve_plus", A100, 3, H100, 1), (0, 4)),
        (Candidate("conserve", A100, 2, H100, 1), (1, 2)),
    ],
)
def test_a_plan_is_a_configuration_that_can_be_used(candidate: Candidate, pools: tuple[int, int]) -> None:
    config = parse_config(tomllib.loads(plan_config(candidate, "Qwen/Qwen3-8B")))
    assert config.model == "Qwen/Qwen3-8B"
    assert config.scheduler.policy == candidate.policy
    assert (config.pools.prefill.count, config.pools.decode.count) == pools
    assert config.pools.decode.tiers[-1] == tier_name(candidate.decode)
    assert config.scheduler == candidate.scheduler.model_copy(
        update={"kv_budget_fraction": config.scheduler.kv_budget_fraction}
    )
    assert (config.tiers[tier_name(candidate.decode)].prefill_tokens_per_s or 0) > 1000


def test_a_power_cap_saves_joules_and_costs_time() -> None:
    capped = dataclasses.replace(H100, cap_w=480.0)
    asked = question()
    full, less = assess(asked, sticky(4)), assess(asked, Candidate("collocated_sticky", capped, 4))
    assert full.metrics is not None
    assert less.metrics is not None
    assert less.metrics.first_ttft_s.p95 > full.metrics.first_ttft_s.p95
    assert less.joules_per_token < full.joules_per_token


def test_a_gpu_of_which_nothing_is_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is known of the watts of 'tpu'"):
        _ = Offer("tpu", 1, 1.0).power


def test_watts_fitted_to_a_model_are_taken_where_they_are_known() -> None:
    assert H100.power_with("Qwen/Qwen3-8B").name == "h100-qwen3-8b"
    assert H100.power_with("qwen3-32b") == H100.power
    assert Offer("h200", 1, 1.0).power_with("qwen3-8b").is_assumed


def test_engines_of_two_kinds_under_conserve_plus_all_have_both_roles() -> None:
    mixed = Candidate("conserve_plus", A100, 3, H100, 1)
    engines = mixed.fleet("qwen3-8b").engines
    assert [each.takes_prefills and each.takes_conversations for each in engines] == [True] * 4
    fast, slow = (offer.prefill_tokens_per_s("qwen3-8b") for offer in (H100, A100))
    assert fast > 2 * slow
    assert [each.prefill_tokens_per_s for each in engines] == [fast, slow, slow, slow]
    assert mixed.label == "conserve_plus: 1 x h100 + 3 x a100, chunks from 256 tokens"


def test_two_kinds_of_gpu_are_searched_apart_and_together() -> None:
    labels = [
        family.candidates[-1].label for family in families_of((Offer("h100", 3, 2.5), Offer("a100", 3, 1.3)))
    ]
    assert "conserve_plus: 3 x h100, chunks from 512 tokens" in labels
    assert "conserve: 3 x h100 prefill + 3 x a100 decode" in labels
    assert "conserve_plus: 1 x h100 + 3 x a100, chunks from 256 tokens" in labels
    plus = [label for label in labels if label.startswith("conserve_plus")]
    assert len(plus) == len(set(plus)) == 10
