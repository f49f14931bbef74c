"""The administrator's routes: engines seen, drained and taken back; the configuration read again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_server.core.clock import Clock
from conserve_server.core.errors import ConfigError, InvalidRequest
from conserve_server.serving.asked.tenants import Tenants, authorization_of
from conserve_server.serving.cluster.cluster import Cluster
from conserve_server.serving.cluster.engine_drains import EngineDrains
from conserve_server.serving.cluster.reload import Reload

ENGINES_PATH: Final = "/v1/engines"
DRAIN_PATH: Final = ENGINES_PATH + "/{name}/drain"
UNDRAIN_PATH: Final = ENGINES_PATH + "/{name}/undrain"
RELOAD_PATH: Final = "/v1/reload"


class AdminRoutes:
    """All need the admin key; without one configured nobody can use them."""

    def __init__(
        self, *, cluster: Cluster, drains: EngineDrains, reload: Reload, tenants: Tenants, clock: Clock
    ) -> None:
        self._cluster = cluster
        self._drains = drains
        self._reload = reload
        self._tenants = tenants
        self._clock = clock

    def table(self) -> list[Route]:
        """The routes, for the application."""
        return [
            Route(ENGINES_PATH, self.engines, methods=["GET"]),
            Route(DRAIN_PATH, self.drain, methods=["POST"]),
            Route(UNDRAIN_PATH, self.undrain, methods=["POST"]),
            Route(RELOAD_PATH, self.reload, methods=["POST"]),
        ]

    async def engines(self, request: Request) -> Response:
        """Every engine: what it said last, what it holds, whether it is to go."""
        self._tenants.check_admin(authorization_of(request.headers))
        names = [engine.spec.name for engine in self._cluster.engines]
        return JSONResponse({"object": "list", "data": [self._engine(name) for name in names]})

    async def drain(self, request: Request) -> Response:
        """Send nothing new to the engine."""
        name = self._named(request)
        self._drains.begin(name, self._clock.now_s())
        return JSONResponse(self._engine(name))

    async def undrain(self, request: Request) -> Response:
        """Let the engine take conversations again."""
        name = self._named(request)
        if self._drains.is_leaving(name):
            raise InvalidRequest(
                f"engine {name!r} is in no pool of the configuration any more: list it there and reload",
                code="engine_leaving",
                status=409,
            )
        self._drains.stop(name)
        return JSONResponse(self._engine(name))

    async def reload(self, request: Request) -> Response:
        """Read the configuration again, as SIGHUP does."""
        self._tenants.check_admin(authorization_of(request.headers))
        try:
            return JSONResponse(asdict(self._reload.apply(self._clock.now_s())))
        except ConfigError as error:
            raise InvalidRequest(str(error), code="configuration_refused", status=409) from error

    def _named(self, request: Request) -> str:
        self._tenants.check_admin(authorization_of(request.headers))
        name: str = request.path_params["name"]
        if not self._cluster.knows(name):
            known = ", ".join(engine.spec.name for engine in self._cluster.engines)
            raise InvalidRequest(
                f"no engine {name!r} here; there are {known}", code="engine_not_found", status=404
            )
        return name

    def _engine(self, name: str) -> dict[str, Any]:
        return self._cluster.describe(name) | {
            "draining": self._drains.is_draining(name),
            "leaving": self._drains.is_leaving(name),
            "drained": self._drains.is_drained(name),
        }
