"""What agents do to their own history, and what that may not cost them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from bench.attack.case import cases, expect
from bench.attack.ground import Ground, Setup
from bench.attack.raw import RawAnswer, ask, request

OPEN = Setup()
_TEXT = "The ferry sails at noon and carries two hundred passengers. " * 10
Messages = list[dict[str, Any]]


async def _say(ground: Ground, messages: Messages, **headers: str) -> RawAnswer:
    body = {"model": ground.model, "messages": messages, "max_tokens": 8}
    return await ask(ground.port, request("/v1/chat/completions", json.dumps(body).encode(), headers=headers))


def _text_of(answer: RawAnswer) -> str:
    return str(json.loads(answer.body)["choices"][0]["message"]["content"])


async def _chat(ground: Ground, rewrite: Callable[[Messages], Messages], topic: str) -> list[str]:
    """Three turns of one chat that nobody named, each with its history rewritten; their conversations."""
    messages: Messages = [{"role": "system", "content": f"You know {topic}."}]
    found = []
    for question in ("When?", "Where?", "Why?"):
        messages.append({"role": "user", "content": f"{question} {_TEXT}"})
        answer = await _say(ground, rewrite(copy.deepcopy(messages)))
        expect(answer.status == 200, f"answered with {answer.status}: {answer.body[:200]!r}")
        found.append(answer.headers["x-conserve-conversation-id"])
        messages.append({"role": "assistant", "content": _text_of(answer)})
    return found


def _marked_last(messages: Messages) -> Messages:
    last = messages[-1]
    part = {"type": "text", "text": last["content"], "cache_control": {"type": "ephemeral"}}
    return [*messages[:-1], {**last, "content": [part]}]


def _as_parts(messages: Messages) -> Messages:
    old = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages[:-1]]
    return [*old, messages[-1]]


def _with_empty_fields(messages: Messages) -> Messages:
    return [
        {"content": m["content"], "role": m["role"], "tool_calls": [], "name": None}
        if m["role"] == "assistant"
        else m
        for m in messages
    ]


async def histories_written_otherwise(ground: Ground) -> None:
    """Markers that move, texts as parts, fields that come and go: one conversation all the same."""
    rewrites = {"markers": _marked_last, "parts": _as_parts, "empty fields": _with_empty_fields}
    wrong = []
    for name, rewrite in rewrites.items():
        found = await _chat(ground, rewrite, name)
        if len(set(found)) != 1:
            wrong.append(f"{name}: {len(set(found))} conversations")
    expect(not wrong, "; ".join(wrong))


async def conversations_alike(ground: Ground) -> None:
    """Two chats with one beginning and different answers: two conversations."""
    one = await _chat(ground, lambda messages: messages, "the sea")
    other = await _chat(ground, lambda messages: messages, "the harbour")
    expect(set(one).isdisjoint(other), "two chats became one conversation")


async def agents_below_one_session(ground: Ground) -> None:
    """Codex's sub-agents: one session, a thread each: a branch each."""
    found = []
    for thread in ("t-1", "t-2", "t-1"):
        messages = [{"role": "user", "content": f"{thread}: {_TEXT}"}]
        answer = await _say(ground, messages, **{"session-id": "codex", "thread-id": thread})
        found.append(answer.headers.get("x-conserve-conversation-id"))
    expect(found[0] == found[2] != found[1], f"the conversations are {found}")


CASES = cases(OPEN, histories_written_otherwise, conversations_alike, agents_below_one_session)
