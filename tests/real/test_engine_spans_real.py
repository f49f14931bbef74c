"""vLLM's own spans are part of a conversation's tree where it sends them to the same collector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from conserve_server.cli.gateway_process import running_gateway
from conserve_server.telemetry import names
from tests.otlp import Collector
from tests.processes import wait_for
from tests.real.cluster import MODEL, local_engines

pytestmark = pytest.mark.real

OVER_HTTP = '{ OTEL_EXPORTER_OTLP_TRACES_PROTOCOL = "http/protobuf" }'


@pytest.fixture
def collector() -> Iterator[Collector]:
    with closing(Collector()) as collector:
        yield collector


async def test_an_engines_own_span_stands_below_the_leg_that_it_served(
    collector: Collector, vllm_python: str, tmp_path: Path
) -> None:
    endpoint = f"{collector.url}/v1/traces"
    flags = f'["--otlp-traces-endpoint", "{endpoint}"]'
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with local_engines(tmp_path, vllm_python, prefill=1, flags=flags, env=OVER_HTTP) as engines:
        async with (
            running_gateway(engines.config_path, env, tmp_path / "gateway.log") as url,
            httpx2.AsyncClient(timeout=60) as client,
        ):
            for prompt in ("a" * 200, "a" * 260):
                body = {"model": MODEL, "prompt": prompt, "max_tokens": 4}
                headers = {"x-conserve-conversation-id": "watched"}
                answer = await client.post(f"{url}/v1/completions", json=body, headers=headers)
                assert answer.status_code == 200, answer.text
        wait_for(lambda: len(engine_spans(collector)) == 3, "vLLM to send its spans", limit_s=60.0)
    spans = {span.span_id: span for span in collector.spans()}
    legs = [spans[span.parent_span_id] for span in engine_spans(collector)]
    assert sorted(leg.name for leg in legs) == [names.SPAN_DECODE, names.SPAN_DECODE, names.SPAN_PREFILL]
    turns = {leg.parent_span_id for leg in legs}
    assert [spans[turn].name for turn in turns] == [names.SPAN_TURN] * 2


def engine_spans(collector: Collector) -> list[Span]:
    return [span for span in collector.spans() if span.name == "llm_request"]
