"""Agents that send no identifier, played against the recognition alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from conserve_server.serving.asked.identity import Identity
from conserve_server.serving.asked.request import parse_request
from conserve_server.serving.recognition.recognition import Recognition

History = list[dict[str, Any]]
_NUMBERS = count()


@dataclass
class Agent:
    """One agent's history, and the conversations that its turns were taken for."""

    messages: History
    ids: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.messages = list(self.messages)

    def say(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})


@dataclass(frozen=True)
class Found:
    """What a turn was taken for, and its answer as the client sends it back."""

    identity: Identity
    answer: dict[str, Any]


def run_turn(
    recognition: Recognition,
    messages: History,
    answer: str,
    *,
    tenant: str = "t",
    model: str = "m",
    is_streamed: bool = False,
    is_completed: bool = True,
    settles: bool = True,
) -> Found:
    """One request and its answer; `settles=False` leaves the turn running."""
    made_up = f"anonymous-{next(_NUMBERS)}"
    new = Identity(conversation_id=made_up, tenant=tenant, model=model, is_synthetic=True)
    body = json.dumps({"model": model, "messages": messages}).encode()
    identity, watch = recognition.recognise(new, parse_request("/v1/chat/completions", body))
    assert watch is not None
    assert identity == replace(new, conversation_id=identity.conversation_id)
    if is_streamed:
        chunks = [{"choices": [{"index": 0, "delta": {"content": c}}]} for c in answer]
        watch.answer.read_events([b"data: " + json.dumps(chunk).encode() for chunk in chunks])
    else:
        message = {"role": "assistant", "content": answer, "refusal": None}
        watch.answer.read_document(json.dumps({"choices": [{"message": message}]}).encode())
    if settles:
        recognition.settle(identity, watch, is_completed=is_completed)
    return Found(identity, {"content": answer, "role": "assistant"})
