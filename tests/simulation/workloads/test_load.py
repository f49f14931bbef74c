from __future__ import annotations

import json
import pathlib

import pytest

from conserve_server.core.errors import TraceError
from conserve_server.simulation.workloads.load import READERS, load_workload

OWN = {
    "format": "conserve-trace-v1",
    "id": "c",
    "at_s": 0,
    "turns": [{"appended_tokens": 9, "output_tokens": 1}],
}
MOONCAKE = {"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": [1]}
WEKA = {"id": "w", "block_size": 64, "requests": [{"type": "s", "t": 0, "in": 9, "out": 1, "hash_ids": [1]}]}
DYNAMO = {
    "schema": "dynamo.agent.trace.v1",
    "event_type": "request_end",
    "event_time_unix_ms": 1,
    "agent_context": {"session_id": "s"},
    "request": {"input_tokens": 9, "output_tokens": 1},
}
SESSION = {
    "session": "s",
    "shared_prefix_tokens": 1,
    "turns": [{"input_tokens": 9, "appended_tokens": 9, "output_tokens": 1, "gap_s": 0}],
}
ARTIFACT = "conv_id,iter_id,appended_input,total_input,out_token_size,carried_over\n0,0,9,9,1,0\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", json.dumps(OWN)),
        ("b.jsonl", json.dumps(MOONCAKE)),
        ("c.json", json.dumps(WEKA)),
        ("d.json", json.dumps(WEKA, indent=2)),
        ("e.jsonl", json.dumps(DYNAMO)),
        ("f.jsonl", json.dumps({"timestamp": 1, "event": DYNAMO})),
        ("g.jsonl", json.dumps(SESSION)),
        ("h.csv", ARTIFACT),
    ],
)
def test_a_format_is_told_by_its_first_line(tmp_path: pathlib.Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    (arrival,) = load_workload(tmp_path / name).arrivals
    assert [(turn.appended_tokens, turn.output_tokens) for turn in arrival.conversation.turns] == [(9, 1)]


def test_a_folder_is_wekas(tmp_path: pathlib.Path) -> None:
    (tmp_path / "w.json").write_text(json.dumps(WEKA))
    assert len(load_workload(tmp_path).arrivals) == 1


@pytest.mark.parametrize(
    ("text", "trace_format", "said"),
    [
        (
            "hello\n",
            None,
            r"can't tell its format; name one: conserve, mooncake, weka, dynamo, artifact, sessions",
        ),
        ("{}\n", "csv", r"the format must be one of conserve, .*, got 'csv'"),
        ("", "conserve", r"there is no conversation in it"),
    ],
)
def test_a_file_that_is_no_workload_is_refused(
    tmp_path: pathlib.Path, text: str, trace_format: str | None, said: str
) -> None:
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(TraceError, match=said):
        load_workload(tmp_path / "t.jsonl", trace_format)


def test_a_file_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TraceError, match=r"there is no .*/none\.jsonl"):
        load_workload(tmp_path / "none.jsonl")


def test_every_reader_is_documented() -> None:
    page = (pathlib.Path(__file__).parents[3] / "docs" / "workloads.md").read_text()
    assert all(f"| `{name}` |" in page for name in READERS)
