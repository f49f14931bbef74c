"""A request's id: taken or made, and found wherever the request was."""

from __future__ import annotations

import logging

import pytest

from conserve_server.engines.emulated import Fault
from conserve_server.engines.engine import Role
from conserve_server.gateway.http.request_id import MAX_LENGTH, clean_request_id
from conserve_server.telemetry import names

from .conftest import MODEL, Serve, Served, engine_config

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


async def test_a_clients_id_is_in_the_answer_the_span_and_the_engine(gateway: Served) -> None:
    answer = await gateway.client.post(
        "/v1/chat/completions", json=BODY, headers={"x-request-id": "trace-7.b"}
    )
    assert answer.headers["x-request-id"] == "trace-7.b"
    assert "trace-7.b" in answer.json()["id"]  # vLLM names its answer by the id that it was given
    turn = next(span for span in gateway.spans if span.name == names.SPAN_TURN)
    assert (turn.attributes or {})[names.REQUEST_ID] == "trace-7.b"


async def test_a_request_without_an_id_gets_one_of_its_own(gateway: Served) -> None:
    answers = [await gateway.client.post("/v1/chat/completions", json=BODY) for _ in range(2)]
    answers.append(await gateway.client.get("/v1/models"))
    answers.append(await gateway.client.get("/nothing"))
    answers.append(await gateway.client.post("/v1/messages", content=b"{"))
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == len(answers)
    assert all(len(each) == 32 for each in ids)


def test_an_id_keeps_what_breaks_no_log_and_has_an_end() -> None:
    assert clean_request_id('a b\r\nc"d\u00e9;e') == "abcde"
    assert len(clean_request_id("x" * 10_000)) == MAX_LENGTH
    assert clean_request_id("\u00e9") == ""


async def test_the_log_of_a_failed_leg_names_the_request(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    broken = [engine_config(Role.PREFILL, "prefill-0", faults=(Fault("status", status=500),))]
    async with serve(prefill=broken) as gateway:
        await gateway.client.post("/v1/chat/completions", json=BODY, headers={"x-request-id": "r-17"})
    assert any("r-17" in record.getMessage() for record in caplog.records)
