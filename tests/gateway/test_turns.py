"""The life of a turn, from a client's socket to the engines and back."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest

from conserve_sdk.protocol import Outcome
from conserve_server.engines.emulated import Fault
from conserve_server.engines.engine import Role

from .conftest import MODEL, Serve, Served, engine_config

NEVER_S = 60.0
"""A pause between two looks at an engine in which a test is over."""

TEXT = "the ferry sails fourteen times a day and carries two hundred passengers " * 8


def turns_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = report["turns"]
    return turns


async def converse(gateway: Served, conversation: str, turns: int) -> list[dict[str, Any]]:
    """A conversation of several turns, each with the history so far; the answers."""
    messages: list[dict[str, str]] = [{"role": "system", "content": f"{conversation}: {TEXT}"}]
    answers = []
    for number in range(turns):
        messages.append({"role": "user", "content": f"question {number}"})
        answer = (await gateway.chat(conversation, messages)).json()
        answers.append(answer)
        messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
    return answers


async def test_a_conversation_is_prefilled_once_elsewhere_moved_once_and_stays(gateway: Served) -> None:
    await converse(gateway, "a", 4)
    report = await gateway.report("a")
    paths = [turn["path"] for turn in turns_of(report)]
    assert paths == ["remote-prefill", "pinned", "pinned", "pinned"]
    assert (report["kv_transfers"], report["decoders"]) == (1, ["decode-0"])
    assert await gateway.engine_metric("decode-0", "vllm:nixl_xfer_time_seconds_count") == 1
    assert await gateway.engine_metric("prefill-0", "vllm:request_success_total") == 1


async def test_later_turns_find_their_history_in_the_decoders_cache(gateway: Served) -> None:
    await converse(gateway, "a", 3)
    turns = turns_of(await gateway.report("a"))
    for before, later in itertools.pairwise(turns):
        assert later["cached_tokens"] >= before["prompt_tokens"] - 32


async def test_conversations_spread_over_the_decoders(serve: Serve) -> None:
    # A look at a turn's very end would count its KV beside its reservation until the next look.
    async with serve(probe_interval_s=NEVER_S) as gateway:
        for name in ("a", "b", "c", "d"):
            await converse(gateway, name, 1)
        decoders = [(await gateway.report(name))["decoder"] for name in ("a", "b", "c", "d")]
    assert sorted(map(str, decoders)) == ["decode-0", "decode-0", "decode-1", "decode-1"]


async def test_the_receipt_says_where_the_turn_ran(gateway: Served) -> None:
    first = await gateway.ask("a", TEXT)
    second = await gateway.ask("a", TEXT)
    assert first.headers["x-conserve-path"] == "remote-prefill"
    assert first.headers["x-conserve-prefiller"] == "prefill-0"
    assert first.headers["x-conserve-decoder"] == second.headers["x-conserve-decoder"] == "decode-0"
    assert (second.headers["x-conserve-turn"], second.headers["x-conserve-path"]) == ("2", "pinned")
    assert int(second.headers["x-conserve-cached-tokens"]) > 0
    assert first.headers["x-conserve-emulated"] == "true"
    assert "x-conserve-prefiller" not in second.headers


async def test_a_stream_carries_no_usage_that_its_client_did_not_ask_for(gateway: Served) -> None:
    response = await gateway.ask("a", TEXT, stream=True)
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert all(json.loads(event)["choices"] for event in events[:-1])
    turn = turns_of(await gateway.report("a"))[0]
    assert turn["prompt_tokens"] > 0
    assert turn["completion_tokens"] == 8


async def test_a_stream_whose_client_asks_for_usage_gets_it(gateway: Served) -> None:
    response = await gateway.ask("a", TEXT, stream=True, stream_options={"include_usage": True})
    assert '"usage":' in response.text


async def test_completions_are_served_like_chats(gateway: Served) -> None:
    body = {"model": MODEL, "prompt": TEXT, "max_tokens": 4}
    headers = {"x-session-id": "c"}
    answer = await gateway.client.post("/v1/completions", json=body, headers=headers)
    assert answer.json()["object"] == "text_completion"
    assert answer.headers["x-conserve-path"] == "remote-prefill"


async def test_first_turns_that_race_share_one_decoder_and_one_transfer(gateway: Served) -> None:
    answers = await asyncio.gather(*(gateway.ask("a", TEXT + str(i)) for i in range(4)))
    assert {answer.headers["x-conserve-decoder"] for answer in answers} == {"decode-0"}
    assert (await gateway.report("a"))["kv_transfers"] == 1
    assert await gateway.engine_metric("prefill-0", "vllm:request_success_total") == 1


async def test_a_completion_without_an_identifier_is_a_conversation_of_one_turn(gateway: Served) -> None:
    body = {"model": MODEL, "prompt": TEXT, "max_tokens": 4}
    answer = await gateway.client.post("/v1/completions", json=body)
    report = await gateway.report(answer.headers["x-conserve-conversation-id"])
    assert (report["synthetic"], report["state"], report["reserved_kv_tokens"]) == (True, "ended", 0)


async def test_a_final_turn_ends_its_conversation(gateway: Served) -> None:
    headers = {"x-conserve-conversation-id": "a", "x-conserve-final": "true"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": TEXT}]}
    await gateway.client.post("/v1/chat/completions", json=body, headers=headers)
    report = await gateway.report("a")
    assert (report["state"], report["reserved_kv_tokens"]) == ("ended", 0)


async def test_a_client_that_hangs_up_in_the_decode_leg_frees_the_engine(serve: Serve) -> None:
    slow = [engine_config(Role.DECODE, "decode-0", faults=(Fault("slow", delay_s=0.05),))]
    async with serve(decode=slow) as gateway:
        request = {
            "model": MODEL,
            "messages": [{"role": "user", "content": TEXT}],
            "max_tokens": 500,
            "stream": True,
        }
        headers = {"x-conserve-conversation-id": "a"}
        async with gateway.client.stream(
            "POST", "/v1/chat/completions", json=request, headers=headers
        ) as stream:
            async for _ in stream.aiter_bytes():
                break
        await gateway.eventually(lambda: _is_idle(gateway, "decode-0"))
        await gateway.eventually(lambda: _has_ended(gateway, "a", Outcome.CANCELLED))


async def test_a_client_that_hangs_up_in_the_prefill_leg_leaves_nothing_behind(serve: Serve) -> None:
    hanging = [engine_config(Role.PREFILL, "prefill-0", faults=(Fault("hang", delay_s=60.0),))]
    async with serve(prefill=hanging) as gateway:
        asking = asyncio.create_task(gateway.ask("a", TEXT))
        await gateway.eventually(lambda: _reserves(gateway))
        asking.cancel()
        await gateway.eventually(lambda: _has_ended(gateway, "a", Outcome.CANCELLED))
        assert (await gateway.report("a"))["reserved_kv_tokens"] == 0
        assert await gateway.metric('conserve_conversations{state="prefilling"}') == 0


async def _reserves(gateway: Served) -> bool:
    return (
        sum([await gateway.metric(f'conserve_reserved_kv_tokens{{engine="decode-{i}"}}') for i in (0, 1)]) > 0
    )


async def _is_idle(gateway: Served, engine: str) -> bool:
    return await gateway.engine_metric(engine, "vllm:num_requests_running") == 0


async def _has_ended(gateway: Served, conversation: str, outcome: Outcome) -> bool:
    turns = turns_of(await gateway.report(conversation))
    return bool(turns) and turns[0]["outcome"] == outcome


async def test_a_failed_prefill_becomes_a_local_one_and_the_client_sees_nothing(serve: Serve) -> None:
    broken = [engine_config(Role.PREFILL, "prefill-0", faults=(Fault("status", status=500),))]
    async with serve(prefill=broken) as gateway:
        answer = await gateway.ask("a", TEXT)
        assert answer.status_code == 200
        assert answer.headers["x-conserve-path"] == "local-prefill"
        assert (await gateway.report("a"))["kv_transfers"] == 0


async def test_a_decoder_that_dies_in_mid_stream_ends_the_stream_with_an_error_event(serve: Serve) -> None:
    dying = [engine_config(Role.DECODE, "decode-0", faults=(Fault("reset", after_tokens=3),))]
    async with serve(decode=dying) as gateway:
        answer = await gateway.ask("a", TEXT, stream=True)
        last = [line for line in answer.text.split("\n\n") if line][-1]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["code"] == "engine_lost"
        assert "decode-0" in error["message"]
        assert turns_of(await gateway.report("a"))[0]["outcome"] == Outcome.FAILED


async def test_a_decoder_that_refuses_each_time_is_a_502_that_names_it(serve: Serve) -> None:
    broken = [engine_config(Role.DECODE, "decode-0", faults=(Fault("status", count=3, status=500),))]
    async with serve(decode=broken) as gateway:
        answer = await gateway.ask("a", TEXT)
        assert answer.status_code == 502
        assert "decode-0" in answer.json()["error"]["message"]
        assert (await gateway.report("a"))["reserved_kv_tokens"] == 0


async def test_a_silent_engine_is_given_up_in_bounded_time(serve: Serve) -> None:
    silent = [engine_config(Role.DECODE, "decode-0", faults=(Fault("hang", delay_s=60.0),))]
    async with serve(decode=silent, turn_timeout_s=0.2) as gateway:
        answer = await gateway.ask("a", TEXT)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "engine_timeout"


async def test_what_an_engine_says_of_a_clients_fault_is_passed_on(gateway: Served) -> None:
    answer = await gateway.ask("a", TEXT, max_tokens=-1)
    assert answer.status_code == 400
    assert turns_of(await gateway.report("a"))[0]["outcome"] == Outcome.FAILED


async def test_without_prefill_engines_first_turns_are_prefilled_locally(serve: Serve) -> None:
    async with serve(prefill=[]) as gateway:
        answer = await gateway.ask("a", TEXT)
        assert answer.headers["x-conserve-path"] == "local-prefill"


async def test_a_full_system_holds_new_conversations_and_then_says_503(serve: Serve) -> None:
    small = [engine_config(Role.DECODE, "decode-0", kv_blocks=8)]
    async with serve(decode=small, max_wait_s=0.2) as gateway:
        await gateway.ask("a", TEXT)
        refused = await gateway.ask("b", TEXT)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "no_kv_capacity"
        assert int(refused.headers["retry-after"]) >= 1


async def test_a_released_conversation_makes_room_for_the_next(serve: Serve) -> None:
    small = [engine_config(Role.DECODE, "decode-0", kv_blocks=8)]
    async with serve(decode=small) as gateway:
        await gateway.ask("a", TEXT)
        waiting = asyncio.create_task(gateway.ask("b", TEXT))
        await gateway.eventually(lambda: _waits(gateway))
        await gateway.client.delete("/v1/conversations/a")
        assert (await waiting).status_code == 200


async def _waits(gateway: Served) -> bool:
    return await gateway.metric("conserve_waiting_turns") == 1


async def test_a_restarted_decoder_is_a_new_engine_and_its_conversations_are_placed_anew(
    serve: Serve,
) -> None:
    only = [engine_config(Role.DECODE, "decode-0")]
    async with serve(decode=only) as gateway:
        await gateway.ask("a", TEXT)
        await _restart(gateway, "decode-0")
        await gateway.eventually(lambda: _is_rebinding(gateway, "a"))
        answer = await gateway.ask("a", TEXT)
        assert answer.headers["x-conserve-path"] == "remote-prefill"
        assert await gateway.metric('conserve_rebinds_total{cause="engine-lost"}') == 1
        assert answer.headers["x-conserve-rebind"] == "engine-lost"
        assert (await gateway.report("a"))["rebinds"] == ["engine-lost"]


async def _restart(gateway: Served, name: str) -> None:
    from conserve_server.engines.emulated import EmulatedEngineServer

    config = gateway.engines[name].config
    await gateway.engines[name].stop()
    again = await gateway.stack.enter_async_context(EmulatedEngineServer(config))
    gateway.engines[name] = again


async def _is_rebinding(gateway: Served, conversation: str) -> bool:
    return (await gateway.report(conversation))["state"] == "rebinding"


async def test_an_idle_conversation_expires_and_frees_its_room(serve: Serve) -> None:
    async with serve(idle_timeout_s=0.1) as gateway:
        await gateway.ask("a", TEXT)
        await gateway.eventually(lambda: _is_expired(gateway, "a"))
        assert (await gateway.report("a"))["reserved_kv_tokens"] == 0


async def _is_expired(gateway: Served, conversation: str) -> bool:
    return (await gateway.report(conversation))["state"] == "expired"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_transfer_that_fails_binds_nothing_and_the_next_turn_is_placed_anew(
    serve: Serve, is_streamed: bool
) -> None:
    broken = [engine_config(Role.PREFILL, "prefill-0", faults=(Fault("malformed_kv_params"),))]
    async with serve(prefill=broken, max_placements=1) as gateway:
        failed = await gateway.ask("a", TEXT, stream=is_streamed)
        assert '"error"' in failed.text
        report = await gateway.report("a")
        assert (turns_of(report)[0]["outcome"], report["kv_transfers"]) == (Outcome.FAILED, 0)
        assert report["reserved_kv_tokens"] == 0
        again = await gateway.ask("a", TEXT)
        assert (again.status_code, again.headers["x-conserve-path"]) == (200, "remote-prefill")


async def test_a_conversation_whose_first_turn_failed_is_not_kept_as_live(serve: Serve) -> None:
    broken = [engine_config(Role.DECODE, "decode-0", faults=(Fault("status", status=500),))]
    async with serve(decode=broken, max_placements=1) as gateway:
        await gateway.ask("a", TEXT)
        assert (await gateway.report("a"))["state"] == "ended"
