"""The gateway's routes that know no conversation: models, energy, health, metrics."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_server.core.errors import NoCapacity
from conserve_server.engines.engine import EngineStatus, ModelCard
from conserve_server.serving.asked.request import check_model
from conserve_server.serving.asked.tenants import Tenants, authorization_of
from conserve_server.serving.cluster.cluster import Cluster
from conserve_server.serving.driving.background import Background
from conserve_server.serving.driving.coordinator import Coordinator
from conserve_server.serving.turns.draining import Draining
from conserve_server.serving.turns.energy_books import GatewayEnergy
from conserve_server.telemetry.metrics import CONTENT_TYPE, GatewayMetrics

MODELS_PATH: Final = "/v1/models"
MODEL_PATH: Final = MODELS_PATH + "/{model:path}"
"""A model's name may have slashes."""


class Routes:
    """What the gateway serves and how it fares."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        coordinator: Coordinator,
        metrics: GatewayMetrics,
        tenants: Tenants,
        energy: GatewayEnergy,
        metrics_need_admin_key: bool,
        draining: Draining,
        background: Background,
    ) -> None:
        self._cluster = cluster
        self._coordinator = coordinator
        self._metrics = metrics
        self._tenants = tenants
        self._energy = energy
        self._metrics_need_admin_key = metrics_need_admin_key
        self._draining = draining
        self._background = background

    def table(self) -> list[Route]:
        """The routes, for the application."""
        return [
            Route(MODELS_PATH, self.models),
            Route(MODEL_PATH, self.model),
            Route("/v1/energy", self.energy),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]

    async def models(self, request: Request) -> Response:
        """The models that the decode engines serve, as OpenAI lists them."""
        self._tenants.caller(authorization_of(request.headers))
        cards = [_card(model, status) for model, status in sorted(self._cluster.models.items())]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        """One of them. Raises a 404 for any other."""
        self._tenants.caller(authorization_of(request.headers))
        name: str = request.path_params["model"]
        status = self._cluster.models.get(name)
        if status is None:
            check_model(name, self._cluster.models)
            raise NoCapacity(
                f"no decode engine is up: {self._cluster.why_no_decoder()}", code="no_decode_engine"
            )
        return JSONResponse(_card(name, status))

    async def health(self, request: Request) -> Response:
        """200 while a decode engine is up and all loops run, else 503, as while draining.

        The engines and the loops are told to who may see them.
        """
        problem = self._problem()
        document: dict[str, Any] = {"status": problem or "ok"}
        authorization = authorization_of(request.headers)
        if not self._metrics_need_admin_key or self._tenants.is_admin(authorization):
            document |= {
                "engines": [self._cluster.describe(engine.spec.name) for engine in self._cluster.engines],
                "waiting_turns": self._coordinator.scheduler.waiting_turns,
                "energy": self._energy.health(),
                "background": {"problem": self._background.problem, "loops": self._background.describe()},
            }
        return JSONResponse(document, 200 if problem is None else 503)

    def _problem(self) -> str | None:
        """Why nothing should be sent here now."""
        if self._background.problem is not None:
            return "background work has ended"
        if self._draining.has_begun:
            return "draining"
        return None if self._cluster.can_serve else "no decode engine is up"

    async def energy(self, request: Request) -> Response:
        """What was charged since the start, to the caller's tenant or, for the admin, to all."""
        caller = self._tenants.caller(authorization_of(request.headers))
        return JSONResponse(self._energy.totals(caller.tenant))

    async def metrics(self, request: Request) -> Response:
        """The Prometheus page, gauges as of now."""
        if self._metrics_need_admin_key:
            self._tenants.check_admin(authorization_of(request.headers))
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
        self._metrics.set_queues(waiting=scheduler.waiting_turns, by_state=by_state)
        self._energy.scrape(self._metrics.energy)
        return Response(self._metrics.page(), media_type=CONTENT_TYPE)


def _card(name: str, status: EngineStatus) -> dict[str, Any]:
    """A model as its engine lists it; `created` of one that an engine dates not is 0."""
    found = next((card for card in status.cards if card.id == name), ModelCard(name))
    return {
        "id": name,
        "object": "model",
        "created": found.created or 0,
        "owned_by": "conserve",
        "root": found.root or name,
        "parent": found.parent,
        "max_model_len": found.max_model_len or status.max_model_len,
    }
