"""What every request passes before its route, turns apart from most of it."""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from conserve_sdk.protocol import EXPOSED_HEADERS
from conserve_server.core.config import Config
from conserve_server.engines.wire import API_OF
from conserve_server.gateway.http.hosts import AllowedHosts, RefusesOtherHosts
from conserve_server.gateway.http.request_id import AnswersRequestId
from conserve_server.serving.client import REQUEST_ID


def middleware_of(config: Config) -> list[Middleware]:
    """CORS only where it is configured: a turn passes through nothing that it does not need."""
    found = [Middleware(AnswersRequestId, turn_paths=frozenset(API_OF))]
    if config.gateway.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=config.gateway.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID, "retry-after", *EXPOSED_HEADERS],
        )
        found.insert(0, cors)
    hosts = AllowedHosts.from_config(config.gateway)
    if hosts is not None:
        found.append(Middleware(RefusesOtherHosts, hosts))
    return found
