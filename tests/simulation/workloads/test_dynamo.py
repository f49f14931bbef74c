"""Samples in the form that Dynamo's documentation shows."""

from __future__ import annotations

import json
import pathlib

import pytest

from conserve_server.core.errors import TraceError
from conserve_server.simulation.workload import TurnShape
from conserve_server.simulation.workloads.dynamo import read_dynamo

T0_MS = 1_777_312_800_000


def event(
    trajectory: str, start_ms: int, end_ms: int, tokens: int, output: int, **more: object
) -> dict[str, object]:
    request = {
        "request_id": "r",
        "model": "m",
        "input_tokens": tokens,
        "output_tokens": output,
        "request_received_ms": T0_MS + start_ms,
        "total_time_ms": float(end_ms - start_ms),
    }
    return {
        "schema": "dynamo.agent.trace.v1",
        "event_type": "request_end",
        "event_time_unix_ms": T0_MS + end_ms,
        "event_source": "dynamo",
        "agent_context": {"session_type_id": "t", "session_id": "run", "trajectory_id": trajectory},
        "request": {**request, **more},
    }


TOOL = {
    "schema": "dynamo.agent.trace.v1",
    "event_type": "tool_end",
    "event_time_unix_ms": T0_MS + 1500,
    "event_source": "harness",
    "agent_context": {"session_type_id": "t", "session_id": "run", "trajectory_id": "run:a"},
    "tool": {"tool_call_id": "call-abc", "tool_class": "web_search", "status": "succeeded"},
}


def written(folder: pathlib.Path, *events: object) -> pathlib.Path:
    file = folder / "trace.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in events))
    return file


def test_requests_of_a_trajectory_are_its_turns(tmp_path: pathlib.Path) -> None:
    file = written(
        tmp_path,
        {"timestamp": 1, "event": event("run:a", 0, 1000, 4096, 512)},
        {"timestamp": 2, "event": event("run:b", 500, 900, 800, 10)},
        {"timestamp": 3, "event": TOOL},
        {"timestamp": 4, "event": event("run:a", 3000, 4000, 4700, 20)},
    )
    one, two = read_dynamo(file).arrivals
    assert (one.at_s, two.at_s) == (0.0, 0.5)
    assert one.conversation.id == "run:a"
    assert one.conversation.turns == (TurnShape(4096, 512), TurnShape(92, 20, 2.0))


def test_replay_hashes_give_lengths_and_shared_prefixes(tmp_path: pathlib.Path) -> None:
    def replayed(name: str, at_ms: int, hashes: list[int]) -> dict[str, object]:
        replay = {"trace_block_size": 64, "input_length": 64 * len(hashes), "input_sequence_hashes": hashes}
        return event(name, at_ms, at_ms + 10, 0, 5, input_tokens=None, replay=replay)

    file = written(
        tmp_path,
        replayed("a", 0, [1, 2, 3]),
        replayed("b", 5, [1, 2, 4]),
        replayed("a", 100, [1, 9, 10]),
    )
    one, two = (arrival.conversation for arrival in read_dynamo(file).arrivals)
    assert one.prefix == two.prefix == "block-2"
    assert one.shared_prefix_tokens == 128
    assert one.turns[1] == TurnShape(128, 5, one.turns[1].gap_s, rewrites_from_tokens=64)
    assert one.turns[1].gap_s == pytest.approx(0.09)


def test_a_later_version_names_the_session_alone(tmp_path: pathlib.Path) -> None:
    line = event("x", 0, 10, 100, 5)
    line["schema"] = "dynamo.request.trace.v1"
    line["agent_context"] = {"session_id": "s1"}
    (only,) = read_dynamo(written(tmp_path, line)).arrivals
    assert only.conversation.id == "s1"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "other.v1"}, r"trace\.jsonl:1: schema must be one of .*, got 'other\.v1'"),
        ({"agent_context": {}}, r"trace\.jsonl:1: agent_context must have a trajectory_id or a session_id"),
        ({"request": {}}, r"trace\.jsonl:1: request must have input_tokens, or replay\.input_length"),
        (
            {"request": {"output_tokens": -1}},
            r"trace\.jsonl:1: Expected `int` >= 0 - at `\$\.request\.output_tokens`",
        ),
    ],
)
def test_an_event_that_is_wrong_is_named(
    tmp_path: pathlib.Path, change: dict[str, object], said: str
) -> None:
    with pytest.raises(TraceError, match=said):
        read_dynamo(written(tmp_path, {**event("a", 0, 10, 100, 5), **change}))
