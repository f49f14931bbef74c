from __future__ import annotations

import pathlib
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from conserve_sdk.protocol import Outcome
from conserve_server.telemetry.perfetto import trace_events
from conserve_server.telemetry.spans_file import read_spans
from conserve_server.telemetry.timeline import Timeline, ToolRow, timeline


def tracks(document: Mapping[str, Any]) -> dict[str, list[str]]:
    """Each track by its process and name, with its slices in order."""
    events: list[dict[str, Any]] = document["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    slices = sorted(
        (e for e in events if e["ph"] == "X"), key=lambda e: (e["pid"], e["tid"], e["ts"], -e["dur"])
    )
    return {
        f"{processes[pid]}/{threads[pid, tid]}": [e["name"] for e in group]
        for (pid, tid), group in groupby(slices, key=lambda e: (e["pid"], e["tid"]))
    }


def test_turns_hold_their_phases_and_tools_that_overlap_have_lanes(researcher: pathlib.Path) -> None:
    found = tracks(trace_events([timeline("conv-1", read_spans(researcher))]))
    assert found == {
        "engines/prefill-0": ["prefill · conv-1 turn 1"],
        "engines/decode-1": [
            "KV transfer · conv-1 turn 1",
            "decode · conv-1 turn 1",
            "decode · conv-1 turn 2",
        ],
        "researcher conv-1/turns": [
            *("turn 1", "admission wait", "prefill", "KV transfer", "decode"),
            *("turn 2", "decode"),
        ],
        "researcher conv-1/tools": ["search"],
        "researcher conv-1/tools (2)": ["fetch"],
    }


def test_times_are_microseconds_on_one_clock(researcher: pathlib.Path) -> None:
    first = timeline("conv-1", read_spans(researcher))
    later = Timeline("conv-2", first.start_unix_s + 10, tools=(ToolRow("wait", 0.5, 1.0, Outcome.COMPLETED),))
    events = trace_events([later, first])["traceEvents"]
    assert isinstance(events, list)
    starts = {e["name"]: (e["ts"], e["dur"]) for e in events if e["ph"] == "X"}
    assert starts["wait"] == (10_500_000, 500_000)
    assert starts["turn 2"] == (6_200_000, 1_700_000)


def test_what_was_observed_is_in_the_arguments_and_nothing_else(researcher: pathlib.Path) -> None:
    events = trace_events([timeline("conv-1", read_spans(researcher))])["traceEvents"]
    assert isinstance(events, list)
    (turn,) = (e for e in events if e["name"] == "turn 2")
    assert turn["args"] == {
        "path": "pinned",
        "decoder": "decode-1",
        "prompt_tokens": 1300,
        "cached_tokens": 1088,
        "output_tokens": 40,
        "ttft_s": 0.25,
        "outcome": "completed",
    }


def test_no_conversation_is_an_empty_trace() -> None:
    assert trace_events([])["traceEvents"] == []
