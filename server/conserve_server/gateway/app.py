"""The gateway as one ASGI application: the only place that builds its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from opentelemetry.trace import Tracer
from starlette.applications import Starlette
from starlette.routing import Route

from conserve_server.core.clock import Clock
from conserve_server.core.config import Config, GatewayConfig
from conserve_server.engines.conversation_kv import ConversationKv
from conserve_server.engines.engine import EngineSpec
from conserve_server.engines.vllm import VllmEngine
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
from conserve_server.scheduling.scheduler import Scheduler
from conserve_server.serving.answers.passing_on import PassingOn
from conserve_server.serving.answers.stream_heads import StreamHeads
from conserve_server.serving.asked.engine_fields import EngineFields
from conserve_server.serving.asked.limits import BodyLimits, TurnLimits
from conserve_server.serving.asked.tenants import Tenants
from conserve_server.serving.cluster.cluster import Cluster
from conserve_server.serving.cluster.engine_drains import EngineDrains
from conserve_server.serving.cluster.engine_profiles import profile_of
from conserve_server.serving.cluster.reload import Reload
from conserve_server.serving.conversations import Conversations
from conserve_server.serving.driving.background import Background
from conserve_server.serving.driving.coordinator import Coordinator
from conserve_server.serving.driving.telling import BookErrors
from conserve_server.serving.kv.signals import KvSignals
from conserve_server.serving.records.endings import Endings
from conserve_server.serving.records.live_view import LiveView
from conserve_server.serving.turns.bookkeepers import bookkeepers
from conserve_server.serving.turns.books import TurnBooks
from conserve_server.serving.turns.draining import Draining
from conserve_server.serving.turns.energy_books import GatewayEnergy
from conserve_server.serving.turns.life import TurnLives
from conserve_server.serving.turns.retries import Retries, RetriesBook
from conserve_server.serving.turns.turns import Turns
from conserve_server.serving.yielding import Yielding
from conserve_server.telemetry.metrics import GatewayMetrics
from conserve_server.telemetry.spans import TurnTraces


@dataclass(frozen=True, slots=True)
class _Given:
    """What a gateway is built from."""

    config: Config
    specs: Sequence[EngineSpec]
    policy: Policy
    clock: Clock
    tracer: Tracer
    tenants: Tenants
    load: Callable[[], Config] | None
    draining: Draining
    energy: GatewayEnergy
    background: Background


@dataclass(frozen=True, slots=True)
class _Core:
    """What serves, apart from how it is asked."""

    coordinator: Coordinator
    metrics: GatewayMetrics
    errors: BookErrors
    conversations: Conversations
    cluster: Cluster
    drains: EngineDrains
    reload: Reload
    refusals: Refusals
    body_memory: BodyMemory
    stream_heads: StreamHeads
    limits: TurnLimits
    rules: EngineFields
    yielding: Yielding


@dataclass(frozen=True, slots=True)
class _Parts:
    """What one running gateway is made of."""

    endpoint: TurnEndpoint
    refusals: Refusals
    routes: list[Route]
    cluster: Cluster
    conversations: Conversations
    drains: EngineDrains
    reload: Reload
    energy: GatewayEnergy
    stream_heads: StreamHeads
    yielding: Yielding
    metrics: GatewayMetrics


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
    given = _Given(config, engines, policy, clock, tracer, tenants, load, stopping, energy, background)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, object]]:
        with ExitStack() as stack:
            parts = _build(given, stack)
            app.router.routes.extend(_routes(parts))
            app.state.refusals = parts.refusals
            app.state.reload = lambda: parts.reload.apply(clock.now_s())
            async with energy.opened(), background.running(parts.metrics.background_failed):
                _begin_loops(parts, given)
                yield _for_connections(parts, config)

    app = Starlette(
        lifespan=lifespan,
        middleware=middleware_of(config),
        exception_handlers=EXCEPTION_HANDLERS,
    )
    app.state.problem = lambda: background.problem
    return app


def _begin_loops(parts: _Parts, given: _Given) -> None:
    """What goes on beside the turns. Each loop is on its own: none waits for, or ends with, another."""
    clock, background, interval_s = given.clock, given.background, given.config.gateway.probe_interval_s
    parts.cluster.start(background, clock, interval_s)
    parts.conversations.signals.start(background, parts.cluster.statuses, interval_s)
    sweeps = {
        "expiry": parts.conversations.expire,
        "engine_drains": parts.drains.sweep,
        "yielding": parts.yielding.look,
    }
    for name, sweep in sweeps.items():
        background.keep(name, partial(_sweep, sweep, clock, interval_s))
    background.keep("energy_meters", given.energy.run)
    background.keep("stream_heads", parts.stream_heads.run)


def _for_connections(parts: _Parts, config: Config) -> dict[str, object]:
    """What the server's protocol reads at each connection."""
    limits = ConnectionLimits.from_config(config.gateway, parts.refusals.note)
    return {
        TURN_ROUTES: {path.encode(): parts.endpoint for path in API_OF},
        CONNECTION_LIMITS: limits,
    }


