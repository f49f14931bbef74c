"""The gateway's other routes: models, health, metrics, and conversations."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_sdk.protocol import ConversationReport, Outcome, ToolEvent
from conserve_server.core.errors import InvalidRequest
from conserve_server.gateway.cluster import Cluster
from conserve_server.gateway.coordinator import Coordinator
from conserve_server.gateway.record import ENDED, ConversationLog, ConversationRecord
from conserve_server.gateway.reply import read_body
from conserve_server.telemetry.metrics import CONTENT_TYPE, GatewayMetrics

MAX_EVENTS_BYTES = 1024 * 1024


class _Event(msgspec.Struct):
    kind: Literal["start", "end"]
    call_id: str
    name: str
    elapsed_s: float = 0.0
    duration_s: float | None = None
    outcome: str | None = None


class _Events(msgspec.Struct):
    events: list[_Event]


class Routes:
    """Everything that is not a turn."""

    def __init__(
        self, *, cluster: Cluster, coordinator: Coordinator, log: ConversationLog, metrics: GatewayMetrics
    ) -> None:
        self._cluster = cluster
        self._coordinator = coordinator
        self._log = log
        self._metrics = metrics

    def table(self) -> list[Route]:
        """The routes, for the application."""
        one = "/v1/conversations/{conversation_id:path}"
        return [
            Route("/v1/models", self.models),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route(one + "/events", self.take_events, methods=["POST"]),
            Route(one, self.report, methods=["GET"]),
            Route(one, self.release, methods=["DELETE"]),
        ]

    async def models(self, _request: Request) -> Response:
        """The models that the decode engines serve, as OpenAI lists them."""
        cards = [
            {"id": model, "object": "model", "owned_by": "conserve", "max_model_len": status.max_model_len}
            for model, status in sorted(self._cluster.models.items())
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def health(self, _request: Request) -> Response:
        """200 while a decode engine is up, else 503; each engine's last look either way."""
        can_serve = self._cluster.can_serve
        document = {
            "status": "ok" if can_serve else "no decode engine is up",
            "engines": [self._engine(engine.spec.name) for engine in self._cluster.engines],
            "waiting_turns": self._coordinator.scheduler.waiting_turns,
            "energy": "not measured: no energy meter is configured",
        }
        return JSONResponse(document, 200 if can_serve else 503)

    async def metrics(self, _request: Request) -> Response:
        """The Prometheus page, gauges as of now."""
        scheduler = self._coordinator.scheduler
        for name, ledger in scheduler.pools.ledgers.items():
            self._metrics.set_decoder(
                name,
                reserved=ledger.reserved_tokens,
                budget=ledger.budget_tokens,
                overcommitted=ledger.overcommitted_tokens,
            )
        by_state: dict[str, int] = {}
        for conversation in scheduler.conversations:
            by_state[conversation.state] = by_state.get(conversation.state, 0) + 1
        self._metrics.set_queues(
            waiting=scheduler.waiting_turns, rebinds=scheduler.rebinds, by_state=by_state
        )
        return Response(self._metrics.page(), media_type=CONTENT_TYPE)

    async def report(self, request: Request) -> Response:
        """What was observed of one conversation."""
        conversation_id, record = self._find(request)
        return JSONResponse(self._document(conversation_id, record))

    async def release(self, request: Request) -> Response:
        """End a conversation: its reservation is freed once its running turns have ended."""
        conversation_id, record = self._find(request)
        self._coordinator.end_conversation(conversation_id)
        self._log.end(conversation_id, ENDED)
        return JSONResponse(self._document(conversation_id, record))

    async def take_events(self, request: Request) -> Response:
        """Note tool boundaries that the SDK saw."""
        _, record = self._find(request)
        body = await read_body(request.receive, MAX_EVENTS_BYTES, fix="send fewer events at once")
        for event in _read_events(body):
            record.note_tool(event)
        return Response(status_code=204)

    def _find(self, request: Request) -> tuple[str, ConversationRecord]:
        conversation_id = request.path_params["conversation_id"]
        record = self._log.find(conversation_id)
        if record is None:
            raise InvalidRequest(
                f"no conversation {conversation_id!r} is known here: it never sent a turn to this gateway, "
                "or it ended long ago",
                code="conversation_not_found",
                param="conversation_id",
                status=404,
            )
        return conversation_id, record

    def _document(self, conversation_id: str, record: ConversationRecord) -> dict[str, Any]:
        live = self._coordinator.scheduler.find(conversation_id)
        report: ConversationReport = record.report(
            state=live.state if live else ENDED,
            reserved_kv_tokens=self._coordinator.scheduler.reserved_tokens(conversation_id),
        )
        return report.to_json()

    def _engine(self, name: str) -> dict[str, Any]:
        spec = self._cluster.engine(name).spec
        status = self._cluster.statuses.get(name)
        seen = {"name": name, "role": spec.role, "url": spec.url, "up": status is not None}
        if status is None:
            return seen
        return seen | {
            "models": status.models,
            "running": status.running,
            "waiting": status.waiting,
            "kv_usage": status.kv_usage,
            "kv_capacity_tokens": status.kv_capacity_tokens,
            "emulated": status.emulated,
        }


def _read_events(body: bytes) -> list[ToolEvent]:
    try:
        found = msgspec.json.decode(body, type=_Events).events
        return [
            ToolEvent(
                kind=e.kind,
                call_id=e.call_id,
                name=e.name,
                elapsed_s=e.elapsed_s,
                duration_s=e.duration_s,
                outcome=Outcome(e.outcome) if e.outcome is not None else None,
            )
            for e in found
        ]
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidRequest(f"the events are wrong: {error}", code="invalid_events") from error
