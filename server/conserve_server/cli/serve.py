"""`conserve serve`: the gateway over the engines of a configuration."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

    from conserve_server.core.config import Config
    from conserve_server.engines.engine import EngineSpec
    from conserve_server.telemetry.provider import Tracing


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
        "--port", type=int, help="listen on this port instead of gateway.port (0: any free one)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; running turns are drained."""
    from conserve_server.core.config import load_config
    from conserve_server.core.errors import ConfigError

    config = load_config(args.config)
    given = {name: value for name in ("host", "port") if (value := getattr(args, name)) is not None}
    config = config.model_copy(update={"gateway": config.gateway.model_copy(update=given)})
    if args.up and not config.is_local:
        raise ConfigError(f"{args.config} lists running engines: leave out --up, or set pools.decode.count")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    return asyncio.run(_serve(config, starts_engines=args.up))


async def _serve(config: Config, *, starts_engines: bool) -> int:
    from conserve_server.cli.local_pool import started_pool
    from conserve_server.engines.engine import listed_engines
    from conserve_server.engines.pool_record import read_record

    if starts_engines:
        async with started_pool(config) as pool:
            return await run_gateway(config, pool.specs)
    return await run_gateway(config, read_record(config) if config.is_local else listed_engines(config))


async def run_gateway(config: Config, engines: Sequence[EngineSpec]) -> int:
    """Run the gateway in this process until it is told to stop."""
    from conserve_server.telemetry.provider import tracing

    traces = tracing("conserve-gateway")
    try:
        server = gateway_server(config, engines, traces)
        _announce(config, engines, traces)
        # uvicorn raises the signal that stopped it once more: spans must be written first.
        signal.signal(signal.SIGTERM, _stopped_already)
        await server.serve()
        return 0 if server.started else 1
    finally:
        if not traces.shutdown():
            print("conserve serve: some spans could not be delivered in time and are lost", file=sys.stderr)


def _stopped_already(_number: int, _frame: FrameType | None) -> None:
    """A handler, and not SIG_IGN, which engines started from here would inherit."""


def gateway_server(config: Config, engines: Sequence[EngineSpec], traces: Tracing) -> uvicorn.Server:
    """The gateway's server, not yet running."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            _app(config, engines, traces),
            host=config.gateway.host,
            port=config.gateway.port,
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=round(config.gateway.drain_timeout_s),
        )
    )


def _app(config: Config, engines: Sequence[EngineSpec], traces: Tracing) -> Starlette:
    from conserve_server.core.clock import SystemClock
    from conserve_server.gateway.app import create_app
    from conserve_server.scheduling.policies import policy_named

    policy = policy_named(config.scheduler.policy)
    return create_app(config, engines=engines, policy=policy, clock=SystemClock(), tracer=traces.tracer)


def _announce(config: Config, engines: Sequence[EngineSpec], traces: Tracing) -> None:
    address = f"http://{config.gateway.host}:{config.gateway.port}/v1"
    print(f"conserve gateway on {address}, policy {config.scheduler.policy}")
    for engine in engines:
        print(f"  {engine.role:7} {engine.name:12} {engine.url}")
    print(f"  traces: {traces.destination}", flush=True)
