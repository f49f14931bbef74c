"""Requests at which engines end: tried once more, apart from others, then refused; and budgets of tries."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest

from conserve_server.core.clock import VirtualClock
from conserve_server.core.errors import DeadlyRequest, EngineFailed
from conserve_server.engines.emulated import EmulatedTiming
from conserve_server.engines.engine import Role
from conserve_server.serving.cluster.cluster import Cluster
from conserve_server.serving.turns.live import LiveTurn
from conserve_server.serving.turns.retries import BURST, REMEMBERED_S, Retries
from conserve_server.telemetry import names
from conserve_server.telemetry.metrics import GatewayMetrics

from .conftest import MODEL, Serve, Served, engine_config

POISON = "the prompt at which its engine ends"
DECODERS = [f"decode-{n}" for n in range(5)]


def decoders(count: int = 5, **changes: object) -> list[Any]:
    return [engine_config(Role.DECODE, name, **changes) for name in DECODERS[:count]]


async def ask(gateway: Served, text: str, **headers: str) -> httpx2.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 4}
    return await gateway.client.post("/v1/chat/completions", json=body, headers=headers)


async def up(gateway: Served) -> set[str]:
    engines = (await gateway.client.get("/health")).json()["engines"]
    return {engine["name"] for engine in engines if engine["up"]}


async def poison_all(gateway: Served, **fault: object) -> None:
    for name in gateway.engines:
        await gateway.fault(name, kind="die", count=1, **fault)


async def forget(gateway: Served, names: set[str]) -> None:
    for name in names:
        await gateway.client.delete(gateway.engines[name].url + "/emulated/faults")


@pytest.mark.parametrize("after_tokens", [0, 1])
async def test_a_request_that_ends_engines_ends_two_and_is_refused_then(
    serve: Serve, after_tokens: int
) -> None:
    """Whoever sends it again: the client itself, or the gateway; before the first token, or after it."""
    async with serve(prefill=[], decode=decoders()) as gateway:
        await poison_all(gateway, after_tokens=after_tokens)
        answers = [await ask(gateway, POISON, **{"x-session-id": f"s{n}"}) for n in range(4)]
        last = answers[-1]
        assert (last.status_code, last.json()["error"]["code"]) == (400, "deadly_request")
        assert last.headers["x-should-retry"] == "false"
        await gateway.eventually(lambda: _are(gateway, 3))
        assert await gateway.metric('conserve_refused_total{reason="deadly_request"}') >= 1
        await forget(gateway, await up(gateway))
        assert (await ask(gateway, "another prompt")).status_code == 200


async def _are(gateway: Served, count: int) -> bool:
    return len(await up(gateway)) == count


async def test_prefillers_and_decoders_count_together(serve: Serve) -> None:
    prefill = [engine_config(Role.PREFILL, f"prefill-{n}") for n in range(3)]
    async with serve(prefill=prefill, decode=decoders(3)) as gateway:
        await poison_all(gateway)
        answer = await ask(gateway, POISON)
        assert answer.json()["error"]["code"] == "deadly_request"
        await gateway.eventually(lambda: _are(gateway, 4))


async def test_an_engine_that_only_broke_its_connections_was_not_ended(serve: Serve) -> None:
    """It is the process that it was: the turn goes on within its budget, and nothing is remembered."""
    async with serve(prefill=[], decode=decoders(4), max_placements=4) as gateway:
        for name in DECODERS[:4]:
            await gateway.fault(name, kind="reset", count=1)
        answers = [await ask(gateway, POISON, **{"x-session-id": f"s{n}"}) for n in range(3)]
        assert "deadly_request" not in [a.json().get("error", {}).get("code") for a in answers]
        assert answers[-1].status_code == 200


async def test_turns_that_lost_their_engine_by_chance_are_all_served(serve: Serve) -> None:
    """Many die with it; none is taken for the cause, and each gets its answer from another."""
    slow = EmulatedTiming(decode_s=0.05)
    async with serve(prefill=[], decode=decoders(3, timing=slow)) as gateway:
        asking = [asyncio.create_task(ask(gateway, f"{n}: by chance")) for n in range(24)]
        await asyncio.sleep(0.05)
        gateway.engines["decode-0"].kill()
        answers = await asyncio.gather(*asking)
        assert [answer.status_code for answer in answers] == [200] * 24


async def test_a_suspects_leg_begins_when_it_has_its_engine_to_itself(serve: Serve) -> None:
    """Before that it is nobody's time and nobody's joules."""
    prompt = "a prompt of some length " * 20
    slow = EmulatedTiming(prefill_s_per_token=0.005)
    async with serve(prefill=[], decode=decoders(2, timing=slow)) as gateway:
        asking = [asyncio.create_task(ask(gateway, f"{n}: {prompt}")) for n in range(4)]
        await asyncio.sleep(0.2)
        gateway.engines["decode-0"].kill()
        answers = await asyncio.gather(*asking)
        assert [answer.headers.get("x-conserve-placements") for answer in answers].count("2") == 2
        legs = [span for span in gateway.spans if span.name == names.SPAN_DECODE]
        begins = sorted(
            span.start_time or 0 for span in legs if (span.attributes or {})[names.DECODER] == "decode-1"
        )
        shortest_s = 0.005 * 80
        assert (begins[3] - begins[2]) / 1e9 >= shortest_s


async def test_a_suspect_that_was_served_is_none_any_more(serve: Serve) -> None:
    """The same request loses its engine twice, by chance, and is served both times."""
    async with serve(prefill=[], decode=decoders(4)) as gateway:
        for session in ("a", "b"):
            headers = {"x-session-id": session}
            bound = (await ask(gateway, POISON, **headers)).headers["x-conserve-decoder"]
            await gateway.fault(bound, kind="die", count=1)
            again = await ask(gateway, POISON, **headers)
            assert again.status_code == 200
            assert again.headers["x-conserve-placements"] == "2"


async def test_tries_have_a_budget_for_the_whole_gateway(serve: Serve) -> None:
    async with serve(prefill=[], decode=decoders(2), retry_share=0.0, max_placements=2) as gateway:
        codes = []
        for name in ("decode-0", "decode-1"):
            await gateway.fault(name, kind="status", status=500, count=1000)
        for n in range(int(BURST) + 3):
            answer = await ask(gateway, f"{n}")
            codes.append(answer.json()["error"]["code"])
            if codes[-1] == "retry_budget_spent":
                break
        assert codes[-1] == "retry_budget_spent"
        assert answer.status_code == 503
        assert "retry-after" in answer.headers


async def test_what_ended_engines_is_forgotten_after_its_time() -> None:
    async def survived(_engine: str, _generation: str | None) -> bool:
        return False

    def turn() -> LiveTurn:
        request = SimpleNamespace(body=POISON.encode())
        fields: dict[str, Any] = {"request": request, "losses": (), "failures": 0, "first_output_s": None}
        fields |= {"is_passed_on": False, "is_lost_by": lambda _error: True}
        return cast(LiveTurn, SimpleNamespace(**fields))

    clock, metrics = VirtualClock(), GatewayMetrics()
    cluster = cast(
        Cluster, SimpleNamespace(statuses={}, doubt_role_of=lambda _engine: None, survived=survived)
    )
    retries = Retries(cluster, clock, metrics, max_failures=5, share=1.0, max_wait_s=1.0)
    first = turn()
    await retries.failed(first, EngineFailed("gone", code="engine_lost", engine="decode-0"), "decode")
    with pytest.raises(DeadlyRequest):
        await retries.failed(first, EngineFailed("gone", code="engine_lost", engine="decode-1"), "decode")
    await clock.advance(REMEMBERED_S - 1)
    with pytest.raises(DeadlyRequest):
        retries.check(turn())
    await clock.advance(1)
    again = turn()
    retries.check(again)
    assert again.losses == ()
