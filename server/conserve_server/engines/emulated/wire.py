"""What both generating routes put on the wire: errors, usage, timing, server-sent events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeVar

from pydantic import ValidationError
from starlette.responses import JSONResponse

from conserve_server.engines.emulated.answer import Ask, OutputToken
from conserve_server.engines.emulated.requests import GenerationRequest
from conserve_server.engines.emulated.sequence import Sequence

FINGERPRINT: Final = "emulated"
DONE: Final = b"data: [DONE]\n\n"
Document = dict[str, object]
RequestT = TypeVar("RequestT", bound=GenerationRequest)


class WireError(Exception):
    """An error as vLLM answers it."""

    def __init__(self, message: str, *, kind: str, status: int, param: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.param = param

    def document(self) -> Document:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}}

    def response(self, document: Document | None = None) -> JSONResponse:
        return JSONResponse(document or self.document(), status_code=self.status)


def bad_request(message: str, param: str | None = None) -> WireError:
    return WireError(message, kind="BadRequestError", status=400, param=param)


def unknown_model(asked: str, served: str) -> WireError:
    message = f"The model `{asked}` does not exist. Valid aliases: {served}."
    return WireError(message, kind="NotFoundError", status=404, param="model")


def internal_error() -> WireError:
    """All that vLLM tells a client of a request that failed inside the engine."""
    return WireError("Internal server error", kind="InternalServerError", status=500)


def http_error(status: int, message: str | None = None) -> WireError:
    phrase = HTTPStatus(status).phrase
    return WireError(message or phrase, kind=phrase, status=status)


def validation_error(details: list[dict[str, object]]) -> WireError:
    """A body that is not what the route takes, as FastAPI's validation has it worded."""
    label = "error" if len(details) == 1 else "errors"
    lines = "".join(f"\n  {detail}" for detail in details[:10])
    param = str(details[0]["loc"]) if "loc" in details[0] else None
    return WireError(
        f"{len(details)} validation {label}:{lines}", kind="Bad Request", status=400, param=param
    )


def parse_body(body: bytes) -> object:
    """The body's JSON. Raises WireError."""
    try:
        return json.loads(body)
    except UnicodeDecodeError as error:
        raise validation_error([_json_problem("0", str(error))]) from error
    except json.JSONDecodeError as error:
        raise validation_error([_json_problem(str(error.pos), error.msg)]) from error


def validated(model: type[RequestT], document: object) -> RequestT:
    """The request. Raises WireError listing what does not fit."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        details: list[dict[str, object]] = [
            {"type": e["type"], "loc": ".".join(map(str, ("body", *e["loc"]))), "msg": e["msg"]}
            for e in error.errors(include_input=False)
        ]
        raise validation_error(details) from error


def _json_problem(position: str, message: str) -> dict[str, object]:
    return {
        "type": "json_invalid",
        "loc": f"body.{position}",
        "msg": "JSON decode error",
        "ctx": {"error": message},
    }


@dataclass(frozen=True, slots=True)
class Job:
    """A request in the engine's terms, whichever route it came by."""

    id: str
    model: str
    created: int
    prompt: list[int]
    ask: Ask
    is_stream: bool = False
    includes_usage: bool = False
    includes_running_usage: bool = False
    returns_token_ids: bool = False
    kv_params: Mapping[str, Any] = field(default_factory=dict)
    session: str | None = None
    salt: str | None = None


class Dialect(Protocol):
    """How one route reads requests and writes answers."""

    def read(self, document: object, *, model: str, request_id: str | None, context_tokens: int) -> Job: ...

    def opening(self, job: Job) -> list[Document]:
        """The events that go before any token."""
        ...

    def chunk(self, job: Job, sequence: Sequence, token: OutputToken, *, is_last: bool) -> list[Document]: ...

    def closing(self, job: Job, sequence: Sequence) -> list[Document]:
        """The events that go after the last token."""
        ...

    def whole(self, job: Job, sequence: Sequence) -> Document: ...

    def failure(self, error: WireError) -> Document:
        """The error as this route's clients read it."""
        ...

    def encode(self, document: Document) -> bytes:
        """One server-sent event."""
        ...

    @property
    def end(self) -> bytes:
        """What goes after the last event."""
        ...


class UnnamedEvents:
    """Events and errors of OpenAI's completions."""

    end = DONE

    def failure(self, error: WireError) -> Document:
        return error.document()

    def encode(self, document: Document) -> bytes:
        return event(document)


class NamedEvents:
    """Events that name their type in a line of their own, as Responses and Messages have it."""

    end = b""

    def failure(self, error: WireError) -> Document:
        return error.document()

    def encode(self, document: Document) -> bytes:
        return f"event: {document.get('type', 'error')}\n".encode() + event(document)


def output_limit(request: GenerationRequest, prompt_tokens: int, context_tokens: int) -> int:
    """The most tokens that the answer may have, at least 1. Raises WireError."""
    asked = request.token_limit
    if prompt_tokens == 0:
        raise bad_request("You must pass at least one token in the prompt.", "prompt")
    if prompt_tokens > context_tokens:
        raise bad_request(
            f"This model's maximum context length is {context_tokens} tokens. However, your prompt contains "
            f"{prompt_tokens} input tokens, which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt.",
            "input_tokens",
        )
    if asked is not None and asked > context_tokens:
        raise bad_request(
            f"max_tokens={asked} cannot be greater than max_model_len={context_tokens}. "
            "Please request fewer output tokens.",
            "max_tokens",
        )
    limit = min(context_tokens - prompt_tokens, context_tokens if asked is None else asked)
    if limit < 1:
        raise bad_request(f"max_tokens must be at least 1, got {limit}.", "max_tokens")
    if request.min_tokens > limit:
        raise bad_request(
            f"min_tokens must be less than or equal to max_tokens={limit}, got {request.min_tokens}."
        )
    return limit


def usage(sequence: Sequence) -> Document:
    """Token counts so far."""
    prompt = len(sequence.prompt)
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + sequence.produced_tokens,
        "completion_tokens": sequence.produced_tokens,
    }


def request_metrics(sequence: Sequence) -> Document:
    """vLLM's per-request timing: TTFT and generation from the moment the request was scheduled."""
    scheduled_s, first_s, last_s = sequence.scheduled_s, sequence.first_token_s, sequence.last_token_s
    if scheduled_s is None or first_s is None or last_s is None:
        return {}
    tokens = sequence.produced_tokens
    decode_s, busy_s = last_s - first_s, last_s - scheduled_s
    return {
        "time_to_first_token_ms": (first_s - scheduled_s) * 1000,
        "generation_time_ms": decode_s * 1000,
        "queue_time_ms": (scheduled_s - sequence.arrived_s) * 1000,
        "mean_itl_ms": decode_s / (tokens - 1) * 1000 if tokens > 1 else None,
        "tokens_per_second": tokens / busy_s if busy_s > 0 else None,
        "speculative_decoding": None,
    }


def event(document: Document) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def without_none(document: Mapping[str, object]) -> Document:
    """The document without its nulls, as vLLM writes its usage chunk."""
    return {
        key: without_none(value) if isinstance(value, dict) else value
        for key, value in document.items()
        if value is not None
    }
