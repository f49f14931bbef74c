"""The gateway as one ASGI application: what serves (`serving/wiring.py`), and how it is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

from opentelemetry.trace import Tracer
from starlette.applications import Starlette
from starlette.routing import Route

from conserve_server.core.clock import Clock
from conserve_server.core.config import Config
from conserve_server.engines.engine import EngineSpec
from conserve_server.engines.wire import API_OF
from conserve_server.gateway.http.body import BodyMemory
from conserve_server.gateway.http.connections import CONNECTION_LIMITS, ConnectionLimits
from conserve_server.gateway.http.error_answers import EXCEPTION_HANDLERS
from conserve_server.gateway.http.middlewares import middleware_of
from conserve_server.gateway.http.refusals import Refusals
from conserve_server.gateway.http.turn_protocol import TURN_ROUTES
from conserve_server.gateway.routes.admin import AdminRoutes
from conserve_server.gateway.routes.conversations import ConversationRoutes
from conserve_server.gateway.routes.live import LiveRoutes
from conserve_server.gateway.routes.openapi import openapi_route
from conserve_server.gateway.routes.page import page_routes
from conserve_server.gateway.routes.pass_through import PassThrough
from conserve_server.gateway.routes.service import Routes
from conserve_server.gateway.routes.turns import TurnEndpoint
from conserve_server.scheduling.policy import Policy
from conserve_server.serving.asked.limits import BodyLimits
from conserve_server.serving.asked.tenants import Tenants
from conserve_server.serving.driving.background import Background
from conserve_server.serving.records.live_view import LiveView
from conserve_server.serving.turns.draining import Draining
from conserve_server.serving.turns.energy_books import GatewayEnergy
from conserve_server.serving.wiring import Given, Serving, begin_loops, build


@dataclass(frozen=True, slots=True)
class _Http:
    """How what serves is asked."""

    endpoint: TurnEndpoint
    refusals: Refusals
    routes: list[Route]


def create_app(
    config: Config,
    *,
    engines: Sequence[EngineSpec],
    policy: Policy,
    clock: Clock,
    tracer: Tracer,
    load: Callable[[], Config] | None = None,
    draining: Draining | None = None,
) -> Starlette:
    """The gateway over these engines. Its parts live as long as the application's lifespan.

    `load` reads the configuration again, for a reload; `draining` is how its server tells it to
    stop. While it runs, `app.state.reload()` applies a changed configuration, and `app.state.problem()`
    says why it can't go on, or None.
    Raises ConfigError where the tenants' keys can't be used.
    """
    tenants = Tenants.from_config(config.gateway)
    energy = GatewayEnergy.from_config(config, engines, clock)
    stopping, background = draining or Draining(), Background(clock)
    given = Given(config, engines, policy, clock, tracer, tenants, load, stopping, energy, background)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, object]]:
        with ExitStack() as stack:
            serving = build(given, stack)
            http = _http(given, serving)
            app.router.routes.extend(http.routes)
            app.state.refusals = http.refusals
            app.state.reload = lambda: serving.reload.apply(clock.now_s())
            async with energy.opened(), background.running(serving.metrics.background_failed):
                begin_loops(serving, given)
                yield _for_connections(http, config)

    app = Starlette(
        lifespan=lifespan,
        middleware=middleware_of(config),
        exception_handlers=EXCEPTION_HANDLERS,
    )
    app.state.problem = lambda: background.problem
    return app


def _for_connections(http: _Http, config: Config) -> dict[str, object]:
    """What the server's protocol reads at each connection."""
    limits = ConnectionLimits.from_config(config.gateway, http.refusals.note)
    return {
        TURN_ROUTES: {path.encode(): http.endpoint for path in API_OF},
        CONNECTION_LIMITS: limits,
    }


def _http(given: Given, serving: Serving) -> _Http:
    gateway, tenants, energy = given.config.gateway, given.tenants, given.energy
    scheduler, conversations, cluster = (
        serving.coordinator.scheduler,
        serving.conversations,
        serving.cluster,
    )
    refusals, body_memory = Refusals(serving.metrics), BodyMemory(gateway.max_held_body_bytes)
    endpoint, passing = _endpoints(given, serving, refusals, body_memory)
    of_service = Routes(
        cluster=cluster,
        coordinator=serving.coordinator,
        metrics=serving.metrics,
        tenants=tenants,
        energy=energy,
        metrics_need_admin_key=gateway.metrics_need_admin_key,
        draining=given.draining,
        background=given.background,
    )
    of_conversations = ConversationRoutes(
        conversations,
        scheduler,
        tenants,
        energy.factors,
        body_memory,
        body_timeout_s=gateway.body_timeout_s,
    )
    of_admin = AdminRoutes(
        cluster=cluster, drains=serving.drains, reload=serving.reload, tenants=tenants, clock=given.clock
    )
    view = LiveView(conversations.log, scheduler, cluster, given.clock)
    live = LiveRoutes(view, tenants, refusals, write_timeout_s=gateway.write_timeout_s)
    turns = [Route(path, endpoint, methods=["POST"]) for path in API_OF]
    tables = [each.table() for each in (of_service, of_conversations, of_admin, passing, live)]
    every = [*turns, openapi_route(), *page_routes(), *(route for table in tables for route in table)]
    return _Http(endpoint, refusals, every)


def _endpoints(
    given: Given, serving: Serving, refusals: Refusals, body_memory: BodyMemory
) -> tuple[TurnEndpoint, PassThrough]:
    """What takes requests that engines answer; both count against one limit of a tenant."""
    gateway, conversations = given.config.gateway, serving.conversations
    body_limits = BodyLimits(gateway.max_body_bytes, gateway.body_timeout_s)
    endpoint = TurnEndpoint(
        turns=serving.turns,
        cluster=serving.cluster,
        tenants=given.tenants,
        limits=serving.limits,
        recognition=conversations.recognition,
        stored_responses=conversations.stored_responses,
        rules=serving.rules,
        body_limits=body_limits,
        body_memory=body_memory,
        write_timeout_s=gateway.write_timeout_s,
        refusals=refusals,
    )
    passing = PassThrough(
        cluster=serving.cluster,
        tenants=given.tenants,
        limits=serving.limits,
        body_limits=body_limits,
        body_memory=body_memory,
        stored_responses=conversations.stored_responses,
        rules=serving.rules,
        write_timeout_s=gateway.write_timeout_s,
        refusals=refusals,
    )
    return endpoint, passing
