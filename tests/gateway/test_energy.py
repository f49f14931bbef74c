"""Energy through a real gateway over emulated engines: modelled joules, in every place that tells them."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from conserve_sdk.protocol import ConversationReport
from conserve_server.energy.modelled import H100
from conserve_server.telemetry import names
from tests.gateway.conftest import Serve, Served

MODELLED = {"meter": "modelled", "window_s": 0.05}


async def settled(gateway: Served, conversation: str) -> ConversationReport:
    """The report once every turn's joules are final."""
    found: list[ConversationReport] = []

    async def is_settled() -> bool:
        found.append(ConversationReport.from_json(await gateway.report(conversation)))
        return not any(turn.energy.pending for turn in found[-1].turns)

    await gateway.eventually(is_settled)
    return found[-1]


async def health(gateway: Served) -> dict[str, Any]:
    document: dict[str, Any] = (await gateway.client.get("/health")).json()["energy"]
    return document


async def test_a_report_tells_each_turns_joules_by_what_they_were_for(serve: Serve) -> None:
    async with serve(energy=MODELLED) as gateway:
        await gateway.ask("a", "hello " * 200, max_tokens=20, stream=True)
        await gateway.ask("a", "and again", max_tokens=20, stream=True)
        report = await settled(gateway, "a")
    first, second = (turn.energy for turn in report.turns)
    assert first.source == second.source == report.energy.source == "modelled"
    assert min(first.prefill_j or 0, first.transfer_j or 0, first.decode_j or 0, first.idle_j or 0) > 0
    assert second.transfer_j == 0
    parts = (first.prefill_j, first.transfer_j, first.decode_j, first.idle_j)
    assert first.total_j == pytest.approx(math.fsum(part or 0 for part in parts))
    assert first.gap_j is None
    turns_j = (first.total_j or 0) + (second.total_j or 0)
    assert report.energy.total_j == pytest.approx(turns_j + (report.energy.gap_j or 0))
    tokens = sum(turn.completion_tokens or 0 for turn in report.turns)
    assert report.energy.j_per_output_token == pytest.approx((report.energy.total_j or 0) / tokens)
    assert "J (modelled" in str(report)


async def test_a_tool_gap_is_charged_to_the_conversation_until_its_release(serve: Serve) -> None:
    async with serve(energy=MODELLED) as gateway:
        await gateway.ask("a", "hello")
        before = (await settled(gateway, "a")).energy
        await asyncio.sleep(0.3)
        during = ConversationReport.from_json(await gateway.report("a")).energy
        await gateway.client.delete("/v1/conversations/a")
        await asyncio.sleep(0.1)
        after = ConversationReport.from_json(await gateway.report("a")).energy
        await asyncio.sleep(0.2)
        last = ConversationReport.from_json(await gateway.report("a")).energy
    gained_j = (during.gap_j or 0) - (before.gap_j or 0)
    assert 0.1 * H100.idle_w < gained_j < 5 * H100.idle_w
    assert (during.pending, after.pending) == (True, False)
    assert last == after


async def test_what_was_charged_and_left_adds_up_to_what_was_metered(serve: Serve) -> None:
    async with serve(energy=MODELLED) as gateway:
        await asyncio.gather(*(gateway.ask(str(i), "hello " * 50, stream=True) for i in range(8)))
        for i in range(8):
            await settled(gateway, str(i))
        domains = (await health(gateway))["domains"]
        totals = (await gateway.client.get("/v1/energy")).json()
    for domain in domains:
        placed_j = domain["charged_j"] + domain["unallocated_idle_j"] + domain["unallocated_dynamic_j"]
        assert placed_j == pytest.approx(domain["metered_j"], rel=1e-9)
        assert domain["worst_residual_j"] < 1e-9
        assert domain["dropped_intervals"] == 0
    charged_j = sum(domain["charged_j"] for domain in domains)
    assert charged_j > 0
    assert totals["total_j"] >= charged_j * (1 - 1e-9)
    assert {pool["name"] for pool in totals["pools"]} == {"prefill", "decode"}
    assert [tenant["name"] for tenant in totals["tenants"]] == ["default"]
    (pool,) = [pool for pool in totals["pools"] if pool["name"] == "decode"]
    assert pool["output_tokens"] == totals["output_tokens"] == 8 * 8
    assert totals["j_per_output_token"] == pytest.approx(totals["total_j"] / 64)
    assert sum(model["total_j"] for model in totals["models"]) == pytest.approx(totals["total_j"])


