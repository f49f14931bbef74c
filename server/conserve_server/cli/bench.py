"""`conserve bench`: replays a workload against a running gateway, with the simulator's metrics."""

from __future__ import annotations

import argparse
import asyncio
import os
import pathlib
from typing import TYPE_CHECKING

from conserve_server.cli.workload_options import add_workload_options, workload_of

if TYPE_CHECKING:
    from conserve_server.simulation.live.replay import Replayed
    from conserve_server.simulation.metrics import Metrics
    from conserve_server.simulation.workload import Workload

_SHOWN_FAILURES = 3


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `bench` to the console script's subcommands."""
    parser = subparsers.add_parser(
        "bench",
        help="replay a workload against a running gateway",
        description="Replay a workload against a running gateway: prompts of token ids of the workload's "
        "lengths, its arrivals and tool gaps. An API key is read from CONSERVE_API_KEY.",
    )
    add_workload_options(parser)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the gateway (default: %(default)s)")
    parser.add_argument(
        "--speed", type=float, default=1.0, help="how many times as fast arrivals and gaps go (default: 1)"
    )
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="write the metrics as JSON")


def run(args: argparse.Namespace) -> int:
    """Exit status: 0, or 1 where a conversation failed."""
    import time

    workload = workload_of(args)
    name = f"bench-{time.time_ns():x}"
    replayed, measured = asyncio.run(_replay(args, workload, name))
    print(_table(measured))
    if args.output is not None:
        _write(args.output, args, workload, measured, replayed)
    for failure in replayed.failures[:_SHOWN_FAILURES]:
        print(f"failed: {failure}")
    if replayed.failures:
        print(f"{len(replayed.failures)} of {len(workload.arrivals)} conversations failed")
    return 1 if replayed.failures else 0


async def _replay(args: argparse.Namespace, workload: Workload, name: str) -> tuple[Replayed, Metrics]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from conserve_server.simulation.live.replay import Told, replay
    from conserve_server.simulation.live.token_client import connected
    from conserve_server.simulation.metrics import metrics

    key = os.environ.get("CONSERVE_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else None
    turns = sum(len(each.conversation.turns) for each in workload.arrivals)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    async with connected(args.url, headers=headers) as client:
        with Progress(*columns, transient=True) as progress:
            task = progress.add_task("turns", total=turns)

            def tell(told: Told) -> None:
                description = f"turns ({told.running} conversations running)"
                progress.update(task, completed=told.turns, description=description)

            replayed = await replay(workload, client, speed=args.speed, run_name=name, tell=tell)
    return replayed, metrics(replayed.records, [replayed.gaps], replayed.duration_s)


def _table(measured: Metrics) -> str:
    rows = [f"{'':16}{'mean':>9}{'p50':>9}{'p95':>9}{'p99':>9}"]
    for name in ("ttfet_s", "e2e_s", "ttft_s", "first_ttft_s", "later_ttft_s", "tbt_s"):
        each = getattr(measured, name)
        rows.append(f"{name:16}{each.mean:9.3f}{each.p50:9.3f}{each.p95:9.3f}{each.p99:9.3f}")
    rows.append(
        f"{measured.conversations} conversations, {measured.turns} turns in {measured.duration_s:.1f} s: "
        f"{measured.output_tokens_per_s:.1f} output tokens/s, {measured.cached_share:.0%} of prompts cached, "
        f"{measured.transfers} transfers"
    )
    return "\n".join(rows)


def _write(
    path: pathlib.Path, args: argparse.Namespace, workload: Workload, measured: Metrics, replayed: Replayed
) -> None:
    import json

    from conserve_server.core.errors import ConserveError

    document = {
        "workload": workload.name,
        "url": args.url,
        "speed": args.speed,
        "seed": args.seed,
        "metrics": measured.to_json(),
        "failures": replayed.failures,
    }
    try:
        path.write_text(json.dumps(document, indent=2) + "\n")
    except OSError as error:
        raise ConserveError(f"can't write {path}: {error.strerror}; name another file") from error
