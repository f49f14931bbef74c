"""Our errors as OpenAI's error bodies: the one place that maps them."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from conserve_server.core.errors import LimitReached, NoCapacity, TurnError, Unauthorized


def error_document(error: TurnError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`, as OpenAI's clients read it."""
    return {
        "error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.code},
    }


def error_headers(error: TurnError) -> dict[str, str]:
    """`retry-after` in whole seconds where trying again makes sense, and the scheme of a missing key."""
    if isinstance(error, (NoCapacity, LimitReached)):
        return {"retry-after": str(math.ceil(error.retry_after_s))}
    if isinstance(error, Unauthorized) and error.status == 401:
        return {"www-authenticate": "Bearer"}
    return {}


def error_event(error: TurnError) -> bytes:
    """The error as the last event of a stream that has already begun."""
    return b"data: " + msgspec.json.encode(error_document(error)) + b"\n\n"
