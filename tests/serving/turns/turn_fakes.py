"""Clients and engines of turns without HTTP: each does what its turn says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from starlette.types import Message

from conserve_server.core.errors import EngineFailed
from conserve_server.engines.engine import EngineSpec, EngineStatus, PrefillAnswer
from conserve_server.serving.client import REQUEST_ID, ClientStalled

MODEL = "m"
USAGE = {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}
NO_USAGE = {"prompt_tokens": 0, "completion_tokens": -1, "total_tokens": -1}


class End(StrEnum):
    """How a turn ends if nothing of the gateway fails."""

    COMPLETED = "completed"
    REFUSED = "refused"
    PREFILL_LOST = "prefill lost"
    DECODE_FAILS = "decode fails"
    CUT_OFF = "cut off"
    LOST_AFTERWARDS = "lost afterwards"
    MISCOUNTED = "miscounted"
    GONE_AT_FIRST_LEG = "gone at first leg"
    GONE_IN_ANSWER = "gone in answer"
    STALLED = "stalled"


@dataclass(frozen=True)
class Asked:
    """One turn: of which conversation (None: of no name), and how it is to end."""

    conversation: str | None
    end: End = End.COMPLETED
    is_streamed: bool = True


@dataclass
class Client:
    """What one turn's client was told, what engines were sent for it, and the end of its patience."""

    asked: Asked
    sent: list[tuple[str, str, int]] = field(default_factory=list)
    told: list[Message] = field(default_factory=list)
    hangs: asyncio.Event = field(default_factory=asyncio.Event)
    was_cancelled: bool = False

    async def send(self, message: Message) -> None:
        if self.asked.end is End.STALLED:
            raise ClientStalled("the client took nothing", code="client_stalled")
        self.told.append(message)

    @property
    def status(self) -> int | None:
        return self.told[0]["status"] if self.told else None

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.told[1:])

    @property
    def is_whole(self) -> bool:
        """Whether the answer has had its end, and one only."""
        ends = [not message.get("more_body", False) for message in self.told[1:]]
        return bool(ends) and ends[-1] and sum(ends) == 1


class FakeAnswer:
    def __init__(self, client: Client, status: int = 200) -> None:
        self._client = client
        self.status = status
        streamed = client.asked.is_streamed and status == 200
        self.headers: Mapping[str, str] = {
            "content-type": "text/event-stream" if streamed else "application/json"
        }

    async def chunks(self) -> AsyncIterator[bytes]:
        asked = self._client.asked
        if self.status != 200:
            yield json.dumps({"error": {"message": "no", "type": "BadRequestError", "code": 400}}).encode()
            return
        usage = NO_USAGE if asked.end is End.MISCOUNTED else USAGE
        pieces = _events(usage) if asked.is_streamed else [_document(usage)]
        for number, piece in enumerate(pieces):
            if number == len(pieces) // 2 and asked.end is End.CUT_OFF:
                raise EngineFailed("broke off", code="engine_lost", engine="d0")
            if number == len(pieces) // 2 and asked.end is End.GONE_IN_ANSWER:
                await _hang(self._client)
            yield piece


@dataclass
class FakeEngine:
    """Does to each turn what the turn says."""

    spec: EngineSpec
    clients: dict[str, Client]

    async def look(self) -> EngineStatus:
        raise NotImplementedError

    async def prefill(self, path: str, body: bytes, headers: Mapping[str, str]) -> PrefillAnswer:
        client = self._sent("POST", path, body, headers)
        if client.asked.end is End.GONE_AT_FIRST_LEG:
            await _hang(client)
        if client.asked.end is End.PREFILL_LOST:
            raise EngineFailed("broke off", code="engine_lost", engine=self.spec.name)
        if client.asked.end is End.MISCOUNTED:
            return PrefillAnswer(b'{"remote_engine_id":"p"}', 0, 7)
        return PrefillAnswer(b'{"remote_engine_id":"p"}', 20, 0)

    @asynccontextmanager
    async def send(
        self, path: str, body: bytes, headers: Mapping[str, str], *, method: str = "POST"
    ) -> AsyncIterator[FakeAnswer]:
        client = self._sent(method, path, body, headers)
        if client.asked.end is End.GONE_AT_FIRST_LEG:
            await _hang(client)
        if client.asked.end is End.DECODE_FAILS:
            raise EngineFailed("status 500", code="engine_error", engine=self.spec.name)
        yield FakeAnswer(client, 400 if client.asked.end is End.REFUSED else 200)
        if client.asked.end is End.LOST_AFTERWARDS:
            raise EngineFailed("broke off", code="engine_lost", engine=self.spec.name)

    def _sent(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Client:
        client = self.clients[headers[REQUEST_ID]]
        client.sent.append((method, path, len(body)))
        return client


async def _hang(client: Client) -> None:
    client.hangs.set()
    await asyncio.Event().wait()


def _events(usage: dict[str, int]) -> list[bytes]:
    deltas = [{"role": "assistant", "content": ""}, {"content": "the tide"}, {"content": " turns"}]
    choices: list[dict[str, object]] = [
        {"index": 0, "delta": delta, "finish_reason": None} for delta in deltas
    ]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    chunk: dict[str, object] = {"id": "c", "object": "chat.completion.chunk", "model": MODEL}
    documents = [{**chunk, "choices": [choice]} for choice in choices]
    documents.append({**chunk, "choices": [], "usage": usage})
    lines = [json.dumps(document) for document in documents]
    return [f"data: {line}\n\n".encode() for line in (*lines, "[DONE]")]


def _document(usage: dict[str, int]) -> bytes:
    message = {"role": "assistant", "content": "the tide turns"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
