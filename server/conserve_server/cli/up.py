"""`conserve up`: start a configuration's local engines and keep them until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conserve_server.core.config import Config
    from conserve_server.engines.engine import EngineSpec
    from conserve_server.engines.launcher import LocalPool


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "up",
        help="start local engines and keep them running",
        description="Start the configuration's local engines and keep them running until Ctrl-C or SIGTERM; "
        "then all of them are stopped. `conserve serve` with the same configuration finds them.",
    )
    parser.add_argument("config", type=Path, help="the TOML configuration")
    parser.add_argument(
        "--first-port",
        type=int,
        metavar="PORT",
        help="the engines listen on this port and the ones after it (default: free ports)",
    )


def run(args: argparse.Namespace) -> int:
    """Run until interrupted (130), told to stop (0), or an engine can't be kept alive (1)."""
    from conserve_server.core.config import load_config

    return asyncio.run(_up(load_config(args.config), args.first_port))


async def _up(config: Config, first_port: int | None) -> int:
    """SIGTERM cancels, as Ctrl-C does, at whatever point we are; what is running is stopped."""
    from conserve_server.cli.local_pool import started_pool

    told_to_stop = asyncio.Event()
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def stop() -> None:
        if task is not None and not told_to_stop.is_set():
            told_to_stop.set()
            task.cancel()

    loop.add_signal_handler(signal.SIGTERM, stop)
    try:
        async with started_pool(config, first_port=first_port) as pool:
            _announce(pool)
            raise await pool.wait_failed()
    except asyncio.CancelledError:
        if not told_to_stop.is_set():
            raise
        return 0


def _announce(pool: LocalPool) -> None:
    print("engines ready")
    for engine in pool.specs:
        print(f"  {engine.role:<7} {engine.name:<12} {engine.url}")
    for line in power_caps(pool.specs):
        print(f"  {line}")
    print("Ctrl-C stops them", flush=True)


def power_caps(engines: Sequence[EngineSpec]) -> list[str]:
    """The power cap of each GPU that an engine runs on, where there is a driver to ask."""
    from conserve_server.core.errors import ConfigError
    from conserve_server.energy.nvml import NvmlMeter

    gpus = {gpu: engine.name for engine in engines for gpu in engine.gpus}
    if not gpus:
        return []
    try:
        meter = NvmlMeter(1.0, list(gpus))
    except ConfigError as error:
        return [f"power caps are not known: {error}"]
    meter.close()
    return [
        f"GPU {device.name}, {device.label}: power cap {device.limit_w:g} W"
        for device in meter.devices
        if device.limit_w is not None
    ]
