"""Serving an emulated engine over HTTP: in this event loop, or as a process of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self, cast

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from conserve_server.core.clock import Clock, SystemClock
from conserve_server.core.errors import EngineStartError
from conserve_server.engines.emulated.app import create_emulated_engine
from conserve_server.engines.emulated.config import EmulatedConfig
from conserve_server.engines.emulated.connection import TRANSPORT

_START_TIMEOUT_S: Final = 10.0
_STOP_TIMEOUT_S: Final = 5.0


class EmulatedEngineServer:
    """An emulated engine on a loopback port, in the running event loop.

    `async with EmulatedEngineServer(config) as engine:` starts and stops it, each in bounded
    time; `engine.url` is its base URL. A second server with the same `config.port` stands
    for the engine restarted at its address.
    """

    def __init__(self, config: EmulatedConfig, clock: Clock | None = None) -> None:
        self._socket = _bound(config)
        self.config = dataclasses.replace(config, port=self._socket.getsockname()[1])
        self.url = f"http://{self.config.host}:{self.config.port}"
        app = create_emulated_engine(self.config, clock or SystemClock(), die=self.kill)
        self._uvicorn = uvicorn.Server(_uvicorn_config(app))
        self._is_stopped = False

    async def __aenter__(self) -> Self:
        config = self._uvicorn.config
        config.load()
        self._uvicorn.lifespan = LifespanOn(config)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._uvicorn.startup(sockets=[self._socket])
        except (TimeoutError, SystemExit) as error:
            self._socket.close()
            raise EngineStartError(
                f"the emulated engine {self.config.name} did not start: {error!r}"
            ) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop serving; a second call does nothing."""
        if self._is_stopped:
            return
        self._is_stopped = True
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await self._uvicorn.shutdown(sockets=[self._socket])

    def kill(self) -> None:
        """What a crash looks like from outside: every connection dropped, nobody listens."""
        for server in self._uvicorn.servers:
            server.close()
        for connection in list(self._uvicorn.server_state.connections):
            cast(_AbortableProtocol, connection).transport.abort()


@asynccontextmanager
async def serve_emulated(config: EmulatedConfig, clock: Clock | None = None) -> AsyncIterator[str]:
    """The base URL of an emulated engine that runs until the context is left."""
    async with EmulatedEngineServer(config, clock) as engine:
        yield engine.url


def run_emulated(config: EmulatedConfig, announce: Callable[[str], None]) -> None:
    """Serve in this process until it is told to stop; `announce` gets one line once the port is bound."""
    bound = _bound(config)
    config = dataclasses.replace(config, port=bound.getsockname()[1])
    app = create_emulated_engine(config, SystemClock(), die=lambda: os._exit(70))
    announce(
        f"EMULATED engine {config.name} ({config.role}) at http://{config.host}:{config.port}: "
        f"{config.model} in name only, modelled timing"
    )
    uvicorn.Server(_uvicorn_config(app)).run(sockets=[bound])


def _bound(config: EmulatedConfig) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Taken over by each connection: or heads wait 40 ms for the acknowledgement before the body.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        bound.bind((config.host, config.port))
    except OSError as error:
        bound.close()
        raise EngineStartError(
            f"the emulated engine {config.name} can't listen on {config.host}:{config.port}: {error}"
        ) from error
    return bound


def _uvicorn_config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_AbortableProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )


class _AbortableProtocol(HttpToolsProtocol):
    """Leaves the connection's transport in the scope, so that a fault can drop it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app = cast(Any, _with_transport(cast(ASGIApp, self.app), transport))


def _with_transport(app: ASGIApp, transport: asyncio.Transport) -> ASGIApp:
    async def with_transport(scope: Scope, receive: Receive, send: Send) -> None:
        scope[TRANSPORT] = transport
        await app(scope, receive, send)

    return with_transport