async def test_a_cancelled_stream_is_charged_for_its_time(serve: Serve) -> None:
    async with serve(energy=MODELLED) as gateway:
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 4000,
            "stream": True,
        }
        headers = {"x-conserve-conversation-id": "a"}
        async with gateway.client.stream(
            "POST", "/v1/chat/completions", json=body, headers=headers
        ) as response:
            async for _ in response.aiter_bytes():
                break
        report = await settled(gateway, "a")
    (turn,) = report.turns
    assert turn.outcome == "cancelled"
    assert (turn.energy.total_j or 0) > 0


async def test_the_receipt_tells_what_the_conversation_was_charged_so_far(serve: Serve) -> None:
    async with serve(energy=MODELLED) as gateway:
        first = await gateway.ask("a", "hello")
        await settled(gateway, "a")
        second = await gateway.ask("a", "again")
    assert first.status_code == 200
    assert float(second.headers["x-conserve-energy-j"]) > 0
    assert second.headers["x-conserve-energy-source"] == "modelled"


async def test_a_turns_joules_get_a_span_once_they_are_known(serve: Serve) -> None:
    async with serve(energy=MODELLED) as gateway:
        await gateway.ask("a", "hello", stream=True)
        await settled(gateway, "a")
        turn, energy = (
            next(span for span in gateway.spans if span.name == name)
            for name in (names.SPAN_TURN, names.SPAN_ENERGY)
        )
    assert energy.parent is not None
    assert turn.context is not None
    assert energy.parent.span_id == turn.context.span_id
    attributes = dict(energy.attributes or {})
    assert attributes[names.ENERGY_SOURCE] == "modelled"
    assert attributes[names.CONVERSATION_ID] == "a"
    assert isinstance(attributes[names.ENERGY_J], float)


async def test_metrics_name_devices_and_pools_and_no_conversation(serve: Serve) -> None:
    async with serve(energy=MODELLED) as gateway:
        await gateway.ask("secret-conversation", "hello", stream=True)
        await settled(gateway, "secret-conversation")
        page = (await gateway.client.get("/metrics")).text
    metered = 'hw_energy_joules_total{hw_id="decode-0",hw_name="h100",hw_type="gpu",source="modelled"}'
    assert metered in page
    phases = [row for row in page.splitlines() if row.startswith("conserve_energy_joules_total{")]
    assert any('phase="decode",pool="decode"' in row for row in phases)
    assert "secret-conversation" not in page


async def test_health_says_how_each_engine_is_known(serve: Serve) -> None:
    async with serve(energy={**MODELLED, "gpu": "a100", "power_cap_w": 250}) as gateway:
        found = await health(gateway)
    assert found["reason"] is None
    domain = found["domains"][0]
    assert (domain["engines"], domain["source"]) == (["prefill-0"], "modelled")
    assert domain["devices"][0]["power_limit_w"] == 250


async def test_without_a_meter_joules_are_absent_and_the_reason_is_told(serve: Serve) -> None:
    async with serve() as gateway:
        response = await gateway.ask("a", "hello")
        report = ConversationReport.from_json(await gateway.report("a"))
        found = await health(gateway)
    assert report.energy.total_j is None
    assert report.energy.reason == "not measured: no energy meter is configured"
    assert report.turns[0].energy.reason == "not measured: no energy meter is configured"
    assert found["reason"] == "no energy meter is configured"
    assert "x-conserve-energy-j" not in response.headers


async def test_carbon_and_cost_are_told_where_their_factors_are_known(serve: Serve) -> None:
    factors = {"carbon_g_per_kwh": 3.6e6, "price_per_kwh": 3.6e6, "currency": "EUR"}
    async with serve(energy={**MODELLED, **factors}) as gateway:
        await gateway.ask("a", "hello", stream=True)
        energy = (await settled(gateway, "a")).turns[0].energy
    assert energy.carbon_g == pytest.approx(energy.total_j)
    assert (energy.cost, energy.currency) == (energy.carbon_g, "EUR")
