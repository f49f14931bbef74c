"""The engines as the scheduler knows them."""

from conserve_server.core.config import parse_config
from conserve_server.engines.engine import listed_engines
from conserve_server.scheduling.engine_state import EngineProfile
from conserve_server.serving.cluster.engine_profiles import profile_of

POOLS = {"prefill": {"engines": ["http://a"]}, "decode": {"engines": ["http://b", "http://c"]}}


def profiles(**document: object) -> list[EngineProfile]:
    config = parse_config({"pools": POOLS, **document})
    return [profile_of(config, spec) for spec in listed_engines(config)]


def test_a_pools_engines_have_its_role() -> None:
    assert profiles() == [
        EngineProfile("prefill-0", takes_prefills=True),
        EngineProfile("decode-0", takes_conversations=True),
        EngineProfile("decode-1", takes_conversations=True),
    ]


def test_a_pool_may_do_the_other_pools_work_too() -> None:
    both = {**POOLS, "decode": {"engines": ["http://b"], "has_both_roles": True}}
    assert profiles(pools=both)[1] == EngineProfile("decode-0", takes_prefills=True, takes_conversations=True)


def test_an_engine_is_as_fast_as_its_tier() -> None:
    mixed = {**POOLS, "decode": {"engines": ["http://b", "http://c"], "tiers": ["old", "new"]}}
    tiers = {
        "old": {"prefill_tokens_per_s": 1000.0, "decode_step_s": 0.04},
        "new": {"prefill_tokens_per_s": 9000.0, "decode_step_s": 0.01},
    }
    found = [(p.prefill_tokens_per_s, p.decode_step_s) for p in profiles(pools=mixed, tiers=tiers)]
    assert found == [(None, None), (1000.0, 0.04), (9000.0, 0.01)]


def test_a_tier_may_be_for_one_phase_and_its_speeds_observed() -> None:
    tiered = {**POOLS, "decode": {"engines": ["http://b"], "tiers": ["capped"]}}
    found = profiles(pools=tiered, tiers={"capped": {"prefers": "decode", "power_cap_w": 200.0}})[1]
    assert (found.prefers, found.prefill_tokens_per_s) == ("decode", None)
