"""Engines that fail: before the first byte the client sees nothing of it, after it an error to act on."""

from __future__ import annotations

import asyncio
import json

import httpx2
import pytest

from conserve_sdk.protocol import Outcome
from conserve_server.engines.emulated import EmulatedConfig, EmulatedEngineServer, Fault
from conserve_server.engines.engine import Role

from .conftest import Serve, Served, engine_config, serve_again

TEXT = "the harbour lies to the south of the lighthouse " * 8
NEVER_S = 60.0
"""A pause between two looks at an engine in which a test is over: what happens is not their doing."""

TWICE = 2
"""A connection that breaks before an answer may have been closed while idle: engines are asked once more."""


def decoders(*faults: Fault) -> list[EmulatedConfig]:
    """Two decoders, of which the first, where first turns go, has these faults."""
    return [engine_config(Role.DECODE, "decode-0", faults=faults), engine_config(Role.DECODE, "decode-1")]


def turn_of(report: dict[str, object], index: int = -1) -> dict[str, object]:
    turns = report["turns"]
    assert isinstance(turns, list)
    found: dict[str, object] = turns[index]
    return found


def text_of(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


async def test_a_decoder_that_is_gone_is_replaced_before_its_client_notices(serve: Serve) -> None:
    async with serve(probe_interval_s=NEVER_S) as gateway:
        before = await gateway.ask("a", TEXT)
        gateway.engines["decode-0"].kill()
        after = await gateway.ask("a", TEXT)
        assert text_of(after) == text_of(before)
        assert after.headers["x-conserve-decoder"] == "decode-1"
        assert after.headers["x-conserve-path"] == "remote-prefill"
        assert after.headers["x-conserve-rebind"] == "engine-lost"
        assert after.headers["x-conserve-placements"] == "2"
        report = await gateway.report("a")
        assert (report["rebinds"], report["decoders"]) == (["engine-lost"], ["decode-0", "decode-1"])
        assert turn_of(report)["rebind"] == "engine-lost"


async def test_a_leg_that_breaks_has_its_engine_looked_at_at_once(serve: Serve) -> None:
    async with serve(probe_interval_s=NEVER_S) as gateway:
        await gateway.ask("a", TEXT)
        gateway.engines["decode-0"].kill()
        await gateway.ask("a", TEXT)
        await gateway.eventually(lambda: _is_down(gateway, "decode-0"))


async def _is_down(gateway: Served, name: str) -> bool:
    return await gateway.metric(f'conserve_engine_up{{engine="{name}",role="decode"}}') == 0


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_connection_that_breaks_before_the_first_byte_is_not_the_clients_matter(
    serve: Serve, is_streamed: bool
) -> None:
    async with serve(decode=decoders(Fault("reset", count=TWICE))) as gateway:
        answer = await gateway.ask("a", TEXT, stream=is_streamed)
        assert answer.status_code == 200
        assert '"error"' not in answer.text
        assert answer.headers["x-conserve-decoder"] == "decode-1"
        assert "x-conserve-rebind" not in answer.headers  # it had no binding to lose
        assert turn_of(await gateway.report("a"))["placements"] == 2


async def test_one_broken_connection_leaves_the_other_conversations_bound(serve: Serve) -> None:
    async with serve(probe_interval_s=NEVER_S) as gateway:
        for name in ("a", "b", "c"):  # decode-0, decode-1, decode-0
            await gateway.ask(name, f"{name}: {TEXT}")
        await gateway.fault("decode-0", kind="reset", count=TWICE)
        moved = await gateway.ask("a", f"a: {TEXT}")
        stays = await gateway.ask("c", f"c: {TEXT}")
        assert (moved.headers["x-conserve-decoder"], moved.headers["x-conserve-rebind"]) == (
            "decode-1",
            "engine-lost",
        )
        assert (stays.headers["x-conserve-decoder"], stays.headers["x-conserve-path"]) == (
            "decode-0",
            "pinned",
        )


async def test_a_bound_turn_that_meets_one_error_stays_where_its_kv_is(serve: Serve) -> None:
    async with serve() as gateway:
        await gateway.ask("a", TEXT)
        await gateway.fault("decode-0", kind="status", status=500)
        answer = await gateway.ask("a", TEXT)
        assert (answer.status_code, answer.headers["x-conserve-decoder"]) == (200, "decode-0")
        assert int(answer.headers["x-conserve-cached-tokens"]) > 0
        assert (await gateway.report("a"))["rebinds"] == []


async def test_a_decoder_that_answers_a_turn_with_errors_loses_its_conversation(serve: Serve) -> None:
    async with serve() as gateway:
        await gateway.ask("a", TEXT)
        await gateway.fault("decode-0", kind="status", status=503, count=2)
        answer = await gateway.ask("a", TEXT)
        assert answer.headers["x-conserve-decoder"] == "decode-1"
        assert answer.headers["x-conserve-rebind"] == "engine-failed"


async def test_a_turn_that_nobody_can_serve_is_given_up_after_so_many_placements(serve: Serve) -> None:
    async with serve(max_placements=2) as gateway:
        for name in ("decode-0", "decode-1"):
            await gateway.fault(name, kind="status", status=500, count=9)
        answer = await gateway.ask("a", TEXT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_error")
        assert turn_of(await gateway.report("a"))["placements"] == 2
        assert (await gateway.report("a"))["reserved_kv_tokens"] == 0


async def test_a_stream_whose_decoder_is_silent_is_placed_again(serve: Serve) -> None:
    async with serve(decode=decoders(Fault("hang", delay_s=NEVER_S)), turn_timeout_s=1.5) as gateway:
        answer = await gateway.ask("a", TEXT, stream=True)
        assert answer.text.endswith("data: [DONE]\n\n")
        assert answer.headers["x-conserve-decoder"] == "decode-1"


async def test_a_decoder_lost_in_mid_stream_is_an_error_event_and_the_next_turn_is_placed_anew(
    serve: Serve,
) -> None:
    async with serve(probe_interval_s=NEVER_S) as gateway:
        await gateway.ask("a", TEXT)
        await gateway.fault("decode-0", kind="reset", after_tokens=3)
        broken = await gateway.ask("a", TEXT, stream=True)
        last = [event for event in broken.text.split("\n\n") if event][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_lost"
        assert turn_of(await gateway.report("a"))["outcome"] == Outcome.FAILED
        following = await gateway.ask("a", TEXT)
        assert following.headers["x-conserve-rebind"] == "engine-lost"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_pull_that_fails_becomes_another_placement(serve: Serve, is_streamed: bool) -> None:
    broken = [engine_config(Role.PREFILL, "prefill-0", faults=(Fault("malformed_kv_params"),))]
    async with serve(prefill=broken) as gateway:
        answer = await gateway.ask("a", TEXT, stream=is_streamed)
        assert (answer.status_code, answer.headers["x-conserve-placements"]) == (200, "2")
        assert '"error"' not in answer.text
        assert (await gateway.report("a"))["kv_transfers"] == 1


async def test_a_prefiller_whose_parameters_never_work_is_left_aside(serve: Serve) -> None:
    broken = [engine_config(Role.PREFILL, "prefill-0", faults=(Fault("malformed_kv_params", count=99),))]
    async with serve(prefill=broken) as gateway:
        answer = await gateway.ask("a", TEXT)
        assert answer.headers["x-conserve-path"] == "local-prefill"
        assert answer.headers["x-conserve-placements"] == "3"


async def test_without_its_prefill_pool_the_system_serves_and_takes_it_back(serve: Serve) -> None:
    async with serve() as gateway:
        config = gateway.engines["prefill-0"].config
        await gateway.engines["prefill-0"].stop()
        first = await gateway.ask("a", TEXT)
        assert first.headers["x-conserve-path"] == "local-prefill"
        await gateway.stack.enter_async_context(EmulatedEngineServer(config))
        await gateway.eventually(lambda: _is_remote(gateway))


async def _is_remote(gateway: Served) -> bool:
    answer = await gateway.ask(None, TEXT)
    return answer.headers["x-conserve-path"] == "remote-prefill"


@pytest.mark.parametrize("kind", ["status", "reset", "hang"])
async def test_a_prefiller_that_fails_is_replaced_by_the_other(serve: Serve, kind: str) -> None:
    fault = Fault(kind, delay_s=NEVER_S, count=TWICE)  # type: ignore[arg-type]
    pool = [engine_config(Role.PREFILL, "prefill-0", faults=(fault,)), engine_config(Role.PREFILL, "p1")]
    async with serve(prefill=pool, turn_timeout_s=1.5) as gateway:
        answer = await gateway.ask("a", TEXT, stream=True)
        assert answer.headers["x-conserve-prefiller"] == "prefill-1"
        assert answer.text.endswith("data: [DONE]\n\n")


async def test_a_gateway_that_was_restarted_places_live_conversations_as_new(serve: Serve) -> None:
    async with serve() as gateway:
        before = await gateway.ask("a", TEXT)
        async with serve_again(gateway) as other:
            after = await other.ask("a", TEXT)
            assert text_of(after) == text_of(before)
            assert after.headers["x-conserve-turn"] == "1"
            assert after.headers["x-conserve-path"] == "remote-prefill"


async def test_a_full_system_serves_bound_conversations_and_sheds_new_ones(serve: Serve) -> None:
    small = [engine_config(Role.DECODE, "decode-0", kv_blocks=8)]
    async with serve(decode=small, max_wait_s=2.0) as gateway:
        await gateway.ask("a", TEXT * 2)
        new = [asyncio.create_task(gateway.ask(f"new-{i}", TEXT * 2)) for i in range(5)]
        await gateway.eventually(lambda: _waits(gateway))
        bound = await gateway.ask("a", TEXT * 2)
        assert (bound.status_code, bound.headers["x-conserve-path"]) == (200, "pinned")
        assert {answer.status_code for answer in await asyncio.gather(*new)} == {503}


async def test_beyond_so_many_that_wait_a_new_conversation_is_refused_at_once(serve: Serve) -> None:
    small = [engine_config(Role.DECODE, "decode-0", kv_blocks=8)]
    async with serve(decode=small, max_wait_s=3.0, max_waiting_turns=1) as gateway:
        await gateway.ask("a", TEXT * 2)
        waiting = asyncio.create_task(gateway.ask("b", TEXT * 2))
        await gateway.eventually(lambda: _waits(gateway))
        refused = await gateway.ask("c", TEXT * 2)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_waiting")
        assert (await gateway.ask("a", TEXT * 2)).status_code == 200
        assert (await waiting).json()["error"]["code"] == "no_kv_capacity"


async def _waits(gateway: Served) -> bool:
    return await gateway.metric("conserve_waiting_turns") > 0
