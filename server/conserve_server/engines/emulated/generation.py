"""One generating request, from its body to its last byte."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from conserve_server.core.clock import Clock
from conserve_server.engines.emulated.answer import Answer, plan_answer
from conserve_server.engines.emulated.config import EmulatedConfig
from conserve_server.engines.emulated.connection import disconnected, drop_connection, unless_disconnected
from conserve_server.engines.emulated.fault_actor import ConnectionDropped, FaultActor
from conserve_server.engines.emulated.faults import Fault, FaultBook
from conserve_server.engines.emulated.loop import EngineLoop
from conserve_server.engines.emulated.schema import SchemaError
from conserve_server.engines.emulated.sequence import KvLoadFailed, Sequence
from conserve_server.engines.emulated.wire import (
    Dialect,
    Job,
    WireError,
    bad_request,
    internal_error,
    parse_body,
    validation_error,
)
from conserve_server.engines.engine import Role

_STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]


class Generation:
    """An ASGI endpoint for one dialect. A client that goes away takes its request out of the engine."""

    def __init__(
        self,
        dialect: Dialect,
        config: EmulatedConfig,
        clock: Clock,
        loop: EngineLoop,
        faults: FaultBook,
        actor: FaultActor,
    ) -> None:
        self._dialect = dialect
        self._config = config
        self._clock = clock
        self._loop = loop
        self._faults = faults
        self._actor = actor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = await request.body()
            await unless_disconnected(receive, self._answer(request, body, send))
        except ClientDisconnect:
            return
        except ConnectionDropped:
            drop_connection(scope)
            await disconnected(receive)

    async def _answer(self, request: Request, body: bytes, send: Send) -> None:
        kv_params: dict[str, Any] = {}
        try:
            document = _document(request, body)
            kv_params = _kv_params(document)
            leg = Role.PREFILL if kv_params.get("do_remote_decode") else Role.DECODE
            fault = self._faults.take(leg, body)
            await self._actor.before(fault)
            job = self._dialect.read(
                document,
                model=self._config.model,
                request_id=request.headers.get("x-request-id"),
                context_tokens=self._config.context_tokens,
            )
            answer = self._plan(job)
        except WireError as error:
            self._loop.refuse(kv_params)
            await error.response(self._dialect.failure(error))(request.scope, request.receive, send)
            return
        session = job.session or request.headers.get("x-session-id")  # the body wins, as in vLLM
        with self._submitted(job, answer, session) as sequence:
            if job.is_stream:
                await self._stream(job, sequence, fault, send)
            else:
                response = await self._whole(job, sequence, fault)
                await response(request.scope, request.receive, send)
                self._actor.after(fault)

    def _plan(self, job: Job) -> Answer:
        try:
            return plan_answer(job.ask, self._config.script, self._config.answer_tokens)
        except SchemaError as error:
            raise bad_request(f"the emulated engine can't fit the schema: {error}") from error

    @contextmanager
    def _submitted(self, job: Job, answer: Answer, session: str | None) -> Iterator[Sequence]:
        """The job in the engine; leaving early takes it out."""
        sequence = Sequence(
            id=f"{job.id}-{uuid4().hex[:8]}",
            prompt=job.prompt,
            answer=answer,
            block_size=self._config.block_size,
            arrived_s=self._clock.now_s(),
            kv_params=job.kv_params,
            session=session,
            salt=job.salt,
        )
        self._loop.submit(sequence)
        try:
            yield sequence
        except BaseException:
            self._loop.drop(sequence)
            raise

    async def _whole(self, job: Job, sequence: Sequence, fault: Fault | None) -> JSONResponse:
        try:
            async for _ in self._actor.tokens(sequence, fault):
                continue
        except KvLoadFailed:
            return internal_error().response(self._dialect.failure(internal_error()))
        except WireError as error:
            self._loop.drop(sequence)
            return error.response(self._dialect.failure(error))
        self._actor.spoil(sequence, fault)
        return JSONResponse(self._dialect.whole(job, sequence))

    async def _stream(self, job: Job, sequence: Sequence, fault: Fault | None, send: Send) -> None:
        """Server-sent events; a failure is an event too, for the status has been sent by then."""
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        try:
            async for part in self._events(job, sequence, fault):
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except KvLoadFailed:
            await self._send_failure(job, internal_error(), send, is_opened=False)
        except WireError as error:
            self._loop.drop(sequence)
            await self._send_failure(job, error, send, is_opened=True)
        await send({"type": "http.response.body", "body": self._dialect.end})

    async def _events(self, job: Job, sequence: Sequence, fault: Fault | None) -> AsyncIterator[bytes]:
        dialect, last, is_opened = self._dialect, sequence.answer.tokens[-1], False
        async for token in self._actor.tokens(sequence, fault):
            documents = [] if is_opened else dialect.opening(job)
            is_opened = True
            documents += dialect.chunk(job, sequence, token, is_last=token is last)
            for document in documents:
                yield dialect.encode(document)
        for document in dialect.closing(job, sequence):
            yield dialect.encode(document)

    async def _send_failure(self, job: Job, error: WireError, send: Send, *, is_opened: bool) -> None:
        """vLLM opens the message before it finds that the request has failed."""
        opening = [] if is_opened else self._dialect.opening(job)
        parts = [self._dialect.encode(document) for document in (*opening, self._dialect.failure(error))]
        await send({"type": "http.response.body", "body": b"".join(parts), "more_body": True})


def _document(request: Request, body: bytes) -> object:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise validation_error([{"msg": "Unsupported Media Type: Only 'application/json' is allowed"}])
    return parse_body(body)


def _kv_params(document: object) -> dict[str, Any]:
    given = document.get("kv_transfer_params") if isinstance(document, dict) else None
    return given if isinstance(given, dict) else {}
