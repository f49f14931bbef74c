"""Conversations in a real MLflow, read back through its API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conserve_server.telemetry import names

from .conftest import Collector
from .serving import EXAMPLES, awaited, converse, fetched

pytestmark = pytest.mark.slow

_EXPERIMENT = {"locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}]}


def traces_of(mlflow: Collector, session: str) -> list[dict[str, Any]]:
    found = fetched(f"{mlflow.url}/api/3.0/mlflow/traces/search", {**_EXPERIMENT, "max_results": 200})
    return [t for t in found.get("traces", []) if t["trace_metadata"].get("mlflow.trace.session") == session]


def two_traces(mlflow: Collector, session: str) -> list[dict[str, Any]] | None:
    """The conversation's summary is a trace of its own: it covers every turn, and so belongs to none."""
    found = traces_of(mlflow, session)
    return found if len(found) == 2 else None


def spans_of(mlflow: Collector, trace_id: str) -> list[dict[str, Any]]:
    spans: list[dict[str, Any]] = fetched(
        f"{mlflow.url}/ajax-api/3.0/mlflow/get-trace-artifact?request_id={trace_id}"
    )["spans"]
    return spans


async def test_a_langgraph_conversation_is_one_session_with_its_tokens_counted_once(
    mlflow: Collector, tmp_path: Path
) -> None:
    results = await converse(EXAMPLES / "langgraph_agent.py", tmp_path, mlflow.environment)
    for result in results:
        stored = awaited(
            lambda session=result.conversation_id: two_traces(mlflow, session),  # type: ignore[misc]
            "MLflow to store the agent's trace and the conversation's summary",
        )
        traces = {trace["trace_id"]: spans_of(mlflow, trace["trace_id"]) for trace in stored}
        (summary,) = [spans for spans in traces.values() if spans[0]["name"] == names.SPAN_CONVERSATION]
        assert [span["name"] for span in summary] == [names.SPAN_CONVERSATION]
        (trace,) = [trace for trace in stored if traces[trace["trace_id"]] is not summary]
        spans = traces[trace["trace_id"]]
        by_name = [span["name"] for span in spans]
        assert by_name.count(names.SPAN_TURN) == 5
        assert by_name.count(names.SPAN_PREFILL) == by_name.count(names.SPAN_TRANSFER) == 1
        assert {"execute_tool search_notes", "execute_tool calculate"} <= set(by_name)
        turns = [span["attributes"] for span in spans if span["name"] == names.SPAN_TURN]
        prompt_tokens = sum(json.loads(str(turn[names.INPUT_TOKENS])) for turn in turns)
        cached_tokens = sum(json.loads(str(turn[names.CACHE_READ_TOKENS])) for turn in turns)
        usage = json.loads(trace["trace_metadata"]["mlflow.trace.tokenUsage"])
        assert usage["input_tokens"] == prompt_tokens
        assert usage["cache_read_input_tokens"] == cached_tokens
