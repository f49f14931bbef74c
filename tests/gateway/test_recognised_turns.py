"""Conversations that no client names, over a real gateway."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from conserve_server.engines.engine import Role
from conserve_server.telemetry import names

from .conftest import MODEL, Serve, Served, engine_config

SYSTEM = {"role": "system", "content": "You share these words with everybody. " * 10}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
LONG = "the quick brown fox " * 20
ID = "x-conserve-conversation-id"
Messages = list[dict[str, Any]]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def message_of(answer: httpx2.Response) -> dict[str, Any]:
    """The assistant message as a client keeps it, streamed or not."""
    if "event-stream" not in answer.headers["content-type"]:
        whole: dict[str, Any] = answer.json()["choices"][0]["message"]
        return {name: whole[name] for name in ("role", "content", "tool_calls") if whole.get(name)}
    text, calls = "", dict[int, dict[str, str]]()
    for line in answer.text.split("\n\n"):
        if line and line != "data: [DONE]":
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                text += choice["delta"].get("content") or ""
                for piece in choice["delta"].get("tool_calls") or ():
                    call = calls.setdefault(piece["index"], {"arguments": ""})
                    call["arguments"] += piece["function"].get("arguments") or ""
                    call |= {
                        n: v
                        for n, v in (("id", piece.get("id")), ("name", piece["function"].get("name")))
                        if v
                    }
    functions = [
        {"function": {"arguments": c["arguments"], "name": c["name"]}, "type": "function", "id": c["id"]}
        for c in calls.values()
    ]
    return {"content": text or None, "role": "assistant"} | ({"tool_calls": functions} if functions else {})


async def ask(gateway: Served, messages: Messages, **fields: object) -> httpx2.Response:
    return await gateway.chat(None, messages, **fields)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_the_next_turn_of_an_unnamed_history_goes_to_its_decoder(
    gateway: Served, is_streamed: bool
) -> None:
    history: Messages = [SYSTEM]
    answers = []
    for text in ("one", "two", "three"):
        history.append(user(text))
        answers.append(await ask(gateway, history, stream=is_streamed))
        history.append(message_of(answers[-1]))
    assert len({answer.headers[ID] for answer in answers}) == 1
    assert [answer.headers["x-conserve-path"] for answer in answers] == ["remote-prefill", "pinned", "pinned"]
    report = await gateway.report(answers[0].headers[ID])
    assert (report["synthetic"], report["kv_transfers"], report["state"]) == (True, 1, "tool-gap")
    turns = [span for span in gateway.spans if span.name == names.SPAN_TURN]
    assert all((turn.attributes or {})[names.SYNTHETIC] for turn in turns)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_tool_call_comes_back_and_is_recognised(gateway: Served, is_streamed: bool) -> None:
    asked = {"tools": [TOOL], "tool_choice": "required", "stream": is_streamed, "max_tokens": 200}
    first = await ask(gateway, [user("add")], **asked)
    called = message_of(first)
    result = {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "3"}
    second = await ask(gateway, [user("add"), called, result], tools=[TOOL])
    assert second.headers[ID] == first.headers[ID]
    assert second.headers["x-conserve-path"] == "pinned"


async def test_histories_that_share_a_system_prompt_are_conversations_of_their_own(gateway: Served) -> None:
    answers = [await ask(gateway, [SYSTEM, user(text)]) for text in ("a", "b", "a")]
    assert len({answer.headers[ID] for answer in answers}) == 3


async def test_of_two_at_once_with_one_history_the_first_goes_on_and_the_second_begins(
    gateway: Served,
) -> None:
    first = await ask(gateway, [user("hi")])
    history = [user("hi"), message_of(first), user("go on")]
    both = await asyncio.gather(ask(gateway, history), ask(gateway, history))
    assert sorted(answer.headers["x-conserve-turn"] for answer in both) == ["1", "2"]


async def test_a_turn_that_failed_is_tried_again_in_its_conversation(gateway: Served) -> None:
    first = await ask(gateway, [user("hi")])
    history = [user("hi"), message_of(first), user("go on")]
    failed, again = await ask(gateway, history, max_tokens=-1), await ask(gateway, history)
    assert (failed.status_code, again.status_code) == (400, 200)
    assert {failed.headers[ID], again.headers[ID]} == {first.headers[ID]}


async def test_an_unnamed_conversation_whose_first_turn_failed_is_over(gateway: Served) -> None:
    failed = await ask(gateway, [user("hi")], max_tokens=-1)
    report = await gateway.report(failed.headers[ID])
    assert (failed.status_code, report["state"], report["reserved_kv_tokens"]) == (400, "ended", 0)


async def test_unnamed_conversations_expire_sooner_and_are_not_recognised_after(serve: Serve) -> None:
    async with serve(synthetic_idle_timeout_s=0.1) as gateway:
        await gateway.ask("named", "hi")
        first = await ask(gateway, [user("hi")])
        await gateway.eventually(lambda: _is(gateway, first.headers[ID], "expired"))
        assert (await gateway.report(first.headers[ID]))["reserved_kv_tokens"] == 0
        assert await _is(gateway, "named", "tool-gap")
        later = await ask(gateway, [user("hi"), message_of(first), user("go on")])
        assert later.headers[ID] != first.headers[ID]


async def _is(gateway: Served, conversation: str, state: str) -> bool:
    return (await gateway.report(conversation))["state"] == state


async def test_unnamed_conversations_at_rest_give_their_room_to_a_turn_that_waits(serve: Serve) -> None:
    small = [engine_config(Role.DECODE, "decode-0", kv_blocks=8)]
    async with serve(decode=small, max_wait_s=5.0) as gateway:
        oldest = await ask(gateway, [user(LONG)])
        named = await gateway.ask("named", LONG)
        assert (oldest.status_code, named.status_code) == (200, 200)
        assert await _is(gateway, oldest.headers[ID], "expired")
        assert await _is(gateway, "named", "tool-gap")


async def test_unnamed_conversations_at_rest_make_room_within_the_tenants_limit(serve: Serve) -> None:
    async with serve(max_conversations=1) as gateway:
        first = await ask(gateway, [user("hi")])
        assert (await gateway.ask("named", "hi")).status_code == 200
        assert await _is(gateway, first.headers[ID], "expired")
        assert (await ask(gateway, [user("ho")])).status_code == 429


async def test_a_released_unnamed_conversation_is_not_recognised_again(gateway: Served) -> None:
    first = await ask(gateway, [user("hi")])
    await gateway.client.delete(f"/v1/conversations/{first.headers[ID]}")
    later = await ask(gateway, [user("hi"), message_of(first), user("go on")])
    assert later.headers[ID] != first.headers[ID]


async def test_without_recognition_each_unnamed_request_is_a_conversation_of_one_turn(serve: Serve) -> None:
    async with serve(recognised_kept=0) as gateway:
        answer = await ask(gateway, [user("hi")])
        assert await _is(gateway, answer.headers[ID], "ended")


async def test_the_answer_of_a_named_conversation_is_not_gathered(gateway: Served) -> None:
    named = await gateway.chat("named", [user("hi")])
    later = await ask(gateway, [user("hi"), message_of(named), user("go on")])
    assert later.headers[ID] != "named"


MARK = {"cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_marker_that_moves_with_each_turn_keeps_the_conversation(gateway: Served, path: str) -> None:
    """As Anthropic's clients, Pydantic AI and LiteLLM send it: on the latest message alone."""
    history: Messages = []
    found = []
    for question in ("When?", "Where?", "Why?"):
        history.append(user(f"{question} {LONG}"))
        part = {"type": "text", "text": history[-1]["content"], **MARK}
        messages = [*history[:-1], {"role": "user", "content": [part]}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 8}
        answer = await gateway.client.post(path, json=body)
        assert answer.status_code == 200
        found.append((answer.headers[ID], answer.headers["x-conserve-path"]))
        document = answer.json()
        text = document["content"][0]["text"] if "content" in document else message_of(answer)["content"]
        history.append({"role": "assistant", "content": text})
    assert len({conversation for conversation, _ in found}) == 1
    assert [where for _, where in found] == ["remote-prefill", "pinned", "pinned"]


async def test_a_text_as_input_goes_on_as_a_message(gateway: Served) -> None:
    first = await gateway.client.post(
        "/v1/responses", json={"model": MODEL, "input": LONG, "max_output_tokens": 8}
    )
    items = [user(LONG), *first.json()["output"], user("And then?")]
    second = await gateway.client.post(
        "/v1/responses", json={"model": MODEL, "input": items, "max_output_tokens": 8}
    )
    assert second.headers[ID] == first.headers[ID]
    assert second.headers["x-conserve-path"] == "pinned"
