"""`conserve serve`: the gateway over the engines of a configuration."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from conserve_server.cli.gateway_server import GatewayServer
    from conserve_server.core.config import Config
    from conserve_server.engines.engine import EngineSpec
    from conserve_server.serving.turns.draining import Draining
    from conserve_server.telemetry.provider import Tracing

log = logging.getLogger(__name__)
KEEP_ALIVE_S: Final = 75
"""Longer than clients keep an idle connection (httpx: 5 s; most tools of an agent): a request on one
that the server is closing is lost."""
_COLLECTOR: Final = (20_000, 20, 50)
"""Thresholds of the cycle collector: new objects, and collections of the younger generations."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "serve",
        help="run the gateway over listed or locally started engines",
        description="Run the OpenAI-compatible gateway. The engines are those that the configuration "
        "lists, or those that `conserve up` with the same configuration is running; --up starts them here.",
    )
    parser.add_argument("config", type=Path, help="the TOML configuration")
    parser.add_argument("--up", action="store_true", help="start the configuration's local engines first")
    parser.add_argument("--host", help="listen here instead of gateway.host")
    parser.add_argument(
        "--port", type=_port, help="listen on this port instead of gateway.port (0: any free one)"
    )


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, got {text}")
    return port


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM (0) or SIGINT (130); running turns are drained, unless it is sent twice.

    A gateway whose background work has ended is of no more use: then the status is 1.

    All that can be wrong with the configuration, the port and the traces is found before the
    first engine starts.
    """
    from conserve_server.cli.listening import listening
    from conserve_server.core.config import load_config
    from conserve_server.core.errors import ConfigError
    from conserve_server.core.logs import log_to_stderr
    from conserve_server.scheduling.policies import policy_of

    def load() -> Config:
        given = {name: value for name in ("host", "port") if (value := getattr(args, name)) is not None}
        found = load_config(args.config)
        return found.model_copy(update={"gateway": found.gateway.model_copy(update=given)})

    config = load()
    if args.up and not config.is_local:
        raise ConfigError(f"{args.config} lists running engines: leave out --up, or set pools.decode.count")
    policy_of(config.scheduler, serves_own_engines=config.is_local)
    log_to_stderr()
    with (
        listening(config.gateway.host, config.gateway.port) as sockets,
        _traced() as traces,
        asyncio.Runner(loop_factory=_loop_factory()) as runner,
    ):
        return runner.run(_serve(config, load, sockets, traces, starts_engines=args.up))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed."""
    import uvicorn

    return uvicorn.Config("", loop="auto").get_loop_factory()


@contextmanager
def _traced() -> Iterator[Tracing]:
    """Where the spans go; they are written on the way out."""
    from conserve_server.telemetry.provider import tracing

    traces = tracing("conserve-gateway")
    try:
        yield traces
    finally:
        if not traces.shutdown():
            print("conserve serve: some spans could not be delivered in time and are lost", file=sys.stderr)


async def _serve(
    config: Config,
    load: Callable[[], Config],
    sockets: Sequence[socket.socket],
    traces: Tracing,
    *,
    starts_engines: bool,
) -> int:
    from conserve_server.cli.local_pool import started_pool
    from conserve_server.engines.engine import listed_engines
    from conserve_server.engines.pool_record import read_record

    if starts_engines:
        async with started_pool(config) as pool:
            return await _run_gateway(config, load, pool.specs, sockets, traces)
    engines = read_record(config) if config.is_local else listed_engines(config)
    return await _run_gateway(config, load, engines, sockets, traces)


async def _run_gateway(
    config: Config,
    load: Callable[[], Config],
    engines: Sequence[EngineSpec],
    sockets: Sequence[socket.socket],
    traces: Tracing,
) -> int:
    """Run the gateway in this process until it is told to stop; the exit status."""
    from conserve_server.cli.listening import listen
    from conserve_server.serving.turns.draining import Draining

    draining = Draining()
    app = _app(config, load, engines, traces, draining)
    server = _server(config, app, draining)
    listen(sockets, write_timeout_s=config.gateway.write_timeout_s)
    _announce(config, engines, traces, sockets)
    with _stop_signals() as seen, _reloads_on_hangup(app), _patient_collector():
        await server.serve(sockets=list(sockets))
    if not server.started or server.has_failed:
        return 1
    return 128 + signal.SIGINT if signal.SIGINT in seen else 0


@contextmanager
def _patient_collector() -> Iterator[None]:
    """Python's cycle collector, told that a turn leaves no cycles and that what is loaded now stays.

    As it comes it looks through all remembered conversations again and again under load.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTOR)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@contextmanager
def _stop_signals() -> Iterator[set[int]]:
    """The signals that stopped the server, which uvicorn raises once more when it is done.

    They go no further: what is left, stopping engines and writing spans, must not be cut short.
    """
    seen: set[int] = set()

    def note(number: int, _frame: FrameType | None) -> None:
        seen.add(number)

    # Handlers, and not SIG_IGN, which engines restarted from here would inherit.
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _reloads_on_hangup(app: Starlette) -> Iterator[None]:
    """SIGHUP reads the configuration again; what can't be applied is logged, and nothing has changed."""
    from conserve_server.core.errors import ConfigError

    def reload() -> None:
        try:
            app.state.reload()
        except ConfigError as error:
            log.error("SIGHUP: %s", error)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _server(config: Config, app: Starlette, draining: Draining) -> GatewayServer:
    import uvicorn

    from conserve_server.cli.gateway_server import CUT_S, GatewayServer
    from conserve_server.gateway.http.turn_protocol import TurnProtocol

    settings = uvicorn.Config(
        app,
        http=TurnProtocol,
        log_config=None,  # its records go the way of ours
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=CUT_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    server = GatewayServer(
        settings, draining, drain_timeout_s=config.gateway.drain_timeout_s, problem=app.state.problem
    )
    app.state.is_stopping = lambda: draining.has_begun
    logging.getLogger("uvicorn.error").addFilter(_is_a_bug)
    return server


def _is_a_bug(record: logging.LogRecord) -> bool:
    """Turns cut off, or whose client does not read, are counted: uvicorn would show each as a bug."""
    is_cancellation = record.exc_info is not None and record.exc_info[0] is asyncio.CancelledError
    return not is_cancellation and "without completing response" not in record.getMessage()


def _app(
    config: Config,
    load: Callable[[], Config],
    engines: Sequence[EngineSpec],
    traces: Tracing,
    draining: Draining,
) -> Starlette:
    from conserve_server.core.clock import SystemClock
    from conserve_server.gateway.app import create_app
    from conserve_server.scheduling.policies import policy_of

    policy = policy_of(config.scheduler, serves_own_engines=config.is_local)
    return create_app(
        config,
        engines=engines,
        policy=policy,
        clock=SystemClock(),
        tracer=traces.tracer,
        load=load,
        draining=draining,
    )


def _announce(
    config: Config, engines: Sequence[EngineSpec], traces: Tracing, sockets: Sequence[socket.socket]
) -> None:
    host, port = config.gateway.host, sockets[0].getsockname()[1]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    print(f"conserve gateway on http://{address}/v1, policy {config.scheduler.policy}")
    for engine in engines:
        print(f"  {engine.role:7} {engine.name:12} {engine.url}")
    print(f"  traces: {traces.destination}", flush=True)