def _core(given: _Given, stack: ExitStack) -> _Core:
    config, gateway, clock, energy = given.config, given.config.gateway, given.clock, given.energy
    scheduler = Scheduler(
        given.policy,
        engines=[profile_of(config, spec) for spec in given.specs],
        kv_budget_fraction=config.scheduler.budget_fraction,
        estimates=config.scheduler.estimates,
    )
    metrics = GatewayMetrics()
    errors = BookErrors(metrics)
    coordinator = Coordinator(
        scheduler, clock, errors, max_wait_s=gateway.max_wait_s, leg_timeout_s=gateway.turn_timeout_s
    )
    signals = KvSignals(config.kv, scheduler, clock, metrics)
    endings = Endings(given.tracer, metrics, clock)
    conversations = Conversations.from_config(
        gateway, coordinator, signals, given.draining, endings, energy, errors
    )
    make_engine = _engine_maker(config, signals, stack)
    cluster = Cluster(
        map(make_engine, given.specs),
        coordinator,
        metrics,
        on_removed=signals.remove,
        on_lost=energy.engine_lost,
    )
    drains = EngineDrains(cluster, coordinator, timeout_s=gateway.engine_drain_timeout_s)
    limits, rules = TurnLimits.from_config(gateway), EngineFields.from_config(gateway)
    yielding = Yielding(coordinator, conversations.log, after_s=gateway.yield_after_s)
    yielding.become(gateway)
    of_tenants = (limits, rules, conversations, yielding)
    reload = _reload(given, cluster, drains, make_engine, of_tenants)
    return _Core(
        coordinator,
        metrics,
        errors,
        conversations,
        cluster,
        drains,
        reload,
        Refusals(metrics),
        BodyMemory(gateway.max_held_body_bytes),
        StreamHeads(clock, gateway.stream_head_after_s),
        limits,
        rules,
        yielding,
    )


def _reload(
    given: _Given,
    cluster: Cluster,
    drains: EngineDrains,
    make_engine: Callable[[EngineSpec], VllmEngine],
    of_tenants: Sequence[TurnLimits | EngineFields | Conversations | Yielding],
) -> Reload:
    def on_tenants(changed: GatewayConfig) -> None:
        for each in of_tenants:
            each.become(changed)

    return Reload(
        given.config,
        given.load,
        cluster=cluster,
        drains=drains,
        make_engine=make_engine,
        tenants=given.tenants,
        on_tenants=on_tenants,
    )


