"""Our errors as the bodies of each API: the one place that maps them."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from conserve_server.core.errors import (
    DeadlyRequest,
    EngineRefused,
    LimitReached,
    NoCapacity,
    TurnError,
    Unauthorized,
)
from conserve_server.engines.wire import MESSAGES_PATH, RESPONSES_PATH, Api

_ANTHROPIC_KINDS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's names; any other status is its `api_error`."""
NOSNIFF: Final = {"x-content-type-options": "nosniff"}
"""On every answer: a browser must not take what an engine wrote for a page."""


def api_of(path: str) -> Api:
    """The API whose clients read the errors of this path."""
    if path.startswith(MESSAGES_PATH):
        return Api.MESSAGES
    return Api.RESPONSES if path.startswith(RESPONSES_PATH) else Api.COMPLETIONS


def error_document(error: TurnError, api: Api = Api.COMPLETIONS) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}` as OpenAI's clients read it, or Anthropic's form of it."""
    if api is Api.MESSAGES:
        kind = _ANTHROPIC_KINDS.get(error.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": str(error), "code": error.code}}
    return {
        "error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.code},
    }


def error_body(error: TurnError, api: Api = Api.COMPLETIONS) -> bytes:
    """The error as an answer's body; an engine's refusal in the engine's own words, where those are JSON."""
    if isinstance(error, EngineRefused) and error.body.startswith(b"{"):
        return error.body
    return msgspec.json.encode(error_document(error, api))


def error_headers(error: TurnError) -> dict[str, str]:
    """`retry-after` in whole seconds where trying again makes sense, and the scheme of a missing key."""
    if isinstance(error, (NoCapacity, LimitReached)):
        return {"retry-after": str(math.ceil(error.retry_after_s))}
    if isinstance(error, Unauthorized) and error.status == 401:
        return {"www-authenticate": "Bearer"}
    if isinstance(error, DeadlyRequest):
        return {"x-should-retry": "false"}  # OpenAI's and Anthropic's clients heed it
    if error.status == 408:
        return {"connection": "close"}  # the rest of the body is not waited for
    return {}


def error_event(error: TurnError, api: Api = Api.COMPLETIONS) -> bytes:
    """The error as the last event of a stream that has already begun."""
    name = b"" if api is Api.COMPLETIONS else b"event: error\n"
    return name + b"data: " + msgspec.json.encode(_event_document(error, api)) + b"\n\n"


def _event_document(error: TurnError, api: Api) -> dict[str, Any]:
    document = error_document(error, api)
    # OpenAI's client raises what it finds under `error`; the specification has it beside the type.
    return {"type": "error", **document["error"], **document} if api is Api.RESPONSES else document
