"""A request's id: the client's own, made safe, or a new one; in every answer, span, engine and log."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conserve_server.gateway.http.errors import NOSNIFF
from conserve_server.serving.client import REQUEST_ID

MAX_LENGTH: Final = 128
"""Longer than any tracer's or proxy's id; engines and logs repeat it."""
_SAFE: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.:")


def request_id_of(scope: Scope, headers: Mapping[str, str]) -> str:
    """The request's id, the same however often it is asked for."""
    known: str | None = scope.get(REQUEST_ID)
    if known is None:
        known = scope[REQUEST_ID] = clean_request_id(headers.get(REQUEST_ID)) or os.urandom(16).hex()
    return known


def clean_request_id(text: str | None) -> str:
    """What of a client's id is kept: letters, digits and `-_.:`, safe wherever it goes; maybe nothing."""
    if not text:
        return ""
    return "".join(c for c in text[:MAX_LENGTH] if c in _SAFE)


class AnswersRequestId:
    """Middleware: every answer names its request, and is what its type says.

    Turns are left alone, their replies do so themselves.
    """

    def __init__(self, app: ASGIApp, turn_paths: frozenset[str]) -> None:
        self._app = app
        self._turn_paths = turn_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_turn = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._turn_paths
        if scope["type"] != "http" or is_turn:
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope, Headers(scope=scope))

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                headers.update(NOSNIFF)
            await send(message)

        await self._app(scope, receive, named)
