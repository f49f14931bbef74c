"""`/v1/chat/completions` as vLLM speaks it."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

from conserve_server.engines.emulated.answer import Ask, CallDelta, OutputToken
from conserve_server.engines.emulated.requests import ChatRequest, NamedToolChoice, ResponseFormat
from conserve_server.engines.emulated.sequence import Sequence
from conserve_server.engines.emulated.tokens import encode_chat
from conserve_server.engines.emulated.wire import (
    FINGERPRINT,
    Document,
    Job,
    UnnamedEvents,
    bad_request,
    output_limit,
    request_metrics,
    unknown_model,
    usage,
    validated,
    without_none,
)


class ChatDialect(UnnamedEvents):
    """Reads chat requests, writes chat completions."""

    def read(self, document: object, *, model: str, request_id: str | None, context_tokens: int) -> Job:
        request = validated(ChatRequest, document)
        if request.model and request.model != model:
            raise unknown_model(request.model, model)
        prompt = encode_chat(request.messages, request.tools or ())
        options = request.stream_options
        return Job(
            id=f"chatcmpl-{request_id or request.request_id or uuid4().hex}",
            model=model,
            created=int(time.time()),
            prompt=prompt,
            ask=_ask(request, output_limit(request, len(prompt), context_tokens), sum(prompt)),
            is_stream=bool(request.stream),
            includes_usage=bool(options and options.include_usage),
            includes_running_usage=bool(options and options.include_usage and options.continuous_usage_stats),
            returns_token_ids=bool(request.return_token_ids),
            kv_params=request.kv_transfer_params or {},
            session=request.session_id,
            salt=request.cache_salt,
        )

    def opening(self, job: Job) -> list[Document]:
        chunk = _chunk(job, {"role": "assistant", "content": ""})
        chunk |= {"prompt_token_ids": job.prompt if job.returns_token_ids else None, "prompt_text": None}
        if job.includes_running_usage:
            prompt = len(job.prompt)
            chunk["usage"] = {"prompt_tokens": prompt, "total_tokens": prompt, "completion_tokens": 0}
        return [chunk]

    def chunk(self, job: Job, sequence: Sequence, token: OutputToken, *, is_last: bool) -> list[Document]:
        if not (token.text or token.call or is_last or job.returns_token_ids):
            return []
        extra: Document = {"token_ids": [token.id] if job.returns_token_ids else None}
        reason = None
        if is_last:
            reason = sequence.answer.finish_reason
            extra = {"stop_reason": sequence.answer.stop_reason, **extra}
        chunk = _chunk(job, _delta(token), reason, extra)
        if is_last and not job.includes_usage:
            chunk["system_fingerprint"] = FINGERPRINT
        if job.includes_running_usage:
            chunk["usage"] = usage(sequence)
        return [chunk]

    def closing(self, job: Job, sequence: Sequence) -> list[Document]:
        return [self._usage_chunk(job, sequence)] if job.includes_usage else []

    def _usage_chunk(self, job: Job, sequence: Sequence) -> Document:
        return without_none(
            {
                **_head(job, "chat.completion.chunk"),
                "choices": [],
                "usage": {**usage(sequence), "prompt_tokens_details": _details(sequence)},
                "system_fingerprint": FINGERPRINT,
                "metrics": request_metrics(sequence),
            }
        )

    def whole(self, job: Job, sequence: Sequence) -> Document:
        choice = {
            "index": 0,
            "message": _message(sequence),
            "logprobs": None,
            "finish_reason": sequence.answer.finish_reason,
            "stop_reason": sequence.answer.stop_reason,
            "token_ids": [t.id for t in sequence.answer.tokens] if job.returns_token_ids else None,
            "routed_experts": None,
        }
        details = {**_details(sequence), "multimodal_tokens": None}
        return {
            **_head(job, "chat.completion"),
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": {**usage(sequence), "prompt_tokens_details": details, "completion_tokens_details": None},
            "prompt_logprobs": None,
            "prompt_token_ids": job.prompt if job.returns_token_ids else None,
            "prompt_text": None,
            "kv_transfer_params": sequence.transfer_params,
            "ec_transfer_params": None,
            "metrics": request_metrics(sequence),
        }


def json_schema(response_format: ResponseFormat | None) -> dict[str, Any] | None:
    """The schema that an answer must fit, None where any text will do."""
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return {"const": {"emulated": True}}
    if response_format.json_schema is None or response_format.json_schema.schema_ is None:
        raise bad_request("response_format json_schema has no schema", "response_format")
    return response_format.json_schema.schema_


def _ask(request: ChatRequest, limit: int, seed: int) -> Ask:
    choice = request.tool_choice
    usable = [] if choice == "none" else request.tools or []
    tools = tuple((tool.function.name, tool.function.parameters or {}) for tool in usable)
    is_named = isinstance(choice, NamedToolChoice)
    return Ask(
        text=request.messages[-1].text,
        turn=1 + sum(message.role == "assistant" for message in request.messages),
        max_tokens=limit,
        min_tokens=request.min_tokens,
        ignore_eos=request.ignore_eos,
        stops=request.stops,
        schema=json_schema(request.response_format),
        tools=tools,
        forced_tool=_forced_tool(request, tools),
        is_named_tool=is_named,
        is_parallel=request.parallel_tool_calls is not False,
        seed=seed,
    )


def _forced_tool(request: ChatRequest, tools: tuple[tuple[str, dict[str, Any]], ...]) -> str | None:
    names = [name for name, _ in tools]
    match request.tool_choice:
        case NamedToolChoice() as named:
            forced: str | None = named.function.name
        case "required":
            forced = names[0] if names else ""
        case _:
            return None
    if forced not in names:
        raise bad_request(f"tool_choice asks for {forced or 'a tool'}, which is not in tools", "tool_choice")
    return forced


def _head(job: Job, kind: str) -> Document:
    return {"id": job.id, "object": kind, "created": job.created, "model": job.model}


def _chunk(job: Job, delta: Document, reason: str | None = None, extra: Document | None = None) -> Document:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, **(extra or {})}
    return {**_head(job, "chat.completion.chunk"), "choices": [choice]}


def _delta(token: OutputToken) -> Document:
    if token.call is not None:
        return {"tool_calls": [_call_delta(token.call)]}
    return {"content": token.text}


def _call_delta(call: CallDelta) -> Document:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": ""}
    return {"id": call.id, "type": "function", "index": call.index, "function": function}


def _message(sequence: Sequence) -> Document:
    calls: dict[int, Document] = {}
    arguments: dict[int, str] = {}
    for delta in (token.call for token in sequence.answer.tokens if token.call is not None):
        if delta.id is not None:
            calls[delta.index] = {"id": delta.id, "type": "function", "name": delta.name}
        arguments[delta.index] = arguments.get(delta.index, "") + delta.arguments
    text = "".join(token.text for token in sequence.answer.tokens)
    message: Document = {"role": "assistant", "content": None if calls and not text else text}
    message |= {"refusal": None, "annotations": None, "audio": None, "function_call": None}
    if calls:
        message["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": arguments[index]},
            }
            for index, call in calls.items()
        ]
    return {**message, "reasoning": None}


def _details(sequence: Sequence) -> Document:
    created = max(0, len(sequence.prompt) - sequence.local_tokens - sequence.external_tokens)
    return {"cached_tokens": sequence.cached_tokens, "created_cache_tokens": created}
