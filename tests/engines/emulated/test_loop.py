"""Requests queue in order, share the cache, and leave nothing behind when they go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from conserve_server.engines.emulated import EmulatedConfig

Engines = Callable[..., AbstractAsyncContextManager[Any]]
BLOCK = 32


def _cached(answer: Any) -> int:
    tokens: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


async def test_the_second_turn_finds_all_but_a_block_of_the_first(engines: Engines) -> None:
    async with engines(EmulatedConfig(host="e")) as bench:
        messages = [{"role": "system", "content": "be brief " * 50}, {"role": "user", "content": "hello"}]
        first = (await bench.chat("e", messages=messages)).json()
        messages += [first["choices"][0]["message"], {"role": "user", "content": "and then?"}]
        second = await bench.chat("e", messages=messages)
    assert _cached(second) > first["usage"]["total_tokens"] - BLOCK


async def test_the_last_prompt_token_is_always_computed(engines: Engines) -> None:
    async with engines(EmulatedConfig(host="e")) as bench:
        prompt = list(range(2 * BLOCK))
        await bench.complete("e", prompt)
        assert _cached(await bench.complete("e", prompt)) == BLOCK


async def test_what_was_used_longest_ago_is_evicted(engines: Engines) -> None:
    async with engines(EmulatedConfig(host="e", kv_blocks=10)) as bench:
        first, second, third = ([start] * 4 * BLOCK for start in (1, 2, 3))
        for prompt in (first, second, third):
            await bench.complete("e", prompt, max_tokens=1)
        assert _cached(await bench.complete("e", third, max_tokens=1)) == 3 * BLOCK
        assert _cached(await bench.complete("e", first, max_tokens=1)) < 3 * BLOCK


async def test_a_request_without_room_waits_for_its_turn(engines: Engines) -> None:
    async with engines(EmulatedConfig(host="e", kv_blocks=4)) as bench:
        post = bench.client.post
        bodies = [{"prompt": [each] * 3 * BLOCK, "max_tokens": 20} for each in (1, 2, 3)]
        tasks = [asyncio.ensure_future(post("http://e/v1/completions", json=body)) for body in bodies]
        await bench.clock.advance(0.02)
        metrics = await bench.metrics("e")
        answers = [await bench.run(_result(task)) for task in tasks]
    queued_ms = [answer.json()["metrics"]["queue_time_ms"] for answer in answers]
    assert (metrics["vllm:num_requests_running"], metrics["vllm:num_requests_waiting"]) == (1, 2)
    assert metrics["vllm:kv_cache_usage_perc"] == 1
    assert queued_ms == sorted(queued_ms)
    assert queued_ms[1] > 100


async def _result(task: asyncio.Task[Any]) -> Any:
    return await task


async def test_a_prompt_that_the_cache_can_never_hold_is_refused(engines: Engines) -> None:
    async with engines(EmulatedConfig(host="e", kv_blocks=4)) as bench:
        answer = await bench.complete("e", [1] * 129)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (400, "BadRequestError", 400)
    assert error["message"].startswith(
        "This model's maximum context length is 128 tokens. However, your prompt"
    )


class _Client:
    """A client on the ASGI side that can hang up."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(b"content-type", b"application/json")],
            "query_string": b"",
        }
        self._body = json.dumps({"model": "emulated", **body}).encode()
        self._is_read = False
        self._hung_up = asyncio.Event()
        self.received: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": self._body}
        await self._hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.received.append(message)

    def hang_up(self) -> None:
        self._hung_up.set()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("after_s", [0.005, 0.2])
async def test_a_client_that_hangs_up_takes_its_request_out(
    engines: Engines, stream: bool, after_s: float
) -> None:
    async with engines(EmulatedConfig(host="e")) as bench:
        body = {"prompt": [1] * 4000, "max_tokens": 1000, "ignore_eos": True, "stream": stream}
        client = _Client("/v1/completions", body)
        answering = asyncio.ensure_future(bench.app("e")(client.scope, client.receive, client.send))
        await bench.clock.advance(after_s)
        assert (await bench.metrics("e"))["vllm:num_requests_running"] == 1
        client.hang_up()
        await answering
        metrics = await bench.metrics("e")
    assert metrics["vllm:num_requests_running"] == 0
    assert metrics["vllm:kv_cache_usage_perc"] == 0
    assert metrics["vllm:request_success_total"] == 1


async def test_a_waiting_request_that_is_dropped_lets_the_next_one_in(engines: Engines) -> None:
    async with engines(EmulatedConfig(host="e", kv_blocks=4)) as bench:
        running = _Client("/v1/completions", {"prompt": [1] * 40, "max_tokens": 20})
        waiting = _Client("/v1/completions", {"prompt": [2] * 100, "max_tokens": 20})
        tasks = [
            asyncio.ensure_future(bench.app("e")(each.scope, each.receive, each.send))
            for each in (running, waiting)
        ]
        await bench.clock.advance(0.01)
        waiting.hang_up()
        await tasks[1]
        assert (await bench.metrics("e"))["vllm:num_requests_waiting"] == 0
        await bench.run(_result(tasks[0]))
        assert (await bench.complete("e", [3] * 100)).status_code == 200


async def test_a_prefill_leg_that_is_dropped_holds_no_lease(engines: Engines) -> None:
    async with engines(EmulatedConfig(host="e")) as bench:
        body = {"prompt": [1] * 4000, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
        client = _Client("/v1/completions", body)
        answering = asyncio.ensure_future(bench.app("e")(client.scope, client.receive, client.send))
        await bench.clock.advance(0.01)
        client.hang_up()
        await answering
        assert (await bench.metrics("e"))["vllm:kv_cache_usage_perc"] == 0
