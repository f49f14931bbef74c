"""Samples in the form that kv-cache-tester documents."""

from __future__ import annotations

import json
import pathlib

import pytest

from conserve_server.core.errors import TraceError
from conserve_server.simulation.workload import TurnShape
from conserve_server.simulation.workloads.weka import read_weka

FIRST = {"t": 0.0, "type": "s", "model": "m", "in": 192, "out": 40, "hash_ids": [1, 2, 3], "stop": ""}


def written(
    folder: pathlib.Path,
    *requests: dict[str, object],
    name: str = "trace_1",
    more: dict[str, object] | None = None,
) -> pathlib.Path:
    document = {
        "id": name,
        "models": ["m"],
        "block_size": 64,
        "tool_tokens": 100,
        "system_tokens": 28,
        "requests": requests,
        **(more or {}),
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(document))
    return file


def test_requests_become_the_turns_of_a_conversation(tmp_path: pathlib.Path) -> None:
    second = {"t": 18.0, "type": "s", "in": 300, "out": 10, "hash_ids": [1, 2, 3, 4, 5], "think_time": 11.0}
    (arrival,) = read_weka(written(tmp_path, FIRST, second)).arrivals
    assert arrival.conversation.id == "trace_1"
    assert arrival.conversation.turns == (TurnShape(192, 40), TurnShape(68, 10, 11.0))
    assert arrival.conversation.prefix == "tools-100-system-28"
    assert arrival.conversation.shared_prefix_tokens == 128


def test_without_think_time_the_gap_is_what_the_server_did_not_take(tmp_path: pathlib.Path) -> None:
    first = {**FIRST, "api_time": 4.0}
    second = {"t": 10.0, "type": "n", "in": 300, "out": 10, "hash_ids": [1, 2, 3, 4, 5]}
    (arrival,) = read_weka(written(tmp_path, first, second)).arrivals
    assert arrival.conversation.turns[1].gap_s == 6.0


def test_a_compacted_history_keeps_the_blocks_that_are_the_same(tmp_path: pathlib.Path) -> None:
    second = {"t": 10.0, "type": "s", "in": 150, "out": 10, "hash_ids": [1, 8, 9]}
    (arrival,) = read_weka(written(tmp_path, FIRST, second)).arrivals
    assert arrival.conversation.turns[1] == TurnShape(86, 10, 10.0, rewrites_from_tokens=64)


def test_a_subagent_is_a_conversation_that_starts_when_it_is_called(tmp_path: pathlib.Path) -> None:
    child = {"t": 5.0, "type": "subagent", "agent_id": "a1", "requests": [{**FIRST, "in": 130}]}
    after = {"t": 60.0, "type": "s", "in": 300, "out": 10, "hash_ids": [1, 2, 3, 4, 5]}
    parent, subagent = read_weka(written(tmp_path, FIRST, child, after)).arrivals
    assert [turn.output_tokens for turn in parent.conversation.turns] == [40, 10]
    assert (subagent.at_s, subagent.conversation.id) == (5.0, "trace_1/a1")
    assert subagent.conversation.turns == (TurnShape(130, 40),)


def test_a_folder_holds_a_conversation_in_each_file(tmp_path: pathlib.Path) -> None:
    written(tmp_path, FIRST, name="trace_2")
    written(tmp_path, FIRST, name="trace_1")
    ids = [arrival.conversation.id for arrival in read_weka(tmp_path).arrivals]
    assert ids == ["trace_1", "trace_2"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"block_size": 0}, r"trace_1\.json: block_size must be at least 1, got 0"),
        ({"requests": [{"type": "s", "in": "x"}]}, r"trace_1\.json: Expected `int`.*\$\.requests\[0\]\.in"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: pathlib.Path, more: dict[str, object], said: str) -> None:
    with pytest.raises(TraceError, match=said):
        read_weka(written(tmp_path, FIRST, more=more))


def test_a_folder_without_traces_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TraceError, match=r"there is no \*\.json file"):
        read_weka(tmp_path)
