"""Samples in the form that Mooncake's repository documents, and Dynamo's and AIPerf's variants of it."""

from __future__ import annotations

import json
import pathlib

import pytest

from conserve_server.core.errors import TraceError
from conserve_server.simulation.workload import TurnShape
from conserve_server.simulation.workloads.mooncake import read_mooncake


def written(folder: pathlib.Path, *requests: dict[str, object]) -> pathlib.Path:
    file = folder / "trace.jsonl"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return file


def request(at_ms: int, tokens: int, output: int, hashes: list[int], **more: object) -> dict[str, object]:
    fields = {"timestamp": at_ms, "input_length": tokens, "output_length": output, "hash_ids": hashes}
    return {**fields, **more}


def test_a_prompt_that_begins_with_anothers_full_blocks_is_its_next_turn(tmp_path: pathlib.Path) -> None:
    file = written(
        tmp_path,
        request(1000, 1100, 100, [1, 2, 3]),
        request(2000, 600, 10, [9, 10]),
        request(9000, 1700, 50, [1, 2, 4, 5]),
    )
    first, second = read_mooncake(file, decode_s=0.03).arrivals
    assert (first.at_s, second.at_s) == (1.0, 2.0)
    assert first.conversation.turns == (TurnShape(1100, 100), TurnShape(500, 50, 8.0 - 100 * 0.03))
    assert second.conversation.turns == (TurnShape(600, 10),)


def test_conversations_with_the_same_first_blocks_share_a_prefix(tmp_path: pathlib.Path) -> None:
    file = written(
        tmp_path,
        request(0, 2000, 10, [1, 2, 11, 12]),
        request(1, 2000, 10, [1, 2, 21, 22]),
        request(2, 2000, 10, [5, 6, 7, 8]),
    )
    one, two, three = (arrival.conversation for arrival in read_mooncake(file).arrivals)
    assert one.prefix == two.prefix == "block-2"
    assert one.shared_prefix_tokens == two.shared_prefix_tokens == 1024
    assert (three.prefix, three.shared_prefix_tokens) == (None, 0)


def test_a_session_id_says_whose_turn_it_is(tmp_path: pathlib.Path) -> None:
    file = written(
        tmp_path,
        request(0, 1000, 20, [], session_id="a"),
        {"session_id": "a", "input_length": 1100, "output_length": 30, "delay": 1500, "tool_wait_ms": 500},
        request(5, 800, 5, [], session_id="b"),
    )
    one, two = read_mooncake(file).arrivals
    assert one.conversation.id == "a"
    assert one.conversation.turns == (TurnShape(1000, 20), TurnShape(80, 30, 2.0))
    assert two.conversation.turns == (TurnShape(800, 5),)


def test_a_session_whose_blocks_change_was_rewritten(tmp_path: pathlib.Path) -> None:
    file = written(
        tmp_path,
        request(0, 2048, 20, [1, 2, 3, 4], session_id="a"),
        request(9000, 2048, 20, [1, 7, 8, 9], session_id="a"),
    )
    (only,) = read_mooncake(file).arrivals
    assert only.conversation.turns[1] == TurnShape(1536, 20, 9.0 - 20 * 0.03, rewrites_from_tokens=512)


def test_a_missing_length_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TraceError, match=r"trace\.jsonl:1: .*missing required field `input_length`"):
        read_mooncake(written(tmp_path, {"timestamp": 0, "output_length": 1}))
