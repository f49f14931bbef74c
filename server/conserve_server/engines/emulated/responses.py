"""`/v1/responses` as vLLM speaks it: the same engine, other words, and answers stored by their ids.

A real engine stores answers only where `VLLM_ENABLE_RESPONSES_API_STORE=1`; this one always does.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any, Final, TypeVar
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_server.engines.emulated.answer import OutputToken
from conserve_server.engines.emulated.chat import ChatDialect
from conserve_server.engines.emulated.requests import GenerationRequest
from conserve_server.engines.emulated.sequence import Sequence
from conserve_server.engines.emulated.wire import (
    Document,
    Job,
    NamedEvents,
    WireError,
    bad_request,
    request_metrics,
    validated,
    without_none,
)
from conserve_server.engines.wire import RESPONSES_PATH

KEPT: Final = 1000
Messages = list[Document]
T = TypeVar("T")


class ResponsesRequest(GenerationRequest):
    """The body, as far as the emulated engine reads it. Only text and function calls have tokens here."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    store: bool | None = True
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None

    def new_messages(self) -> Messages:
        """What this request adds to its conversation, as chat messages."""
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        return [_message(item) for item in self.input if item.get("type") != "reasoning"]

    def as_chat(self, before: Messages) -> Document:
        """The same request in the words of a chat."""
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        chat: Document = {"messages": [*system, *before, *self.new_messages()], "model": self.model}
        chat |= {"max_tokens": self.max_output_tokens, "stream": self.stream}
        chat |= {"kv_transfer_params": self.kv_transfer_params, "cache_salt": self.cache_salt}
        chat["session_id"] = self.session_id
        functions = [t for t in self.tools or [] if t.get("type") == "function"]
        if functions:
            chat["tools"] = [{"function": {k: v for k, v in t.items() if k != "type"}} for t in functions]
            chat["tool_choice"] = _tool_choice(self.tool_choice)
        return without_none(chat)


class ResponsesDialect(NamedEvents):
    """Reads requests of the Responses API, writes its answers, and remembers the latest of them."""

    def __init__(self) -> None:
        self._chat = ChatDialect()
        self._asked: OrderedDict[str, ResponsesRequest] = OrderedDict()
        self._messages: OrderedDict[str, Messages] = OrderedDict()
        self.stored: OrderedDict[str, Document] = OrderedDict()

    def read(self, document: object, *, model: str, request_id: str | None, context_tokens: int) -> Job:
        request = validated(ResponsesRequest, document)
        before = self._before(request.previous_response_id)
        chat = request.as_chat(before)
        job = self._chat.read(chat, model=model, request_id=request_id, context_tokens=context_tokens)
        response_id = request.request_id or f"resp_{uuid4().hex}"
        job = dataclasses.replace(job, id=response_id, is_stream=bool(request.stream))
        _keep(self._asked, job.id, request)
        _keep(self._messages, job.id, [*before, *request.new_messages()])
        return job

    def opening(self, job: Job) -> list[Document]:
        response = self._response(job, "in_progress", [])
        item = {"type": "message", "id": f"msg_{job.id}", "role": "assistant", "status": "in_progress"}
        return [
            {"type": "response.created", "sequence_number": 0, "response": response},
            {"type": "response.in_progress", "sequence_number": 1, "response": response},
            {
                "type": "response.output_item.added",
                "sequence_number": 2,
                "output_index": 0,
                "item": {**item, "content": []},
            },
            {
                "type": "response.content_part.added",
                "sequence_number": 3,
                "item_id": item["id"],
                "output_index": 0,
                "content_index": 0,
                "part": {"type": "output_text", "text": "", "annotations": []},
            },
        ]

    def chunk(self, job: Job, sequence: Sequence, token: OutputToken, *, is_last: bool) -> list[Document]:  # noqa: ARG002
        """Function calls come whole in the last event."""
        if not token.text:
            return []
        delta: Document = {
            "type": "response.output_text.delta",
            "sequence_number": sequence.produced_tokens + 3,
        }
        where = {"item_id": f"msg_{job.id}", "output_index": 0, "content_index": 0}
        return [{**delta, **where, "delta": token.text, "logprobs": []}]

    def closing(self, job: Job, sequence: Sequence) -> list[Document]:
        number = sequence.produced_tokens + 4
        return [
            {"type": "response.completed", "sequence_number": number, "response": self.whole(job, sequence)}
        ]

    def whole(self, job: Job, sequence: Sequence) -> Document:
        message = self._chat.whole(job, sequence)["choices"][0]["message"]  # type: ignore[index]
        status = "incomplete" if sequence.answer.finish_reason == "length" else "completed"
        response = self._response(job, status, _output(job, message))
        response |= {"usage": _usage(sequence), "metrics": request_metrics(sequence)}
        response["kv_transfer_params"] = sequence.transfer_params
        request = self._asked.pop(job.id, None)
        if request is not None and request.store and not sequence.is_prefill_leg:
            _keep(self.stored, job.id, response)
            self._messages.setdefault(job.id, []).append(message)
        else:
            self._messages.pop(job.id, None)
        return response

    def _before(self, previous: str | None) -> Messages:
        if previous is None:
            return []
        if previous not in self.stored:
            raise response_not_found(previous)
        return self._messages[previous]

    def _response(self, job: Job, status: str, output: list[Document]) -> Document:
        asked = self._asked.get(job.id)
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": job.id,
            "object": "response",
            "created_at": job.created,
            "model": job.model,
            "status": status,
            "incomplete_details": details,
            "instructions": asked.instructions if asked else None,
            "previous_response_id": asked.previous_response_id if asked else None,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": asked.tools or [] if asked else [],
            "temperature": 1.0,
            "top_p": 1.0,
            "background": False,
            "usage": None,
        }


