"""Text completions: text or token prompts, and token ids in return."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from conserve_server.engines.emulated import EmulatedConfig

Engines = Callable[..., AbstractAsyncContextManager[Any]]


async def test_token_ids_of_prompt_and_answer_make_the_next_prompt(engines: Engines) -> None:
    async with engines(EmulatedConfig(host="e")) as bench:
        first = (await bench.complete("e", "hello " * 100, max_tokens=64, return_token_ids=True)).json()
        choice = first["choices"][0]
        prompt = choice["prompt_token_ids"] + choice["token_ids"]
        second = (await bench.complete("e", prompt, max_tokens=1)).json()
    assert len(prompt) == first["usage"]["total_tokens"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > len(prompt) - 64


async def test_an_answer_has_sixteen_tokens_unless_more_are_asked_for(engines: Engines) -> None:
    async with engines(EmulatedConfig(host="e")) as bench:
        answer = (await bench.complete("e", ["hello"])).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"].startswith("[emulated]")
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (16, "length")


async def test_a_stream_joins_to_the_whole_text(engines: Engines) -> None:
    async with engines(EmulatedConfig(host="e")) as bench:
        whole = (await bench.complete("e", "hello")).json()
        stream = await bench.complete("e", "hello", stream=True, stream_options={"include_usage": True})
    *events, done, _ = stream.text.split("\n\n")
    chunks = [json.loads(each.removeprefix("data: ")) for each in events]
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert done == "data: [DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("prompt", [[], "", ["a", "b"], [[1], [2]], [-1], None])
async def test_a_prompt_that_is_not_one_prompt_is_refused(engines: Engines, prompt: object) -> None:
    async with engines(EmulatedConfig(host="e")) as bench:
        answer = await bench.complete("e", prompt)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"{", {"content-type": "application/json"}),
        (b"\xff", {"content-type": "application/json"}),
        (b"{}", {}),
    ],
)
async def test_a_body_that_is_not_json_is_refused(
    engines: Engines, content: bytes, headers: dict[str, str]
) -> None:
    async with engines(EmulatedConfig(host="e")) as bench:
        answer = await bench.client.post("http://e/v1/completions", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "Bad Request")
