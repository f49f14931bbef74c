"""The answer to one client over ASGI: headers once, then bytes, then an end."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.types import Receive, Send

from conserve_server.core.errors import InvalidRequest, TurnError
from conserve_server.gateway.errors import error_document, error_event, error_headers


class Reply:
    """Writes one answer. A slow reader holds `write` back; nothing is gathered here."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_event_stream = False
        self.has_started = False

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        self.has_started = True
        self._is_event_stream = headers.get("content-type", "").startswith("text/event-stream")
        raw = [(name.encode("latin-1"), _latin(value)) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, chunk: bytes) -> None:
        if chunk:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def finish(self, last: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    async def document(self, status: int, document: object, headers: Mapping[str, str]) -> None:
        """A whole JSON answer."""
        body = msgspec.json.encode(document)
        length = {"content-type": "application/json", "content-length": str(len(body))}
        await self.start(status, {**length, **headers})
        await self.finish(body)

    async def fail(self, error: TurnError, headers: Mapping[str, str]) -> None:
        """The error in OpenAI's shape: as the answer, or as the last event of a stream that has begun."""
        if not self.has_started:
            await self.document(error.status, error_document(error), {**headers, **error_headers(error)})
            return
        if self._is_event_stream:
            await self.write(error_event(error))
        await self.finish()


def _latin(text: str) -> bytes:
    return text.encode("latin-1", errors="replace")


async def read_body(receive: Receive, limit_bytes: int, *, fix: str) -> bytes:
    """The request's whole body. Raises InvalidRequest (413) beyond the limit, ClientGone if it breaks off.

    `fix` says what to do about a body that is too large.
    """
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit_bytes:
            raise InvalidRequest(
                f"the body is larger than {limit_bytes} bytes: {fix}",
                code="body_too_large",
                status=413,
            )
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def wait_disconnect(receive: Receive) -> None:
    """Return once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


class ClientGone(Exception):
    """The client hung up before its request was read."""
