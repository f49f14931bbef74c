"""Anthropic's Messages API, with Anthropic's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest

from conserve_server.engines.emulated import Fault
from conserve_server.engines.engine import Role

from .conftest import MODEL, Serve, Served, engine_config

TEXT = "the ferry sails fourteen times a day and carries two hundred passengers " * 8
TOOL: Any = {"name": "clock", "description": "the time", "input_schema": {"type": "object", "properties": {}}}


def client_of(gateway: Served, key: str = "-") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=gateway.url, api_key=key, max_retries=0)


@pytest.fixture
async def client(gateway: Served) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with client_of(gateway) as client:
        yield client


async def ask(client: anthropic.AsyncAnthropic, messages: list[Any], is_streamed: bool, **fields: Any) -> Any:
    fields = {"model": MODEL, "max_tokens": 12, "messages": messages, **fields}
    if not is_streamed:
        return await client.messages.create(**fields)
    async with client.messages.stream(**fields) as stream:
        return await stream.get_final_message()


async def turns_of(gateway: Served, conversation: str) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = (await gateway.report(conversation))["turns"]  # type: ignore[assignment]
    return turns


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_conversation_is_prefilled_once_elsewhere_and_stays(
    gateway: Served, client: anthropic.AsyncAnthropic, is_streamed: bool
) -> None:
    session = {"x-claude-code-session-id": "a"}
    messages: list[Any] = [{"role": "user", "content": TEXT}]
    for _ in range(3):
        answer = await ask(client, messages, is_streamed, extra_headers=session, system="be brief")
        messages += [
            {"role": "assistant", "content": answer.content},
            {"role": "user", "content": "and then?"},
        ]
    turns = await turns_of(gateway, "a")
    assert [turn["path"] for turn in turns] == ["remote-prefill", "pinned", "pinned"]
    assert turns[2]["cached_tokens"] >= turns[1]["prompt_tokens"] - 32
    assert turns[2]["prompt_tokens"] == answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    assert turns[2]["completion_tokens"] == answer.usage.output_tokens
    assert await gateway.engine_metric("decode-0", "vllm:nixl_xfer_time_seconds_count") == 1


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_conversation_that_nobody_names_is_recognised_by_its_messages(
    gateway: Served, client: anthropic.AsyncAnthropic, is_streamed: bool
) -> None:
    messages: list[Any] = [{"role": "user", "content": TEXT}]
    first = await ask(client, messages, is_streamed, tools=[TOOL], tool_choice={"type": "any"})
    (call,) = [block for block in first.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "noon"}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = await ask(client, messages, is_streamed, tools=[TOOL])
    messages += [{"role": "assistant", "content": second.content}, {"role": "user", "content": "and then?"}]
    await ask(client, messages, is_streamed, tools=[TOOL])
    assert await gateway.engine_metric("prefill-0", "vllm:request_success_total") == 1
    (listed,) = (await gateway.client.get("/v1/conversations")).json()["data"]
    assert (listed["synthetic"], listed["turn_count"]) == (True, 3)


async def test_the_same_messages_under_another_system_prompt_are_another_conversation(
    gateway: Served, client: anthropic.AsyncAnthropic
) -> None:
    messages: list[Any] = [{"role": "user", "content": TEXT}]
    answer = await ask(client, messages, False, system="be brief")
    messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": "and then?"}]
    await ask(client, messages, False, system="be long")
    assert len((await gateway.client.get("/v1/conversations")).json()["data"]) == 2


async def test_errors_have_anthropics_shape(gateway: Served, client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as found:
        await client.messages.create(
            model="nobody", max_tokens=4, messages=[{"role": "user", "content": "a"}]
        )
    body: Any = found.value.body
    assert body["type"] == "error"
    assert (body["error"]["type"], body["error"]["code"]) == ("not_found_error", "model_not_found")
    assert "nobody" in body["error"]["message"]


async def test_an_engine_that_dies_in_a_stream_is_an_error_event_that_the_client_raises(serve: Serve) -> None:
    dying = [engine_config(Role.DECODE, "decode-0", faults=(Fault("reset", after_tokens=3),))]
    async with serve(decode=dying) as gateway, client_of(gateway) as client:
        with pytest.raises(anthropic.APIStatusError, match="decode-0"):
            await ask(client, [{"role": "user", "content": TEXT}], True)


async def test_tokens_are_counted_by_an_engine_and_are_no_turn(
    gateway: Served, client: anthropic.AsyncAnthropic
) -> None:
    messages: list[Any] = [{"role": "user", "content": TEXT}]
    counted = await client.messages.count_tokens(model=MODEL, messages=messages)
    answer = await ask(client, messages, False)
    assert counted.input_tokens == answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    assert len((await gateway.client.get("/v1/conversations")).json()["data"]) == 1


async def test_a_key_is_taken_from_x_api_key(serve: Serve) -> None:
    async with serve(tenants={"one": {"api_keys": ("key-one",)}}) as gateway:
        async with client_of(gateway, "key-one") as client:
            assert (await ask(client, [{"role": "user", "content": TEXT}], False)).content
        async with client_of(gateway, "key-two") as client:
            with pytest.raises(anthropic.AuthenticationError, match="none that this gateway knows"):
                await ask(client, [{"role": "user", "content": TEXT}], False)
