"""The real OpenAI client against a served emulated engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from conserve_server.engines.emulated import (
    EmulatedConfig,
    EmulatedTiming,
    Rule,
    ScriptedCall,
    serve_emulated,
)

FAST = EmulatedTiming().faster(100)
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "search",
            "parameters": {
                "type": "object",
                "properties": {"query": {"type": "string"}},
                "required": ["query"],
            },
        },
    }
]
ASKED: Any = [{"role": "user", "content": "hello"}]


def _client(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)


async def test_a_chat_answer_says_that_it_is_emulated() -> None:
    async with serve_emulated(EmulatedConfig(timing=FAST)) as url, _client(url) as client:
        raw = await client.chat.completions.with_raw_response.create(model="emulated", messages=ASKED)
        models = await client.models.list()
    answer = raw.parse()
    assert raw.headers["x-conserve-emulated"] == "true"
    assert (answer.choices[0].message.content or "").startswith("[emulated]")
    assert answer.system_fingerprint == "emulated"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 32
    assert [(model.id, model.owned_by) for model in models.data] == [("emulated", "conserve-emulated")]


async def test_a_stream_has_the_text_of_the_whole_answer_and_its_usage_last() -> None:
    async with serve_emulated(EmulatedConfig(timing=FAST)) as url, _client(url) as client:
        whole = await client.chat.completions.create(model="emulated", messages=ASKED)
        stream = await client.chat.completions.create(
            model="emulated", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    *spoken, last = chunks
    assert spoken[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in spoken)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in spoken[-2:]] == [None, "stop"]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 32
    assert set((last.model_extra or {})["metrics"]) >= {"time_to_first_token_ms", "queue_time_ms"}


async def test_without_include_usage_no_chunk_has_usage() -> None:
    async with serve_emulated(EmulatedConfig(timing=FAST)) as url, _client(url) as client:
        stream = await client.chat.completions.create(model="emulated", messages=ASKED, stream=True)
        chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].system_fingerprint == "emulated"


async def test_a_scripted_agent_calls_its_tools_and_then_answers() -> None:
    calls = (ScriptedCall("search", {"query": "Oslo"}), ScriptedCall("search", {"query": "Bergen"}))
    script = (Rule(match=1, tool_calls=calls), Rule(match="rain", reply="Take a coat."))
    async with serve_emulated(EmulatedConfig(timing=FAST, script=script)) as url, _client(url) as client:
        called = await client.chat.completions.create(model="emulated", messages=ASKED, tools=TOOLS)
        message = called.choices[0].message
        assert called.choices[0].finish_reason == "tool_calls"
        made: Any = message.tool_calls
        results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in made]
        said: Any = message.model_dump(exclude_none=True)
        answered = await client.chat.completions.create(
            model="emulated", messages=[*ASKED, said, *results], tools=TOOLS
        )
    assert [json.loads(call.function.arguments) for call in made] == [{"query": "Oslo"}, {"query": "Bergen"}]
    assert answered.choices[0].message.content == "Take a coat."
    assert answered.choices[0].finish_reason == "stop"


async def test_tool_calls_stream_in_pieces_that_join() -> None:
    script = (Rule(tool_calls=(ScriptedCall("search", {"query": "Oslo and Bergen"}),)),)
    async with (
        serve_emulated(EmulatedConfig(timing=FAST, script=script)) as url,
        _client(url) as client,
        client.chat.completions.stream(model="emulated", messages=ASKED, tools=TOOLS) as stream,
    ):
        answer = await stream.get_final_completion()
    calls = answer.choices[0].message.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("search", '{"query": "Oslo and Bergen"}')
    ]
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("required", "tool_calls"), ({"type": "function", "function": {"name": "search"}}, "stop")],
)
async def test_a_forced_tool_gets_arguments_of_its_schema(choice: Any, reason: str) -> None:
    async with serve_emulated(EmulatedConfig(timing=FAST)) as url, _client(url) as client:
        answer = await client.chat.completions.create(
            model="emulated", messages=ASKED, tools=TOOLS, tool_choice=choice
        )
    calls: Any = answer.choices[0].message.tool_calls
    assert json.loads(calls[0].function.arguments) == {"query": "emulated"}
    assert answer.choices[0].finish_reason == reason


async def test_a_schema_is_answered_with_its_first_instance() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Bergen"]}}}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    async with serve_emulated(EmulatedConfig(timing=FAST)) as url, _client(url) as client:
        answer = await client.chat.completions.create(
            model="emulated", messages=ASKED, response_format=wanted
        )
    assert answer.choices[0].message.content == '{"city": "Oslo"}'


async def test_an_unknown_model_is_not_found() -> None:
    async with serve_emulated(EmulatedConfig(timing=FAST)) as url, _client(url) as client:
        with pytest.raises(NotFoundError, match="The model `other` does not exist"):
            await client.chat.completions.create(model="other", messages=ASKED)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"logprobs": True},
        {"max_tokens": 0},
        {"extra_body": {"min_tokens": 9}, "max_tokens": 1},
        {"stream_options": {"include_usage": True}},
        {"max_tokens": 100_000},
        {"tool_choice": "required"},
    ],
)
async def test_what_it_cannot_do_is_refused(fields: dict[str, Any]) -> None:
    async with serve_emulated(EmulatedConfig(timing=FAST)) as url, _client(url) as client:
        with pytest.raises(BadRequestError):
            await client.chat.completions.create(model="emulated", messages=ASKED, **fields)
