"""The Responses API, with OpenAI's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from conserve_server.engines.emulated import Fault
from conserve_server.engines.engine import Role

from .conftest import MODEL, Serve, Served, engine_config

TEXT = "the ferry sails fourteen times a day and carries two hundred passengers " * 8


@pytest.fixture
async def client(gateway: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def headers(conversation: str) -> dict[str, str]:
    return {"x-conserve-conversation-id": conversation}


async def streamed(client: openai.AsyncOpenAI, **fields: Any) -> list[Any]:
    stream = await client.responses.create(model=MODEL, stream=True, max_output_tokens=8, **fields)
    return [event async for event in stream]


async def turns_of(gateway: Served, conversation: str) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = (await gateway.report(conversation))["turns"]  # type: ignore[assignment]
    return turns


async def test_a_conversation_is_prefilled_once_elsewhere_and_stays(
    gateway: Served, client: openai.AsyncOpenAI
) -> None:
    items: list[Any] = [{"role": "user", "content": TEXT}]
    for _ in range(3):
        answer = await client.responses.create(
            model=MODEL, input=items, max_output_tokens=8, extra_headers=headers("a")
        )
        items += [
            {"role": "assistant", "content": answer.output_text},
            {"role": "user", "content": "and then?"},
        ]
    turns = await turns_of(gateway, "a")
    assert [turn["path"] for turn in turns] == ["remote-prefill", "pinned", "pinned"]
    assert turns[2]["cached_tokens"] >= turns[1]["prompt_tokens"] - 32
    assert turns[0]["completion_tokens"] == 8
    assert await gateway.engine_metric("decode-0", "vllm:nixl_xfer_time_seconds_count") == 1


async def test_a_stream_goes_through_as_it_is_and_its_usage_is_read(
    gateway: Served, client: openai.AsyncOpenAI
) -> None:
    events = await streamed(client, input=TEXT, extra_headers=headers("a"))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "".join(
        e.delta for e in events if e.type.endswith("text.delta")
    )
    (turn,) = await turns_of(gateway, "a")
    assert (turn["outcome"], turn["path"], turn["completion_tokens"]) == ("completed", "remote-prefill", 8)
    assert turn["prompt_tokens"] == events[-1].response.usage.input_tokens
    assert turn["ttft_s"] < turn["duration_s"]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_previous_response_is_its_conversations_next_turn(
    gateway: Served, client: openai.AsyncOpenAI, is_streamed: bool
) -> None:
    first = await client.responses.with_raw_response.create(model=MODEL, input=TEXT, max_output_tokens=8)
    conversation = first.headers["x-conserve-conversation-id"]
    previous = first.parse().id
    if is_streamed:
        await streamed(client, input="and then?", previous_response_id=previous)
    else:
        await client.responses.create(
            model=MODEL, input="and then?", previous_response_id=previous, max_output_tokens=8
        )
    turns = await turns_of(gateway, conversation)
    assert [turn["path"] for turn in turns] == ["remote-prefill", "pinned"]
    assert turns[1]["prompt_tokens"] > turns[0]["prompt_tokens"]
    assert await gateway.engine_metric("prefill-0", "vllm:request_success_total") == 1


async def test_two_requests_may_go_on_from_one_response(gateway: Served, client: openai.AsyncOpenAI) -> None:
    first = await client.responses.with_raw_response.create(model=MODEL, input=TEXT, max_output_tokens=8)
    for question in ("and then?", "and before?", "and now?"):
        await client.responses.create(
            model=MODEL, input=question, previous_response_id=first.parse().id, max_output_tokens=8
        )
    turns = await turns_of(gateway, first.headers["x-conserve-conversation-id"])
    assert [turn["path"] for turn in turns] == ["remote-prefill", "pinned", "pinned", "pinned"]


async def test_a_named_conversation_goes_on_by_its_response_alone(
    gateway: Served, client: openai.AsyncOpenAI
) -> None:
    first = await client.responses.create(
        model=MODEL, input=TEXT, max_output_tokens=8, extra_body={"conversation": {"id": "thread-1"}}
    )
    await client.responses.create(
        model=MODEL, input="and then?", max_output_tokens=8, previous_response_id=first.id
    )
    assert len(await turns_of(gateway, "thread-1")) == 2


async def test_an_unknown_previous_response_is_a_404_that_says_what_to_do(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="send the whole input instead") as found:
        await client.responses.create(model=MODEL, input="hello", previous_response_id="resp_unknown")
    assert (found.value.code, found.value.param) == ("previous_response_not_found", "previous_response_id")


async def test_a_stored_response_is_read_from_the_engine_that_has_it(
    gateway: Served, client: openai.AsyncOpenAI
) -> None:
    answers = [await client.responses.create(model=MODEL, input=TEXT + str(i)) for i in range(4)]
    for answer in answers:
        assert (await client.responses.retrieve(answer.id)).output_text == answer.output_text
    with pytest.raises(openai.NotFoundError, match="has not made it"):
        await client.responses.retrieve("resp_unknown")


async def test_a_cancellation_goes_to_the_engine_that_has_the_response(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.create(model=MODEL, input=TEXT)
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        await client.responses.cancel(answer.id)


async def test_another_tenants_response_does_not_exist(serve: Serve) -> None:
    tenants = {name: {"api_keys": (f"key-{name}",)} for name in ("one", "two")}
    async with serve(tenants=tenants) as gateway:
        own, other = (
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=f"key-{name}", max_retries=0)
            for name in tenants
        )
        async with own, other:
            answer = await own.responses.create(model=MODEL, input=TEXT)
            with pytest.raises(openai.NotFoundError):
                await other.responses.retrieve(answer.id)
            with pytest.raises(openai.NotFoundError):
                await other.responses.create(model=MODEL, input="hello", previous_response_id=answer.id)
            assert (await own.responses.retrieve(answer.id)).id == answer.id


async def test_a_response_beyond_those_kept_is_forgotten(serve: Serve) -> None:
    async with serve(responses_kept=1) as gateway:
        client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="-", max_retries=0)
        async with client:
            first, second = [await client.responses.create(model=MODEL, input=TEXT) for _ in range(2)]
            assert (await client.responses.retrieve(second.id)).id == second.id
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(first.id)


async def test_an_engine_that_dies_in_a_stream_is_an_error_event_that_the_client_raises(serve: Serve) -> None:
    dying = [engine_config(Role.DECODE, "decode-0", faults=(Fault("reset", after_tokens=3),))]
    async with serve(decode=dying) as gateway:
        client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="-", max_retries=0)
        async with client:
            with pytest.raises(openai.APIError, match="decode-0"):
                await streamed(client, input=TEXT, extra_headers=headers("a"))


async def test_an_engines_refusal_goes_through(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        await client.responses.create(model=MODEL, input=TEXT, max_output_tokens=10**9)


async def test_a_function_call_and_its_output_are_one_conversations_turns(
    gateway: Served, client: openai.AsyncOpenAI
) -> None:
    parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    tools: list[Any] = [{"type": "function", "name": "clock", "parameters": parameters, "strict": False}]
    first = await client.responses.create(model=MODEL, input=TEXT, tools=tools, tool_choice="required")
    (call,) = [item for item in first.output if item.type == "function_call"]
    output: list[Any] = [{"type": "function_call_output", "call_id": call.call_id, "output": "noon"}]
    await client.responses.create(
        model=MODEL, input=output, previous_response_id=first.id, max_output_tokens=8
    )
    assert await gateway.engine_metric("prefill-0", "vllm:request_success_total") == 1


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_client_that_repeats_its_history_and_names_nothing_is_recognised(
    gateway: Served, client: openai.AsyncOpenAI, is_streamed: bool
) -> None:
    items: list[Any] = [{"role": "user", "content": TEXT}]
    names = set()
    for _ in range(3):
        answer = await client.responses.with_raw_response.create(
            model=MODEL, input=items, max_output_tokens=8, instructions="Be brief.", stream=is_streamed
        )
        names.add(answer.headers["x-conserve-conversation-id"])
        parsed: Any = answer.parse()
        if is_streamed:
            events = [event async for event in parsed]
            parsed = events[-1].response
        items += [*(item.to_dict() for item in parsed.output), {"role": "user", "content": "and then?"}]
    (name,) = names
    assert [turn["path"] for turn in await turns_of(gateway, name)] == ["remote-prefill", "pinned", "pinned"]
