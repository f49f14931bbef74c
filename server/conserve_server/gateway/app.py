"""The gateway as one ASGI application: the only place that builds its parts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from opentelemetry.trace import Tracer
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_server.core.clock import Clock
from conserve_server.core.config import Config
from conserve_server.core.errors import InvalidRequest, TurnError
from conserve_server.engines.engine import EngineSpec
from conserve_server.engines.vllm import VllmEngine
from conserve_server.gateway.cluster import Cluster
from conserve_server.gateway.coordinator import Coordinator
from conserve_server.gateway.engine_profiles import engine_profiles
from conserve_server.gateway.errors import error_document, error_headers
from conserve_server.gateway.record import EXPIRED, ConversationLog
from conserve_server.gateway.routes import Routes
from conserve_server.gateway.turn import Turns
from conserve_server.gateway.turn_endpoint import TurnEndpoint
from conserve_server.scheduling.policy import Policy
from conserve_server.scheduling.scheduler import Scheduler
from conserve_server.telemetry.metrics import GatewayMetrics

COMPLETIONS = ("/v1/chat/completions", "/v1/completions")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What one running gateway is made of."""

    endpoint: TurnEndpoint
    routes: Routes
    cluster: Cluster
    coordinator: Coordinator
    conversations: ConversationLog


def create_app(
    config: Config, *, engines: Sequence[EngineSpec], policy: Policy, clock: Clock, tracer: Tracer
) -> Starlette:
    """The gateway over these engines. Its parts live as long as the application's lifespan."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)  # the scheduler bounds what runs, not the socket pool
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            parts = _build(config, engines, policy, clock, tracer, session)
            app.router.routes.extend(_routes(parts))
            async with asyncio.TaskGroup() as background:
                tasks = _start_background(background, parts, config, clock)
                try:
                    yield
                finally:
                    for task in tasks:
                        task.cancel()

    return Starlette(
        lifespan=lifespan,
        exception_handlers={
            TurnError: _answer_error,
            HTTPException: _answer_http_error,
            Exception: _answer_bug,
        },
    )


def _build(
    config: Config,
    specs: Sequence[EngineSpec],
    policy: Policy,
    clock: Clock,
    tracer: Tracer,
    session: aiohttp.ClientSession,
) -> _Parts:
    gateway = config.gateway
    scheduler = Scheduler(
        policy,
        engines=engine_profiles(config, specs),
        kv_budget_fraction=config.scheduler.kv_budget_fraction,
        estimates=config.scheduler.estimates,
    )
    coordinator = Coordinator(
        scheduler, clock, max_wait_s=gateway.max_wait_s, leg_timeout_s=gateway.turn_timeout_s
    )
    metrics = GatewayMetrics()
    conversations = ConversationLog(gateway.ended_kept)
    engines = [VllmEngine(spec, session, silence_timeout_s=gateway.turn_timeout_s) for spec in specs]
    cluster = Cluster(engines, coordinator, metrics)
    turns = Turns(
        coordinator=coordinator,
        cluster=cluster,
        log=conversations,
        metrics=metrics,
        tracer=tracer,
        clock=clock,
    )
    routes = Routes(cluster=cluster, coordinator=coordinator, log=conversations, metrics=metrics)
    endpoint = TurnEndpoint(turns, cluster, gateway.max_body_bytes)
    return _Parts(endpoint, routes, cluster, coordinator, conversations)


def _routes(parts: _Parts) -> list[Route]:
    turns = [Route(path, parts.endpoint, methods=["POST"]) for path in COMPLETIONS]
    return [*turns, *parts.routes.table()]


def _start_background(
    group: asyncio.TaskGroup, parts: _Parts, config: Config, clock: Clock
) -> list[asyncio.Task[None]]:
    interval_s = config.gateway.probe_interval_s
    watches = [
        group.create_task(parts.cluster.watch(engine, clock, interval_s), name=f"watch {engine.spec.name}")
        for engine in parts.cluster.engines
    ]
    expiry = group.create_task(_expire_idle(parts, clock, config.gateway.idle_timeout_s, interval_s))
    return [*watches, expiry]


async def _expire_idle(parts: _Parts, clock: Clock, idle_timeout_s: float, interval_s: float) -> None:
    """End conversations that have been without a turn for too long."""
    while True:
        await clock.sleep(interval_s)
        for conversation_id in parts.coordinator.scheduler.idle_since(clock.now_s() - idle_timeout_s):
            log.info("conversation %r expired after %g s without a turn", conversation_id, idle_timeout_s)
            parts.coordinator.expire_conversation(conversation_id)
            parts.conversations.end(conversation_id, EXPIRED)


async def _answer_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, TurnError):
        raise error
    return JSONResponse(error_document(error), error.status, error_headers(error))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    known = ", ".join((*COMPLETIONS, "/v1/models", "/v1/conversations/{id}", "/health", "/metrics"))
    message = f"{request.method} {request.url.path}: {error.detail}; this gateway serves {known}"
    wrong = InvalidRequest(message, code="no_such_route", status=error.status_code)
    return JSONResponse(error_document(wrong), error.status_code, error.headers)


async def _answer_bug(_request: Request, error: Exception) -> Response:
    problem = TurnError(f"the gateway failed: {type(error).__name__}", code="internal_error")
    return JSONResponse(error_document(problem), 500)