def stored_routes(dialect: ResponsesDialect) -> list[Route]:
    """Stored answers, and their cancellation: none runs in the background here, so none can be cancelled."""

    async def stored(request: Request) -> Response:
        response_id = request.path_params["response_id"]
        if response_id not in dialect.stored:
            return response_not_found(response_id).response()
        if request.method == "POST":
            return bad_request("Cannot cancel a synchronous response.", "response_id").response()
        return JSONResponse(dialect.stored[response_id])

    path = RESPONSES_PATH + "/{response_id}"
    return [Route(path, stored), Route(path + "/cancel", stored, methods=["POST"])]


def response_not_found(response_id: str) -> WireError:
    message = f"Response with id '{response_id}' not found."
    return WireError(message, kind="invalid_request_error", status=404, param="response_id")


def _keep(kept: OrderedDict[str, T], key: str, value: T) -> None:
    kept[key] = value
    if len(kept) > KEPT:
        kept.popitem(last=False)


def _message(item: dict[str, Any]) -> Document:
    """One input item as the chat message that vLLM makes of it."""
    match item.get("type", "message"):
        case "function_call":
            function = {"name": item.get("name", ""), "arguments": item.get("arguments", "")}
            call = {"id": item.get("call_id"), "function": function}
            return {"role": "assistant", "content": None, "tool_calls": [call]}
        case "function_call_output":
            return {"role": "tool", "content": str(item.get("output", ""))}
        case _:
            return {"role": item.get("role", "user"), "content": item.get("content")}


def _tool_choice(choice: str | dict[str, Any] | None) -> object:
    if isinstance(choice, dict):
        return {"function": {"name": choice.get("name", "")}}
    return choice or "auto"


def _output(job: Job, message: Document) -> list[Document]:
    text, calls = message["content"], message.get("tool_calls", [])
    items: list[Document] = []
    if text or not calls:
        part = {"type": "output_text", "text": text or "", "annotations": []}
        head: Document = {
            "type": "message",
            "id": f"msg_{job.id}",
            "role": "assistant",
            "status": "completed",
        }
        items.append({**head, "content": [part]})
    for call in calls if isinstance(calls, list) else []:
        function = {"type": "function_call", "id": f"fc_{call['id']}", "call_id": call["id"]}
        items.append({**function, **call["function"], "status": "completed"})
    return items


def _usage(sequence: Sequence) -> Document:
    prompt, produced = len(sequence.prompt), sequence.produced_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": sequence.cached_tokens},
        "output_tokens": produced,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + produced,
    }
