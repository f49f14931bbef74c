"""KV goes from one engine to another once, and never by mistake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from conserve_server.engines.emulated import EmulatedConfig, EmulatedTiming
from conserve_server.engines.engine import Role

Engines = Callable[..., AbstractAsyncContextManager[Any]]
PREFILL = EmulatedConfig(host="p", role=Role.PREFILL)
DECODE = EmulatedConfig(host="d")
FIRST_LEG = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None}
TEXT = " word" * 200
FAILED = {
    "error": {"message": "Internal server error", "type": "InternalServerError", "param": None, "code": 500}
}


async def _prefill(bench: Any, **fields: Any) -> dict[str, Any]:
    leg = await bench.chat("p", TEXT, max_tokens=1, kv_transfer_params=FIRST_LEG, **fields)
    assert leg.status_code == 200
    params: dict[str, Any] = leg.json()["kv_transfer_params"]
    return params


async def _assert_refused(bench: Any, params: dict[str, Any], text: str = TEXT) -> None:
    answer = await bench.chat("d", text, kv_transfer_params=params)
    assert (answer.status_code, answer.json()) == (500, FAILED)
    metrics = await bench.metrics("d")
    assert metrics["vllm:nixl_num_failed_transfers_total"] == 1
    assert metrics["vllm:nixl_xfer_time_seconds_count"] == 0
    assert metrics["vllm:kv_cache_usage_perc"] == 0


async def test_the_first_leg_returns_the_connectors_parameters_and_holds_the_blocks(engines: Engines) -> None:
    async with engines(PREFILL) as bench:
        params = await _prefill(bench)
        usage = (await bench.metrics("p"))["vllm:kv_cache_usage_perc"]
    assert params["do_remote_prefill"] is True
    assert params["do_remote_decode"] is False
    assert (params["remote_host"], params["remote_port"], params["transfer_mode"]) == ("p", 80, "pull")
    assert params["remote_num_tokens"] == 203
    assert len(params["remote_block_ids"][0]) == 7
    assert usage == pytest.approx(7 / PREFILL.kv_blocks)


async def test_the_second_leg_pulls_the_prompt_once_and_frees_the_lease(engines: Engines) -> None:
    async with engines(PREFILL, DECODE) as bench:
        params = await _prefill(bench)
        answer = await bench.chat("d", TEXT, kv_transfer_params=params)
        decode, prefill = await bench.metrics("d"), await bench.metrics("p")
        alone = await bench.chat("p", TEXT)
    assert answer.status_code == 200
    assert answer.json()["choices"] == alone.json()["choices"]
    assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert decode["vllm:nixl_xfer_time_seconds_count"] == 1
    assert decode["vllm:nixl_bytes_transferred_sum"] == 202 * DECODE.kv_bytes_per_token
    assert decode["vllm:external_prefix_cache_hits_total"] == 202
    assert prefill["vllm:kv_cache_usage_perc"] == 0


async def test_a_pull_leaves_out_what_the_decoder_has_already(engines: Engines) -> None:
    async with engines(PREFILL, DECODE) as bench:
        await bench.chat("d", TEXT)
        await bench.chat("d", TEXT, kv_transfer_params=await _prefill(bench))
        metrics = await bench.metrics("d")
    assert metrics["vllm:external_prefix_cache_hits_total"] == 202 - 192


async def test_a_second_pull_of_the_same_kv_fails(engines: Engines) -> None:
    async with engines(PREFILL, DECODE, EmulatedConfig(host="d2")) as bench:
        params = await _prefill(bench)
        assert (await bench.chat("d2", TEXT, kv_transfer_params=params)).status_code == 200
        await _assert_refused(bench, params)


async def test_a_restarted_prefill_engine_is_not_the_one_that_holds_the_kv(engines: Engines) -> None:
    async with engines(PREFILL, DECODE) as bench:
        params = await _prefill(bench)
        await bench.start(PREFILL)
        await _assert_refused(bench, params)


async def test_an_unreachable_prefill_engine_fails_the_request(engines: Engines) -> None:
    async with engines(PREFILL, DECODE) as bench:
        params = await _prefill(bench)
        bench.unplug("p")
        await _assert_refused(bench, params)


async def test_an_expired_lease_frees_its_blocks_and_fails_the_pull(engines: Engines) -> None:
    async with engines(PREFILL, DECODE) as bench:
        params = await _prefill(bench)
        await bench.clock.advance(PREFILL.lease_s + 0.001)
        metrics = await bench.metrics("p")
        assert metrics["vllm:kv_cache_usage_perc"] == 0
        assert metrics["vllm:nixl_num_kv_expired_reqs_total"] == 1
        await _assert_refused(bench, params)


async def test_kv_of_another_prompt_is_refused(engines: Engines) -> None:
    async with engines(PREFILL, DECODE) as bench:
        params = await _prefill(bench)
        await _assert_refused(bench, params, text=TEXT + "more")
        assert (await bench.metrics("p"))["vllm:kv_cache_usage_perc"] == 0


@pytest.mark.parametrize("missing", ["remote_host", "remote_port", "remote_engine_id", "remote_request_id"])
async def test_parameters_without_an_address_fail_the_request(engines: Engines, missing: str) -> None:
    async with engines(PREFILL, DECODE) as bench:
        params = await _prefill(bench)
        del params[missing]
        await _assert_refused(bench, params)


async def test_a_failed_load_opens_a_stream_and_ends_it_with_an_error_event(engines: Engines) -> None:
    async with engines(PREFILL, DECODE) as bench:
        params = await _prefill(bench) | {"remote_engine_id": "another"}
        answer = await bench.chat("d", TEXT, stream=True, kv_transfer_params=params)
    opening, error, done, _ = answer.text.split("\n\n")
    assert answer.status_code == 200
    assert '"role":"assistant"' in opening
    assert error.startswith('data: {"error":{"message":"Internal server error"')
    assert done == "data: [DONE]"


async def test_by_the_recompute_policy_a_failed_load_is_prefilled_here(engines: Engines) -> None:
    recompute = EmulatedConfig(host="d", kv_load_failure_policy="recompute")
    async with engines(PREFILL, recompute) as bench:
        params = await _prefill(bench) | {"remote_engine_id": "another"}
        answer = await bench.chat("d", TEXT, kv_transfer_params=params)
        metrics = await bench.metrics("d")
    assert answer.status_code == 200
    assert metrics["vllm:nixl_num_failed_transfers_total"] == 1
    assert metrics["vllm:external_prefix_cache_hits_total"] == 0


async def test_a_decode_leg_that_waits_for_room_keeps_its_lease_alive(engines: Engines) -> None:
    prefill = EmulatedConfig(host="p", lease_s=2.0)
    decode = EmulatedConfig(host="d", lease_s=2.0, kv_blocks=20, timing=EmulatedTiming(decode_s=0.01))
    async with engines(prefill, decode) as bench:
        blocking = {"prompt": [1], "max_tokens": 600, "ignore_eos": True}
        full = asyncio.ensure_future(bench.client.post("http://d/v1/completions", json=blocking))
        params = await _prefill(bench)
        began_s = bench.clock.now_s()
        answer = await bench.chat("d", TEXT, kv_transfer_params=params)
        await full
        waited_s = bench.clock.now_s() - began_s
    assert answer.status_code == 200
    assert waited_s > 2 * prefill.lease_s


async def test_a_refused_decode_leg_gives_the_kv_up(engines: Engines) -> None:
    async with engines(PREFILL, DECODE) as bench:
        params = await _prefill(bench)
        answer = await bench.chat("d", TEXT, model="another", kv_transfer_params=params)
        await bench.clock.advance(0.1)
        usage = (await bench.metrics("p"))["vllm:kv_cache_usage_perc"]
    assert (answer.status_code, usage) == (404, 0)


async def test_the_prefillers_cached_tokens_are_what_the_decode_leg_reports(engines: Engines) -> None:
    async with engines(PREFILL, DECODE) as bench:
        await bench.chat("p", TEXT)
        answer = await bench.chat("d", TEXT, kv_transfer_params=await _prefill(bench))
    assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 192
