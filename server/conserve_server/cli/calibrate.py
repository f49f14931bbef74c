"""`conserve calibrate`: measures a live engine's steps, and writes a timing that simulations accept."""

from __future__ import annotations

import argparse
import asyncio
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conserve_server.simulation.calibration import Calibration, Observation
    from conserve_server.simulation.live.probes import Plan
    from conserve_server.simulation.live.token_client import TokenClient


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `calibrate` to the console script's subcommands."""
    parser = subparsers.add_parser(
        "calibrate",
        help="measure a live engine's steps for the simulator",
        description="Measure prefill, append and decode steps of a live vLLM engine, fit a timing to them "
        "and write it to a file that simulate and plan accept. The engine must be idle.",
    )
    parser.add_argument("url", help="the engine, such as http://localhost:8100")
    parser.add_argument("output", type=pathlib.Path, metavar="FILE", help="the timing, JSON")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each point (default: 3)")
    parser.add_argument(
        "--longest", type=int, metavar="TOKENS", help="leave out longer sequences (default: the engine's own)"
    )
    parser.add_argument(
        "--kv-bytes-per-token",
        type=int,
        help="KV of one token, for the time of transfers (default: what the engine says)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure and write. Raises ConserveError where the engine can't be measured."""
    from conserve_server.simulation.calibration import write_calibration

    found = asyncio.run(_calibrate(args))
    write_calibration(args.output, found)
    print(_summary(found))
    print(f"written to {args.output}")
    return 0


async def _calibrate(args: argparse.Namespace) -> Calibration:
    from conserve_server.core.errors import ConfigError
    from conserve_server.simulation.calibration import fit
    from conserve_server.simulation.live.engine_page import read_page
    from conserve_server.simulation.live.probes import Plan
    from conserve_server.simulation.live.token_client import connected

    async with connected(args.url) as client:
        page = await read_page(client)
        bytes_per_token = args.kv_bytes_per_token or page.kv_bytes_per_token
        if bytes_per_token is None or page.kv_capacity_tokens is None:
            raise ConfigError(f"{args.url} does not tell the size of its KV cache: give --kv-bytes-per-token")
        longest = min(args.longest or page.longest, page.longest)
        observations = await _measured(client, Plan(repeats=args.repeats).within(longest))
    return fit(
        observations,
        model=client.target.model,
        kv_bytes_per_token=bytes_per_token,
        kv_capacity_tokens=page.kv_capacity_tokens,
    )


async def _measured(client: TokenClient, plan: Plan) -> list[Observation]:
    from rich.progress import Progress

    from conserve_server.simulation.live.probes import Prober

    with Progress(transient=True) as progress:
        task = progress.add_task("measuring", total=plan.points + 1)

        def tell(what: str) -> None:
            progress.update(task, advance=1, description=what)

        return await Prober(client, plan, tell=tell).measure()


def _summary(found: Calibration) -> str:
    fit = found.fit
    return (
        f"{found.model}: a step {found.base_s * 1e3:.2f} ms, "
        f"a prompt token {found.prefill_token_s * 1e6:.1f} µs, "
        f"a decode {found.decode_s * 1e3:.3f} ms, a request {found.request_s * 1e3:.2f} ms more\n"
        f"{fit.observations} points: median error {fit.median_error:.1%}, p95 {fit.p95_error:.1%}, "
        f"largest {fit.worst_error:.1%}"
    )
