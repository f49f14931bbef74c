"""Faults happen to whom they should, as often as they should."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from conserve_server.engines.emulated import EmulatedConfig, EmulatedEngineServer, EmulatedTiming, Fault
from conserve_server.engines.emulated.faults import FaultBook
from conserve_server.engines.engine import Role

FAST = EmulatedTiming().faster(100)
BODY: dict[str, Any] = {"prompt": "hello", "max_tokens": 8}


async def _ask(url: str, **fields: Any) -> httpx2.Response:
    async with httpx2.AsyncClient() as client:
        return await client.post(f"{url}/v1/completions", json={**BODY, **fields})


def test_a_fault_happens_to_its_leg_and_as_often_as_asked() -> None:
    book = FaultBook.of([Fault("reset", count=2, leg=Role.DECODE), Fault("hang")])
    assert [getattr(book.take(Role.DECODE), "kind", None) for _ in range(4)] == [
        "reset",
        "reset",
        "hang",
        None,
    ]
    book.add(Fault("reset", leg=Role.DECODE))
    assert book.take(Role.PREFILL) is None


async def test_a_status_is_answered_as_often_as_asked() -> None:
    config = EmulatedConfig(timing=FAST, faults=(Fault("status", count=2, status=503),))
    async with EmulatedEngineServer(config) as engine:
        statuses = [(await _ask(engine.url)).status_code for _ in range(3)]
    assert statuses == [503, 503, 200]


async def test_faults_are_asked_for_and_forgotten_over_http() -> None:
    async with EmulatedEngineServer(EmulatedConfig(timing=FAST)) as engine, httpx2.AsyncClient() as client:
        url = f"{engine.url}/emulated/faults"
        assert (
            await client.post(url, json={"kind": "status", "status": 500, "leg": "decode"})
        ).status_code == 204
        assert (await _ask(engine.url)).status_code == 500
        await client.post(url, json={"kind": "status"})
        assert (await client.delete(url)).status_code == 204
        assert (await _ask(engine.url)).status_code == 200


@pytest.mark.parametrize(
    "fault", [{}, {"kind": "x"}, {"kind": "reset", "times": 2}, {"kind": "reset", "count": 0}]
)
async def test_what_is_not_a_fault_is_refused(fault: dict[str, Any]) -> None:
    async with EmulatedEngineServer(EmulatedConfig(timing=FAST)) as engine, httpx2.AsyncClient() as client:
        answer = await client.post(f"{engine.url}/emulated/faults", json=fault)
    assert answer.status_code == 400


async def test_a_reset_drops_the_connection_before_any_byte() -> None:
    async with EmulatedEngineServer(EmulatedConfig(timing=FAST, faults=(Fault("reset"),))) as engine:
        with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
            await _ask(engine.url)
        assert (await _ask(engine.url)).status_code == 200


async def test_a_reset_in_a_stream_comes_after_the_tokens_that_it_lets_through() -> None:
    config = EmulatedConfig(timing=FAST, faults=(Fault("reset", after_tokens=3),))
    received = bytearray()

    async def read_all(client: httpx2.AsyncClient, url: str) -> None:
        async with client.stream("POST", url, json={**BODY, "stream": True}) as answer:
            async for part in answer.aiter_bytes():
                received.extend(part)

    async with EmulatedEngineServer(config) as engine, httpx2.AsyncClient() as client:
        with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
            await read_all(client, f"{engine.url}/v1/completions")
        metrics = (await client.get(f"{engine.url}/metrics")).text
    assert received.count(b"data: ") == 3
    assert 'vllm:num_requests_running{engine="0",model_name="emulated"} 0.0' in metrics


async def test_a_status_in_a_stream_is_an_error_event() -> None:
    config = EmulatedConfig(timing=FAST, faults=(Fault("status", status=500, after_tokens=2),))
    async with EmulatedEngineServer(config) as engine:
        answer = await _ask(engine.url, stream=True)
    assert answer.status_code == 200
    assert answer.text.split("\n\n")[2].startswith('data: {"error":')
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_a_hanging_engine_is_silent_until_the_client_gives_up() -> None:
    async with EmulatedEngineServer(EmulatedConfig(timing=FAST, faults=(Fault("hang"),))) as engine:
        async with httpx2.AsyncClient(timeout=0.1) as client:
            with pytest.raises(httpx2.ReadTimeout):
                await client.post(f"{engine.url}/v1/completions", json=BODY)
        assert (await _ask(engine.url)).status_code == 200


async def test_a_dead_engine_drops_its_connections_and_refuses_new_ones() -> None:
    async with EmulatedEngineServer(EmulatedConfig(timing=FAST, faults=(Fault("die"),))) as engine:
        with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
            await _ask(engine.url)
        with pytest.raises(httpx2.ConnectError):
            await _ask(engine.url)


async def test_a_slow_engine_still_answers() -> None:
    config = EmulatedConfig(timing=FAST, faults=(Fault("slow", delay_s=0.01),))
    async with EmulatedEngineServer(config) as engine:
        answer = await _ask(engine.url)
    assert answer.json()["usage"]["completion_tokens"] == 8


async def test_malformed_transfer_parameters_lack_their_address() -> None:
    config = EmulatedConfig(timing=FAST, faults=(Fault("malformed_kv_params", leg=Role.PREFILL),))
    async with EmulatedEngineServer(config) as engine:
        answer = await _ask(engine.url, kv_transfer_params={"do_remote_decode": True})
    assert answer.json()["kv_transfer_params"] == {"do_remote_prefill": True, "do_remote_decode": False}
