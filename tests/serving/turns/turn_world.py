"""Turns without HTTP: the gateway's own parts, with faults around all of them who may raise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from opentelemetry.sdk.trace import TracerProvider

from conserve_server.core.clock import SystemClock
from conserve_server.core.config import Config, parse_config
from conserve_server.core.errors import TurnError
from conserve_server.energy.accounts import ConversationAccount
from conserve_server.engines.engine import EngineSpec, Role, listed_engines
from conserve_server.engines.wire import Api
from conserve_server.gateway.http.reply import Reply
from conserve_server.scheduling.policies import policy_of
from conserve_server.scheduling.scheduler import Scheduler
from conserve_server.serving.answers.passing_on import PassingOn
from conserve_server.serving.answers.stream_heads import StreamHeads
from conserve_server.serving.asked.identity import DEFAULT_TENANT, Identity
from conserve_server.serving.asked.request import TurnRequest, parse_request
from conserve_server.serving.client import ClientStalled
from conserve_server.serving.cluster.cluster import Cluster
from conserve_server.serving.cluster.engine_profiles import profile_of
from conserve_server.serving.conversations import Conversations
from conserve_server.serving.driving.coordinator import Coordinator
from conserve_server.serving.driving.telling import BookErrors
from conserve_server.serving.kv.signals import KvSignals
from conserve_server.serving.recognition.recognition import Watch
from conserve_server.serving.records.endings import Endings
from conserve_server.serving.turns.bookkeepers import bookkeepers
from conserve_server.serving.turns.books import TurnBooks
from conserve_server.serving.turns.draining import Draining
from conserve_server.serving.turns.energy_books import GatewayEnergy
from conserve_server.serving.turns.life import TurnLives
from conserve_server.serving.turns.retries import Retries, RetriesBook
from conserve_server.serving.turns.turn_energy import TurnEnergy
from conserve_server.serving.turns.turns import Turns
from conserve_server.telemetry.metrics import GatewayMetrics
from conserve_server.telemetry.spans import TurnTraces

from .faults import Faults
from .turn_fakes import MODEL, Asked, Client, FakeEngine

PATH = "/v1/chat/completions"
CAPACITY = 90
SURE = frozenset(
    {
        "turn_began",
        "turn_ended",
        "on_turn_ended",
        "on_conversation_ended",
        "on_engine_up",
        "knows",
        "is_waiting",
    }
)
"""Calls of the books themselves: who fails in these has lost its own account, which nobody else can mend."""


class FaultyEnergy(GatewayEnergy):
    """Its ledger may raise at whatever becomes of a leg."""

    faults = Faults()

    def turn_began(self, conversation: ConversationAccount, now_s: float) -> TurnEnergy:
        ledger = self.faults.around(self._ledger, "ledger", but=SURE)
        return TurnEnergy(ledger, conversation, now_s)


class World:
    """One gateway's turns, books, policy and telemetry, with faults around all who may raise."""

    def __init__(self, policy: str, faults: Faults) -> None:
        self.config = config = _config(policy)
        specs, clock = listed_engines(config), SystemClock()
        self.clients: dict[str, Client] = {}
        self.metrics = GatewayMetrics()
        metrics = faults.around(self.metrics, "metrics", but=frozenset({"book_failed", "page"}))
        self.errors = BookErrors(self.metrics)
        self.scheduler = Scheduler(
            faults.around(policy_of(config.scheduler), "policy"),
            engines=[profile_of(config, spec) for spec in specs],
            kv_budget_fraction=1.0,
        )
        self.coordinator = Coordinator(
            faults.around(self.scheduler, "scheduler", but=SURE),
            clock,
            self.errors,
            max_wait_s=0.05,
            leg_timeout_s=0.05,
        )
        self.draining = Draining()
        energy = FaultyEnergy.from_config(config, specs, clock)
        energy.faults = faults
        tracer = faults.around(TracerProvider().get_tracer("test"), "tracer")
        signals = faults.around(KvSignals(config.kv, self.scheduler, clock, metrics), "signals")
        endings = Endings(tracer, metrics, clock)
        self.conversations = Conversations.from_config(
            config.gateway, self.coordinator, signals, self.draining, endings, energy, self.errors
        )
        self.conversations.recognition = faults.around(
            self.conversations.recognition, "recognition", but=frozenset({"recognise"})
        )
        self.cluster = self._cluster(specs, metrics)
        traces = TurnTraces(tracer, 1000.0, lambda error: self.errors.note("traces", "step", error))
        retries = Retries(self.cluster, clock, metrics, max_failures=3, share=1.0, max_wait_s=0.05)
        kept = bookkeepers(self.coordinator, self.conversations, energy, traces, metrics)
        books = (*kept, RetriesBook(retries))
        guarded = [faults.around(book, f"book {book.name}") for book in books]
        told = TurnBooks(guarded, self.errors)
        stored = self.conversations.stored_responses
        self.turns = Turns(
            lives=TurnLives(self.coordinator, self.conversations, told, clock),
            coordinator=self.coordinator,
            cluster=self.cluster,
            passing_on=PassingOn(told, stored, clock),
            stream_heads=StreamHeads(clock, 60.0),
            clock=clock,
            draining=self.draining,
            retries=retries,
        )
        for spec in specs:
            self.coordinator.engine_up(spec.name, CAPACITY)

    def _cluster(self, specs: Sequence[EngineSpec], metrics: GatewayMetrics) -> Cluster:
        """Engines that nobody looks at: a doubt of one ends by its limit alone."""
        engines = [FakeEngine(spec, self.clients) for spec in specs]
        return Cluster(engines, self.coordinator, metrics, doubt_limit_s=0.02)

    async def ask(self, asked: Asked) -> Client:
        """One turn from arrival to end."""
        request_id = f"r{len(self.clients)}"
        client = self.clients[request_id] = Client(asked)
        message = {"role": "user", "content": f"{asked.conversation} asks again"}
        body = {"model": MODEL, "messages": [message], "stream": asked.is_streamed}
        request = parse_request(PATH, json.dumps(body).encode(), request_id)
        name = asked.conversation or request_id
        identity = Identity(
            conversation_id=name, tenant=DEFAULT_TENANT, model=MODEL, is_synthetic=asked.conversation is None
        )
        watch: Watch | None = None
        if identity.is_synthetic:
            identity, watch = self.conversations.recognition.recognise(identity, request)
        reply = Reply(client.send, api=Api.COMPLETIONS, request_id=request_id, write_timeout_s=1.0)
        turn = asyncio.create_task(self._serve(request, identity, reply, watch))
        gone = asyncio.create_task(client.hangs.wait())
        await asyncio.wait({turn, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        client.was_cancelled = turn.cancel()
        (result,) = await asyncio.gather(turn, return_exceptions=True)
        if isinstance(result, Exception):
            raise result
        return client

    async def _serve(
        self, request: TurnRequest, identity: Identity, reply: Reply, watch: Watch | None
    ) -> None:
        """As the endpoint does: what a turn can't begin for is told as well."""
        try:
            await self.turns.serve(request, identity, {}, reply, watch)
        except ClientStalled:
            return
        except TurnError as error:
            await reply.fail(error, {})

    def release_all(self) -> None:
        """Every conversation ends, as its client wishes."""
        for record in self.conversations.log.recent([DEFAULT_TENANT], 1000):
            self.conversations.release(record)

    def left(self) -> dict[str, object]:
        """What is still counted, reserved, queued or open anywhere; empty when nothing is."""
        pools = self.scheduler.pools
        records = self.conversations.log.recent([DEFAULT_TENANT], 1000)
        found: dict[str, object] = {
            "queue": self.scheduler.waiting_turns,
            "conversations": [each.id for each in self.scheduler.conversations],
            "reserved": sum(ledger.reserved_tokens for ledger in pools.ledgers.values()),
            "engines": [v.name for v in pools.views(0.0) if v.queued_tokens or v.running_turns],
            "inboxes": self.coordinator.open_turns,
            "draining": self.draining.running_turns,
            "legs": [
                engine.spec.name for engine in self.cluster.engines if self.cluster.has_legs(engine.spec.name)
            ],
            "live": self.conversations.log.live_count(DEFAULT_TENANT),
            "running": [record.identity.key for record in records if record.has_turns or record.running],
            "energy": [record.identity.key for record in records if record.energy.running],
        }
        return {name: value for name, value in found.items() if value}


def _config(policy: str) -> Config:
    pools = {
        str(role): {"engines": [f"http://127.0.0.1:{port}" for port in ports]}
        for role, ports in ((Role.PREFILL, (9001,)), (Role.DECODE, (9002, 9003)))
    }
    return parse_config({"pools": pools, "scheduler": {"policy": policy}})
