"""The metrics parse, under the names that vLLM gives them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from conserve_server.engines.emulated import EmulatedConfig

Engines = Callable[..., AbstractAsyncContextManager[Any]]
NAMES = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:external_prefix_cache_queries_total",
    "vllm:external_prefix_cache_hits_total",
    "vllm:nixl_xfer_time_seconds_count",
    "vllm:nixl_xfer_time_seconds_sum",
    "vllm:nixl_bytes_transferred_count",
    "vllm:nixl_bytes_transferred_sum",
    "vllm:prompt_tokens_total",
    "vllm:prompt_tokens_by_source_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "process_start_time_seconds",
    "conserve_emulated",
}


async def test_every_name_is_there_from_the_start(engines: Engines) -> None:
    async with engines(EmulatedConfig(host="e", kv_blocks=7, block_size=16)) as bench:
        text = (await bench.client.get("http://e/metrics")).text
    samples = {
        sample.name: sample for family in text_string_to_metric_families(text) for sample in family.samples
    }
    assert set(samples) >= NAMES - {"vllm:prompt_tokens_by_source_total"}
    config = samples["vllm:cache_config_info"].labels
    assert (config["num_gpu_blocks"], config["block_size"]) == ("7", "16")
    assert samples["conserve_emulated"].value == 1


async def test_tokens_and_ends_are_counted(engines: Engines) -> None:
    async with engines(EmulatedConfig(host="e")) as bench:
        for _ in range(2):
            await bench.complete("e", [1] * 100, max_tokens=5)
        metrics = await bench.metrics("e")
    assert metrics["vllm:prompt_tokens_total"] == 200
    assert metrics["vllm:prompt_tokens_cached_total"] == metrics["vllm:prefix_cache_hits_total"] == 96
    assert metrics["vllm:generation_tokens_total"] == 10
    assert metrics["vllm:request_success_total"] == 2


async def test_a_restart_shows_in_the_start_time(engines: Engines) -> None:
    async with engines(EmulatedConfig(host="e")) as bench:
        before = (await bench.metrics("e"))["process_start_time_seconds"]
        await bench.start(EmulatedConfig(host="e"))
        assert (await bench.metrics("e"))["process_start_time_seconds"] > before
