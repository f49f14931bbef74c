"""Replays against a real gateway over emulated engines, in the test's own event loop."""

from __future__ import annotations

from collections.abc import Sequence

from conserve_server.simulation.live.replay import Told, prompt_of, replay
from conserve_server.simulation.live.token_client import connected, random_tokens
from conserve_server.simulation.metrics import metrics
from conserve_server.simulation.workload import Arrival, ConversationShape, TurnShape, Workload
from tests.gateway.conftest import served

TURNS = (TurnShape(200, 6), TurnShape(40, 4, gap_s=0.1), TurnShape(30, 5))


def workload(*names: str, turns: Sequence[TurnShape] = TURNS) -> Workload:
    shapes = [ConversationShape(name, tuple(turns), "agent", 64) for name in names]
    return Workload("w", tuple(Arrival(0.02 * number, shape) for number, shape in enumerate(shapes)))


async def test_every_turn_is_sent_and_recorded() -> None:
    told: list[Told] = []
    async with served() as gateway, connected(gateway.url) as client:
        found = await replay(workload("a", "b"), client, tell=told.append)
    assert found.failures == []
    records = found.records
    assert len(records) == 6
    of_first = [row for row in range(6) if records.conversation[row] == 0]
    assert [records.index[row] for row in of_first] == [0, 1, 2]
    assert [records.prompt_tokens[row] for row in of_first] == [200, 246, 280]
    assert [records.output_tokens[row] for row in of_first] == [6, 4, 5]
    assert all(
        records.arrived_s[row] <= records.first_token_s[row] <= records.ended_s[row] for row in range(6)
    )
    assert (told[-1].turns, told[-1].conversations, told[-1].running) == (6, 2, 0)


async def test_the_metrics_of_a_replay_are_the_simulators() -> None:
    async with served() as gateway, connected(gateway.url) as client:
        found = await replay(workload("a", "b"), client)
    measured = metrics(found.records, [found.gaps], found.duration_s)
    assert (measured.conversations, measured.turns) == (2, 6)
    assert measured.transfers == 2
    assert measured.cached_share > 0.3
    assert 0 < measured.ttfet_s.p95 <= measured.e2e_s.p95 <= measured.duration_s


async def test_gaps_and_arrivals_go_as_fast_as_asked() -> None:
    slow = (TurnShape(50, 2), TurnShape(10, 2, gap_s=30.0))
    async with served() as gateway, connected(gateway.url) as client:
        found = await replay(workload("a", turns=slow), client, speed=300.0)
    assert found.duration_s < 10.0
    assert found.records.arrived_s[1] - found.records.ended_s[0] >= 0.1


async def test_a_conversation_that_is_refused_is_over_and_told() -> None:
    too_long = (TurnShape(60_000, 2), TurnShape(10, 2))
    mixed = Workload(
        "w",
        (
            Arrival(0.0, ConversationShape("big", too_long)),
            Arrival(0.0, ConversationShape("small", TURNS)),
        ),
    )
    async with served() as gateway, connected(gateway.url) as client:
        found = await replay(mixed, client)
    assert len(found.records) == 3
    assert len(found.failures) == 1
    assert found.failures[0].startswith("big: ")


def test_prompts_contain_their_history_and_their_agents_prefix() -> None:
    one = ConversationShape("a", (TurnShape(100, 5), TurnShape(10, 5)), "agent", 64)
    first = prompt_of(one, "n-0", 0, [])
    other = prompt_of(one, "n-1", 0, [])
    assert len(first) == 100
    assert first[:64] == other[:64] == random_tokens("agent", 64)
    assert first[64:] != other[64:]
    second = prompt_of(one, "n-0", 1, [*first, 1, 2, 3])
    assert second[:103] == [*first, 1, 2, 3]
    assert len(second) == 113


def test_a_rewritten_prompt_keeps_what_its_shape_says() -> None:
    shape = ConversationShape("a", (TurnShape(100, 5), TurnShape(10, 5, rewrites_from_tokens=40)))
    history = list(range(105))
    prompt = prompt_of(shape, "n", 1, history)
    assert prompt[:40] == history[:40]
    assert len(prompt) == 50
