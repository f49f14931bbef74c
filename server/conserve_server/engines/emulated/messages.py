"""`/v1/messages` as vLLM speaks Anthropic's API: the same engine, other words."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from pydantic import Field

from conserve_server.engines.emulated.answer import OutputToken
from conserve_server.engines.emulated.chat import ChatDialect
from conserve_server.engines.emulated.requests import GenerationRequest
from conserve_server.engines.emulated.sequence import Sequence
from conserve_server.engines.emulated.wire import (
    Document,
    Job,
    NamedEvents,
    WireError,
    validated,
    without_none,
)

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


class MessagesRequest(GenerationRequest):
    """The body, as far as the emulated engine reads it. Only text and tool blocks have tokens here."""

    max_tokens: int | None = Field(gt=0)
    messages: list[dict[str, Any]] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None

    def as_chat(self) -> Document:
        """The same request in the words of a chat."""
        chat: Document = {"messages": [*self._system(), *(m for each in self.messages for m in _chat(each))]}
        chat |= {"max_tokens": self.max_tokens, "stream": self.stream, "stop": self.stop_sequences}
        chat |= {"kv_transfer_params": self.kv_transfer_params, "model": self.model}
        chat["cache_salt"] = self.cache_salt
        if self.tools:
            chat["tools"] = [
                {"function": {**_named(t), "parameters": t.get("input_schema")}} for t in self.tools
            ]
            chat["tool_choice"] = _tool_choice(self.tool_choice)
        return without_none(chat)

    def _system(self) -> list[Document]:
        return [{"role": "system", "content": _text(self.system)}] if self.system else []


class MessagesDialect(NamedEvents):
    """Reads Anthropic's requests, writes its messages."""

    def __init__(self) -> None:
        self._chat = ChatDialect()

    def read(self, document: object, *, model: str, request_id: str | None, context_tokens: int) -> Job:
        request = validated(MessagesRequest, document)
        job = self._chat.read(
            request.as_chat(), model=model, request_id=request_id, context_tokens=context_tokens
        )
        return dataclasses.replace(job, is_stream=bool(request.stream))

    def opening(self, job: Job) -> list[Document]:
        usage = {"input_tokens": len(job.prompt), "output_tokens": 0}
        head: Document = {
            "id": job.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": job.model,
        }
        start = {**head, "stop_reason": None, "stop_sequence": None, "usage": usage}
        return [{"type": "message_start", "message": start}]

    def chunk(self, job: Job, sequence: Sequence, token: OutputToken, *, is_last: bool) -> list[Document]:  # noqa: ARG002
        has_text, call = _has_text(sequence), token.call
        index = call.index + has_text if call is not None else 0
        events: list[Document] = []
        if call is not None and call.id is not None:
            events += [{"type": "content_block_stop", "index": index - 1}] if index else []
            events.append(
                _block_start(index, {"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
            )
        elif call is None and sequence.answer.tokens[0] is token:
            events.append(_block_start(0, {"type": "text", "text": ""}))
        delta = _delta(token)
        if delta is not None:
            events.append({"type": "content_block_delta", "index": index, "delta": delta})
        return events

    def closing(self, job: Job, sequence: Sequence) -> list[Document]:  # noqa: ARG002
        calls = [token.call.index for token in sequence.answer.tokens if token.call is not None]
        last = max(calls) + _has_text(sequence) if calls else 0
        delta = {"stop_reason": _stop_reason(sequence), "stop_sequence": sequence.answer.stop_reason}
        return [
            {"type": "content_block_stop", "index": last},
            {"type": "message_delta", "delta": delta, "usage": _usage(sequence)},
            {"type": "message_stop"},
        ]

    def whole(self, job: Job, sequence: Sequence) -> Document:
        return without_none(
            {
                "id": job.id,
                "type": "message",
                "role": "assistant",
                "content": _content(sequence),
                "model": job.model,
                "stop_reason": _stop_reason(sequence),
                "stop_sequence": sequence.answer.stop_reason,
                "usage": _usage(sequence),
                "kv_transfer_params": sequence.transfer_params,
            }
        )

    def failure(self, error: WireError) -> Document:
        return {"type": "error", "error": {"type": error.kind, "message": str(error)}}


def count_tokens(document: object, model: str, context_tokens: int) -> Document:
    """The answer of `count_tokens`: the prompt's length. Raises WireError."""
    asked = {**document, "max_tokens": 1} if isinstance(document, dict) else document
    job = MessagesDialect().read(asked, model=model, request_id=None, context_tokens=context_tokens)
    return {"input_tokens": len(job.prompt)}


def _chat(message: dict[str, Any]) -> list[Document]:
    """One message as the chat messages that vLLM makes of it: tool results are messages of their own."""
    role, content = str(message.get("role", "user")), message.get("content")
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    results: list[Document] = [
        {"role": "tool", "content": _text(b.get("content"))} for b in blocks if b.get("type") == "tool_result"
    ]
    calls = [
        {"id": b.get("id"), "function": {"name": b.get("name", ""), "arguments": json.dumps(b.get("input"))}}
        for b in blocks
        if b.get("type") == "tool_use"
    ]
    text = "".join(str(b.get("text", "")) for b in blocks if b.get("type") == "text")
    if results and not text:
        return results
    return [*results, {"role": role, "content": text, "tool_calls": calls or None}]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def _named(tool: dict[str, Any]) -> Document:
    return {name: tool[name] for name in ("name", "description") if name in tool}


def _tool_choice(choice: dict[str, Any] | None) -> object:
    match (choice or {}).get("type"):
        case "any":
            return "required"
        case "none":
            return "none"
        case "tool":
            return {"function": {"name": (choice or {}).get("name")}}
        case _:
            return "auto"


def _has_text(sequence: Sequence) -> bool:
    """Whether the answer begins with a text block, as all do but those that only call tools."""
    return sequence.answer.tokens[0].call is None


def _block_start(index: int, block: Document) -> Document:
    return {"type": "content_block_start", "index": index, "content_block": block}


def _delta(token: OutputToken) -> Document | None:
    if token.call is not None:
        return (
            {"type": "input_json_delta", "partial_json": token.call.arguments}
            if token.call.arguments
            else None
        )
    return {"type": "text_delta", "text": token.text} if token.text else None


def _content(sequence: Sequence) -> list[Document]:
    text = "".join(token.text for token in sequence.answer.tokens)
    arguments: dict[int, str] = {}
    calls: dict[int, Document] = {}
    for call in (token.call for token in sequence.answer.tokens if token.call is not None):
        if call.id is not None:
            calls[call.index] = {"type": "tool_use", "id": call.id, "name": call.name}
        arguments[call.index] = arguments.get(call.index, "") + call.arguments
    blocks = [{**call, "input": json.loads(arguments[index] or "{}")} for index, call in calls.items()]
    return [{"type": "text", "text": text}, *blocks] if text or not blocks else blocks


def _stop_reason(sequence: Sequence) -> str:
    if sequence.answer.stop_reason is not None:
        return "stop_sequence"
    return _STOP_REASONS.get(sequence.answer.finish_reason, "end_turn")


def _usage(sequence: Sequence) -> Document:
    cached = sequence.cached_tokens or 0
    return {
        "input_tokens": len(sequence.prompt) - cached,
        "output_tokens": sequence.produced_tokens,
        "cache_read_input_tokens": cached,
    }
