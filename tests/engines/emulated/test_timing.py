"""Modelled time: its parts add up, and the engine takes it on its clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from conserve_server.core.errors import ConfigError
from conserve_server.engines.emulated import EmulatedConfig, EmulatedTiming

Engines = Callable[..., AbstractAsyncContextManager[Any]]
SIMPLE = EmulatedTiming(
    prefill_s_per_token=0.001,
    decode_s=0.1,
    decode_s_per_context_token=0.0,
    step_overhead_s=0.0,
    sequence_overhead_s=0.0,
    transfer_base_s=1.0,
    transfer_s_per_token=0.0,
)


def test_a_step_is_its_overhead_its_prompts_and_its_decodes() -> None:
    timing = EmulatedTiming(1.0, 10.0, 0.5, 100.0, 1000.0)
    assert timing.step_s(sequences=2, prefill_tokens=3, batch=1, context_tokens=4) == 100 + 2000 + 3 + 10 + 2
    assert timing.step_s(sequences=0, prefill_tokens=0, batch=0, context_tokens=0) == 100


def test_speed_divides_every_time() -> None:
    timing = EmulatedTiming()
    assert timing.faster(4).transfer_s(100) == pytest.approx(timing.transfer_s(100) / 4)
    with pytest.raises(ConfigError, match="speed"):
        timing.faster(0)


async def test_the_first_token_comes_after_the_prompt_and_the_others_a_step_apart(engines: Engines) -> None:
    async with engines(EmulatedConfig(host="e", timing=SIMPLE)) as bench:
        answer = (await bench.complete("e", list(range(500)), max_tokens=11)).json()
    metrics = answer["metrics"]
    assert metrics["time_to_first_token_ms"] == pytest.approx(500)
    assert metrics["generation_time_ms"] == pytest.approx(1000)
    assert metrics["mean_itl_ms"] == pytest.approx(100)
    assert metrics["queue_time_ms"] == pytest.approx(0)
    assert metrics["tokens_per_second"] == pytest.approx(11 / 1.5)


async def test_a_long_prompt_is_prefilled_in_chunks_while_others_decode(engines: Engines) -> None:
    config = EmulatedConfig(host="e", timing=SIMPLE, max_num_batched_tokens=101)
    async with engines(config) as bench:

        async def both() -> tuple[Any, Any]:
            post = bench.client.post
            url = "http://e/v1/completions"
            short = {"prompt": [1], "max_tokens": 30, "ignore_eos": True}
            long = {"prompt": list(range(1000)), "max_tokens": 1}
            return await asyncio.gather(post(url, json=short), post(url, json=long))

        short, long = (response.json()["metrics"] for response in await bench.run(both()))
    assert long["time_to_first_token_ms"] == pytest.approx(10 * (100 + 100), rel=0.1)
    assert short["mean_itl_ms"] < 250


async def test_a_pull_takes_the_transfer_time_before_the_request_is_scheduled(engines: Engines) -> None:
    configs = [EmulatedConfig(host=host, timing=SIMPLE) for host in ("p", "d")]
    async with engines(*configs) as bench:
        leg = await bench.complete(
            "p", list(range(100)), max_tokens=1, kv_transfer_params={"do_remote_decode": True}
        )
        params = leg.json()["kv_transfer_params"]
        answer = await bench.complete("d", list(range(100)), max_tokens=4, kv_transfer_params=params)
    metrics = answer.json()["metrics"]
    assert 1000 <= metrics["queue_time_ms"] <= 1100
    assert metrics["time_to_first_token_ms"] == pytest.approx(1)
