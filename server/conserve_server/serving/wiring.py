"""What serves, built from a configuration: everything but how it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from opentelemetry.trace import Tracer

from conserve_server.core.clock import Clock
from conserve_server.core.config import Config, GatewayConfig
from conserve_server.engines.conversation_kv import ConversationKv
from conserve_server.engines.engine import EngineSpec
from conserve_server.engines.vllm import VllmEngine
from conserve_server.scheduling.policy import Policy
from conserve_server.scheduling.scheduler import Scheduler
from conserve_server.serving.answers.passing_on import PassingOn
from conserve_server.serving.answers.stream_heads import StreamHeads
from conserve_server.serving.asked.engine_fields import EngineFields
from conserve_server.serving.asked.limits import TurnLimits
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
class Given:
    """What it is built from."""

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
class Serving:
    """The parts that serve; they live until the stack that they were built with is closed."""

    turns: Turns
    coordinator: Coordinator
    metrics: GatewayMetrics
    conversations: Conversations
    cluster: Cluster
    drains: EngineDrains
    reload: Reload
    stream_heads: StreamHeads
    limits: TurnLimits
    rules: EngineFields
    yielding: Yielding


def build(given: Given, stack: ExitStack) -> Serving:
    """The parts, of which none runs yet: `begin_loops` starts what goes on beside the turns."""
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
    stream_heads = StreamHeads(clock, gateway.stream_head_after_s)
    turns = _turns(given, coordinator, conversations, cluster, metrics, errors, stream_heads)
    return Serving(
        turns,
        coordinator,
        metrics,
        conversations,
        cluster,
        drains,
        reload,
        stream_heads,
        limits,
        rules,
        yielding,
    )


def begin_loops(serving: Serving, given: Given) -> None:
    """What goes on beside the turns. Each loop is on its own: none waits for, or ends with, another."""
    clock, background, interval_s = given.clock, given.background, given.config.gateway.probe_interval_s
    serving.cluster.start(background, clock, interval_s)
    serving.conversations.signals.start(background, serving.cluster.statuses, interval_s)
    sweeps = {
        "expiry": serving.conversations.expire,
        "engine_drains": serving.drains.sweep,
        "yielding": serving.yielding.look,
    }
    for name, sweep in sweeps.items():
        background.keep(name, partial(_sweep, sweep, clock, interval_s))
    background.keep("energy_meters", given.energy.run)
    background.keep("stream_heads", serving.stream_heads.run)


def _reload(
    given: Given,
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


def _turns(
    given: Given,
    coordinator: Coordinator,
    conversations: Conversations,
    cluster: Cluster,
    metrics: GatewayMetrics,
    errors: BookErrors,
    stream_heads: StreamHeads,
) -> Turns:
    traces = TurnTraces(
        given.tracer,
        given.config.gateway.max_traced_turns_per_s,
        lambda error: errors.note("traces", "step", error),
    )
    gateway = given.config.gateway
    retries = Retries(
        cluster,
        given.clock,
        metrics,
        max_failures=gateway.max_placements,
        share=gateway.retry_share,
        max_wait_s=gateway.max_wait_s,
    )
    kept = bookkeepers(coordinator, conversations, given.energy, traces, metrics)
    books = TurnBooks((*kept, RetriesBook(retries)), errors)
    return Turns(
        lives=TurnLives(coordinator, conversations, books, given.clock),
        coordinator=coordinator,
        cluster=cluster,
        passing_on=PassingOn(books, conversations.stored_responses, given.clock),
        stream_heads=stream_heads,
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


async def _sweep(sweep: Callable[[float], None], clock: Clock, interval_s: float) -> None:
    """Tell it the time, again and again: conversations expire, drains are over."""
    while True:
        await clock.sleep(interval_s)
        sweep(clock.now_s())
