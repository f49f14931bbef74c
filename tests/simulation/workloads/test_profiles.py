from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from conserve_server.core.errors import ConfigError
from conserve_server.simulation.workload import ConversationShape, TurnShape
from conserve_server.simulation.workloads.profiles import PROFILES, profile_conversations


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


def later(shapes: list[ConversationShape], of: Callable[[TurnShape], float]) -> list[float]:
    return [of(turn) for shape in shapes for turn in shape.turns[1:]]


@pytest.mark.parametrize(
    ("name", "turns", "first", "appended", "output"),
    [
        ("coding-agent", (45, 112), 13_400, (180, 2_173), (145, 784)),
        ("interactive-coding", (52, 118), 19_000, (203, 5_684), (204, 1_339)),
        ("tool-chat", (11, 23), 1_300, (36, 417), (66, 221)),
    ],
)
def test_a_profile_has_the_published_medians_and_tails(
    name: str, turns: tuple[int, int], first: int, appended: tuple[int, int], output: tuple[int, int]
) -> None:
    shapes = profile_conversations(name, count=1500, seed=1)
    # A context limit cuts the longest conversations short.
    assert percentile([len(each.turns) for each in shapes], 0.5) == pytest.approx(turns[0], rel=0.2)
    assert percentile([each.turns[0].appended_tokens for each in shapes], 0.5) == pytest.approx(
        first, rel=0.05
    )
    for values, (p50, p95) in (
        (later(shapes, lambda turn: turn.appended_tokens), appended),
        (later(shapes, lambda turn: turn.output_tokens), output),
    ):
        assert percentile(values, 0.5) == pytest.approx(p50, rel=0.1)
        assert percentile(values, 0.95) == pytest.approx(p95, rel=0.15)


def test_the_coding_agents_gaps_are_mostly_nothing_and_sometimes_long() -> None:
    gaps = later(profile_conversations("coding-agent", count=1500, seed=1), lambda turn: turn.gap_s)
    assert percentile(gaps, 0.6) == pytest.approx(0.1, rel=0.15)
    assert percentile(gaps, 0.95) == pytest.approx(11.0, rel=0.15)
    assert statistics.mean(gaps) == pytest.approx(3.4, rel=0.15)


@pytest.mark.parametrize("name", PROFILES)
def test_no_conversation_outgrows_its_profiles_context(name: str) -> None:
    for shape in profile_conversations(name, count=200, seed=2):
        context = sum(turn.appended_tokens + turn.output_tokens for turn in shape.turns)
        assert context <= PROFILES[name].max_context_tokens
        assert shape.turns[0].appended_tokens > shape.shared_prefix_tokens
        assert shape.prefix == name


def test_the_same_seed_gives_the_same_conversations() -> None:
    assert profile_conversations("tool-chat", count=9, seed=3) == profile_conversations(
        "tool-chat", count=9, seed=3
    )
    assert profile_conversations("tool-chat", count=9, seed=3) != profile_conversations(
        "tool-chat", count=9, seed=4
    )


def test_an_unknown_profile_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"no profile 'poetry'; there are: coding-agent, interactive-coding"
    ):
        profile_conversations("poetry", count=1, seed=1)
