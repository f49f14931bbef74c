"""The emulated engine as an ASGI application: everything is put together here."""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx2
from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conserve_sdk.protocol import RECEIPT_EMULATED
from conserve_server.core.clock import Clock
from conserve_server.core.errors import ConfigError
from conserve_server.engines.emulated.chat import ChatDialect
from conserve_server.engines.emulated.completion import CompletionDialect
from conserve_server.engines.emulated.config import EmulatedConfig
from conserve_server.engines.emulated.conversation_kv import conversation_routes
from conserve_server.engines.emulated.fault_actor import FaultActor
from conserve_server.engines.emulated.faults import Fault, FaultBook
from conserve_server.engines.emulated.generation import Generation
from conserve_server.engines.emulated.handover import LeaseBook, LeaseRefused, Puller
from conserve_server.engines.emulated.loop import EngineLoop
from conserve_server.engines.emulated.messages import MessagesDialect, count_tokens
from conserve_server.engines.emulated.metrics import EngineMetrics
from conserve_server.engines.emulated.pages import Pages
from conserve_server.engines.emulated.responses import ResponsesDialect, stored_routes
from conserve_server.engines.emulated.tokenizing import tokenize_routes
from conserve_server.engines.emulated.wire import Dialect, WireError, bad_request, http_error, parse_body
from conserve_server.engines.wire import CHAT_PATH, COMPLETIONS_PATH, MESSAGES_PATH, RESPONSES_PATH

_log = logging.getLogger(__name__)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read once: many engines may run in one process."""
    return httpx2.create_ssl_context(trust_env=False)


def create_emulated_engine(
    config: EmulatedConfig,
    clock: Clock,
    *,
    peers: httpx2.AsyncBaseTransport | None = None,
    die: Callable[[], None] | None = None,
) -> Starlette:
    """An engine that speaks vLLM's wire; it works while the application's lifespan is entered.

    `peers` carries the requests to the engines from which it pulls KV (None: the network).
    `die` is what the fault of that name does; None only drops the connection.
    """
    client = httpx2.AsyncClient(
        transport=peers, trust_env=False, timeout=config.pull_timeout_s, verify=_certificates()
    )
    metrics = EngineMetrics(config)
    loop = EngineLoop(config, clock, metrics, Puller(config, clock, client))
    metrics.show(loop)
    faults = FaultBook.of(config.faults)
    pages = Pages()
    actor = FaultActor(clock, die or _drop_only)
    responses = ResponsesDialect()
    dialects: dict[str, Dialect] = {
        CHAT_PATH: ChatDialect(),
        COMPLETIONS_PATH: CompletionDialect(),
        RESPONSES_PATH: responses,
        MESSAGES_PATH: MessagesDialect(),
    }
    return Starlette(
        routes=[
            *(
                Route(path, Generation(dialect, config, clock, loop, faults, actor), methods=["POST"])
                for path, dialect in dialects.items()
            ),
            *stored_routes(responses),
            Route(MESSAGES_PATH + "/count_tokens", _count_route(config), methods=["POST"]),
            *tokenize_routes(config),
            *_looks(config, metrics),
            *conversation_routes(loop.conversations, config),
            Route("/emulated/kv/{engine_id}/{request_id}", _lease_route(loop.leases), methods=_LEASE_METHODS),
            Route("/emulated/faults", _fault_route(faults), methods=["POST", "DELETE"]),
            pages.route(),
        ],
        middleware=[Middleware(_SaysEmulated), Middleware(pages.before)],
        exception_handlers={HTTPException: _http_error},
        lifespan=lambda _: _running(loop, client),
    )


def _drop_only() -> None:
    """Where no process can be ended, the connection's end has to do."""


class _Stopped(Exception):
    """Ends the engine's task group."""


@asynccontextmanager
async def _running(loop: EngineLoop, client: httpx2.AsyncClient) -> AsyncIterator[None]:
    async def stop() -> None:
        raise _Stopped

    try:
        async with client, asyncio.TaskGroup() as group:
            group.create_task(loop.run(group))
            yield
            group.create_task(stop())
    except* _Stopped:
        _log.debug("emulated engine stopped")


class _SaysEmulated:
    """Puts the header that says so on every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (RECEIPT_EMULATED.encode(), b"true")]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, marked)


def _looks(config: EmulatedConfig, metrics: EngineMetrics) -> list[Route]:
    """The routes that only tell."""
    card = {
        "id": config.model,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "conserve-emulated",
        "root": config.model,
        "parent": None,
        "max_model_len": config.context_tokens,
        "permission": [],
    }

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def health(_: Request) -> Response:
        return Response()

    async def version(_: Request) -> Response:
        return JSONResponse({"version": "emulated"})

    async def scrape(_: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    named = {"/v1/models": models, "/health": health, "/version": version, "/metrics": scrape}
    return [Route(path, endpoint) for path, endpoint in named.items()]


def _count_route(config: EmulatedConfig) -> _Endpoint:
    async def count(request: Request) -> Response:
        try:
            document = parse_body(await request.body())
            return JSONResponse(count_tokens(document, config.model, config.context_tokens))
        except WireError as error:
            return error.response(MessagesDialect().failure(error))

    return count


_LEASE_METHODS = ["POST", "PUT", "DELETE"]
_Endpoint = Callable[[Request], Awaitable[Response]]


def _lease_route(leases: LeaseBook) -> _Endpoint:
    """Pull (POST), renew (PUT) or give up (DELETE) the KV held for one request."""

    async def lease(request: Request) -> Response:
        engine_id, request_id = request.path_params["engine_id"], request.path_params["request_id"]
        try:
            if request.method == "POST":
                return JSONResponse({"block_hashes": leases.pull(engine_id, request_id)})
            if request.method == "PUT":
                leases.renew(engine_id, request_id)
            elif engine_id == leases.engine_id:
                leases.free(request_id)
        except LeaseRefused as refused:
            return http_error(refused.status, str(refused)).response()
        return Response(status_code=204)

    return lease


_FAULT = TypeAdapter(Fault)


def _fault_route(faults: FaultBook) -> _Endpoint:
    """Ask for a fault (POST) or forget those still to happen (DELETE)."""

    async def fault(request: Request) -> Response:
        if request.method == "DELETE":
            faults.clear()
            return Response(status_code=204)
        try:
            faults.add(_FAULT.validate_python(parse_body(await request.body())))
        except WireError as error:
            return error.response()
        except (ValidationError, ConfigError) as error:
            return bad_request(f"not a fault: {error}").response()
        return Response(status_code=204)

    return fault


async def _http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return http_error(error.status_code, error.detail).response()