def _build(given: _Given, stack: ExitStack) -> _Parts:
    gateway, tenants, energy, clock = given.config.gateway, given.tenants, given.energy, given.clock
    core = _core(given, stack)
    scheduler, conversations, cluster = core.coordinator.scheduler, core.conversations, core.cluster
    endpoint, passing = _endpoints(given, core)
    routes = Routes(
        cluster=cluster,
        coordinator=core.coordinator,
        metrics=core.metrics,
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
        core.body_memory,
        body_timeout_s=gateway.body_timeout_s,
    )
    of_admin = AdminRoutes(
        cluster=cluster, drains=core.drains, reload=core.reload, tenants=tenants, clock=clock
    )
    view = LiveView(conversations.log, scheduler, cluster, clock)
    live = LiveRoutes(view, tenants, core.refusals, write_timeout_s=gateway.write_timeout_s)
    tables = [each.table() for each in (routes, of_conversations, of_admin, passing, live)]
    every = [openapi_route(), *page_routes(), *(route for table in tables for route in table)]
    return _Parts(
        endpoint,
        core.refusals,
        every,
        cluster,
        conversations,
        core.drains,
        core.reload,
        energy,
        core.stream_heads,
        core.yielding,
        core.metrics,
    )


def _endpoints(given: _Given, core: _Core) -> tuple[TurnEndpoint, PassThrough]:
    """What takes requests that engines answer; both count against one limit of a tenant."""
    gateway, conversations = given.config.gateway, core.conversations
    limits = core.limits
    body_limits = BodyLimits(gateway.max_body_bytes, gateway.body_timeout_s)
    endpoint = TurnEndpoint(
        turns=_turns(given, core),
        cluster=core.cluster,
        tenants=given.tenants,
        limits=limits,
        recognition=conversations.recognition,
        stored_responses=conversations.stored_responses,
        rules=core.rules,
        body_limits=body_limits,
        body_memory=core.body_memory,
        write_timeout_s=gateway.write_timeout_s,
        refusals=core.refusals,
    )
    passing = PassThrough(
        cluster=core.cluster,
        tenants=given.tenants,
        limits=limits,
        body_limits=body_limits,
        body_memory=core.body_memory,
        stored_responses=conversations.stored_responses,
        rules=core.rules,
        write_timeout_s=gateway.write_timeout_s,
        refusals=core.refusals,
    )
    return endpoint, passing


def _turns(given: _Given, core: _Core) -> Turns:
    traces = TurnTraces(
        given.tracer,
        given.config.gateway.max_traced_turns_per_s,
        lambda error: core.errors.note("traces", "step", error),
    )
    gateway = given.config.gateway
    retries = Retries(
        core.cluster,
        given.clock,
        core.metrics,
        max_failures=gateway.max_placements,
        share=gateway.retry_share,
        max_wait_s=gateway.max_wait_s,
    )
    kept = bookkeepers(core.coordinator, core.conversations, given.energy, traces, core.metrics)
    books = TurnBooks((*kept, RetriesBook(retries)), core.errors)
    return Turns(
        lives=TurnLives(core.coordinator, core.conversations, books, given.clock),
        coordinator=core.coordinator,
        cluster=core.cluster,
        passing_on=PassingOn(books, core.conversations.stored_responses, given.clock),
        stream_heads=core.stream_heads,
        clock=given.clock,
        draining=given.draining,
        retries=retries,
    )


def _engine_maker(config: Config, signals: KvSignals, stack: ExitStack) -> Callable[[EngineSpec], VllmEngine]:
    """Makes engines, also after the start; each is told of conversations, and closed with the stack."""

    def make(spec: EngineSpec) -> VllmEngine:
        engine = VllmEngine(spec, silence_timeout_s=config.gateway.turn_timeout_s)
        plugin = ConversationKv(spec)
        stack.callback(engine.close)
        stack.callback(plugin.close)
        signals.add(plugin)
        return engine

    return make


def _routes(parts: _Parts) -> list[Route]:
    turns = [Route(path, parts.endpoint, methods=["POST"]) for path in API_OF]
    return [*turns, *parts.routes]


async def _sweep(sweep: Callable[[float], None], clock: Clock, interval_s: float) -> None:
    """Tell it the time, again and again: conversations expire, drains are over."""
    while True:
        await clock.sleep(interval_s)
        sweep(clock.now_s())
