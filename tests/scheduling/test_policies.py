"""Choosing a policy by name, and that each reads what its page says and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_server.core.errors import ConfigError
from conserve_server.core.policy_config import SchedulerConfig
from conserve_server.scheduling.choices import FREEST
from conserve_server.scheduling.policies import POLICIES, policy_of
from conserve_server.scheduling.policy import ClusterView, EngineView, Order, TurnView
from tests.scheduling.views import cluster, decoder, first, later, pools, prefiller

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"must be one of ampd, ampd_emulated, .*, ppd, got 'fastest'"):
        policy_of(SchedulerConfig(policy="fastest"))


def test_the_oracle_serves_a_replay_and_nobody_else() -> None:
    config = SchedulerConfig.model_validate({"conserve": {"mode": "oracle"}})
    with pytest.raises(ConfigError, match=r'scheduler\.conserve\.mode must be "grow" to serve'):
        policy_of(config)
    assert policy_of(config, is_replay=True).place(first(10, total_tokens=20), pools(free=(50,)))


def test_first_turns_have_a_priority_where_our_own_engines_know_it() -> None:
    config = SchedulerConfig(policy="conserve_plus")
    for is_ours, priority in ((True, 10), (False, None)):
        placement = policy_of(config, serves_own_engines=is_ours).place(first(10), pools(free=(9000,)))
        assert placement is not None
        assert placement.priority == priority


def test_a_configured_priority_wins() -> None:
    config = SchedulerConfig.model_validate(
        {"policy": "conserve_plus", "conserve_plus": {"first_turn_priority": 3}}
    )
    for is_ours in (True, False):
        placement = policy_of(config, serves_own_engines=is_ours).place(first(10), pools(free=(9000,)))
        assert placement is not None
        assert placement.priority == 3


# -- what is read ----------------------------------------------------------------------------------

ENGINE, TURN, CLUSTER = "engine", "turn", "cluster"
# What is found through these is noted itself; which engine it is, and what for, says nothing of its load.
PLAIN = {
    "engine.name",
    "engine.takes_conversations",
    "engine.takes_prefills",
    "cluster.engine",
    "cluster.engines",
    "cluster.ordered",
    "cluster.prefillers",
    "cluster.decoders",
    "turn.bound_decoder",
}

OPTIONS = {
    "ampd": {"reorders_prefills": True},
    "conserve_plus": {"first_turn_priority": 10},
    "full_disaggregation": {"is_sticky": True},
}


class Recording:
    """A view that notes which of its parts are read."""

    def __init__(self, view: object, kind: str, read: set[str]) -> None:
        self._view, self._kind, self._read = view, kind, read

    def __getattr__(self, name: str) -> object:
        self._read.add(f"{self._kind}.{name}")
        value = getattr(self._view, name)
        if name == "ordered":
            return self._ordered
        if name == "engine":
            return lambda wanted: self._wrapped(value(wanted))
        return tuple(map(self._wrapped, value)) if isinstance(value, tuple) else value

    def _ordered(self, order: Order) -> Iterator[EngineView]:
        engines = [cast(EngineView, self._wrapped(e)) for e in cast(ClusterView, self._view).engines]
        return iter(sorted(filter(order.takes, engines), key=order.key))

    def _wrapped(self, found: object) -> object:
        return Recording(found, ENGINE, self._read) if isinstance(found, EngineView) else found


engines = st.builds(
    EngineView,
    name=st.just(""),
    takes_prefills=st.booleans(),
    takes_conversations=st.booleans(),
    kv_capacity_tokens=st.sampled_from((None, 1000)),
    budget_tokens=st.just(900),
    reserved_tokens=st.integers(0, 1000),
    unaccounted_tokens=st.integers(0, 100),
    queued_tokens=st.integers(0, 50_000),
    running_turns=st.integers(0, 20),
    unaccounted_turns=st.integers(0, 3),
    prefill_tokens_per_s=st.just(8000.0),
    decode_step_s=st.just(0.03),
    prefers=st.none(),
    ttft_s=st.one_of(st.none(), st.floats(0, 10)),
    itl_s=st.one_of(st.none(), st.floats(0, 0.1)),
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[TurnView, ClusterView]:
    given_engines = draw(st.lists(engines, min_size=1, max_size=5))
    named = [_named(engine, f"e{i}") for i, engine in enumerate(given_engines)]
    prompt_tokens = draw(st.integers(1, 20_000))
    hit_share = draw(st.one_of(st.none(), st.floats(0, 1)))
    context = {e.name: draw(st.integers(0, prompt_tokens)) for e in named}
    turn = later(prompt_tokens, "e0", context, hit_share=hit_share, may_move=draw(st.booleans()))
    view = cluster(
        *named,
        mean_output_tokens=draw(st.floats(1, 200)),
        first_turn_tokens_per_s=draw(st.floats(0, 40_000)),
    )
    return (first(prompt_tokens) if draw(st.booleans()) else turn), view


def _named(engine: EngineView, name: str) -> EngineView:
    return EngineView(**(engine._asdict() | {"name": name}))


def sections() -> Iterator[tuple[str, set[str]]]:
    """Each policy's section of the page, with the parts of views that it says are read."""
    for section in PAGE.read_text().split("\n## ")[1:]:
        name = re.match(r".*?\(`(\w+)`\)", section)
        line = re.search(r"^Reads: (.*)$", section, re.MULTILINE)
        if name is not None and line is not None:
            yield name[1], set(re.findall(r"`((?:turn|engine|cluster)\.\w+)`", line[1]))


def documented() -> Mapping[str, set[str]]:
    return dict(sections())


def test_the_page_has_a_section_for_each_policy() -> None:
    assert set(documented()) == set(POLICIES)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_policy_reads_what_its_page_says_and_nothing_else(name: str) -> None:
    policies = [policy_of(SchedulerConfig.model_validate({"policy": name, **o})) for o in (OPTIONS, {})]
    read = set[str]()

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(situations())
    def place(situation: tuple[TurnView, ClusterView]) -> None:
        turn, view = situation
        for policy in policies:
            recorded = cast(TurnView, Recording(turn, TURN, read))
            policy.place(recorded, cast(ClusterView, Recording(view, CLUSTER, read)))

    place()
    assert read - PLAIN == documented()[name]


def test_no_policy_that_serves_reads_what_only_a_trace_knows() -> None:
    assert "turn.total_tokens" not in set().union(*documented().values())


def test_a_read_is_recorded() -> None:
    read = set[str]()
    view = cluster(prefiller("p0"), decoder("d0"))
    recorded = cast(ClusterView, Recording(view, CLUSTER, read))
    assert recorded.decoders[0].free_tokens == 1000
    assert next(recorded.ordered(FREEST)).name == "d0"
    assert read >= {"cluster.decoders", "cluster.ordered", "engine.free_tokens"}
