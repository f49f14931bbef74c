"""`conserve record`: what a gateway served, as a workload to simulate, replay or plan for."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conserve_server.simulation.workload import Arrival


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `record` to the console script's subcommands."""
    parser = subparsers.add_parser(
        "record",
        help="write what was served as a workload: token counts and times, no content",
        description="Write the conversations of a running gateway (--url), or of a trace folder, as a "
        "workload for simulate, bench and plan. A key that may see all is read from CONSERVE_API_KEY.",
    )
    parser.add_argument("output", type=pathlib.Path, metavar="FILE", help="the file to write, JSON lines")
    parser.add_argument(
        "--url", help="watch this gateway, and write what it knows and serves until interrupted"
    )
    parser.add_argument("--seconds", type=_positive, help="how long to watch it")
    parser.add_argument(
        "--dir",
        type=pathlib.Path,
        help="the trace folder (default: $CONSERVE_TRACE_DIR, else ~/.local/state/conserve/traces)",
    )
    parser.add_argument(
        "--since",
        type=_positive,
        metavar="HOURS",
        help="of the folder, only conversations that began in the last HOURS",
    )


def run(args: argparse.Namespace) -> int:
    """Write the file. Raises ConserveError where there is nothing to write."""
    from conserve_server.core.errors import ConfigError
    from conserve_server.simulation.workloads.own import write_own

    if args.url is not None and (args.dir is not None or args.since is not None):
        raise ConfigError("--dir and --since are for a trace folder, --url for a running gateway: use one")
    if args.url is None and args.seconds is not None:
        raise ConfigError("--seconds says how long to watch a gateway: name it with --url")
    arrivals = _of_folder(args) if args.url is None else _of_gateway(args)
    written = write_own(args.output, arrivals)
    turns = sum(len(each.conversation.turns) for each in arrivals)
    print(f"{args.output}: {written} conversations, {turns} turns, {arrivals[-1].at_s:.0f} s of arrivals")
    return 0


def _of_folder(args: argparse.Namespace) -> list[Arrival]:
    import time

    from conserve_sdk.protocol import trace_dir
    from conserve_server.core.errors import ConserveError
    from conserve_server.simulation.workloads.record import recorded_arrivals
    from conserve_server.telemetry.spans_file import read_spans

    folder = args.dir if args.dir is not None else trace_dir()
    if not folder.is_dir():
        raise ConserveError(f"no trace folder {folder}: a gateway writes it, --dir reads another")
    since_unix_s = 0.0 if args.since is None else time.time() - args.since * 3600
    arrivals = recorded_arrivals(read_spans(folder), since_unix_s=since_unix_s)
    if not arrivals:
        raise ConserveError(f"no conversation with counted tokens in {folder}" + _lately(args.since))
    return arrivals


def _of_gateway(args: argparse.Namespace) -> list[Arrival]:
    """What the gateway tells until the time is over, it stops, or the user interrupts: all is kept."""
    from rich.console import Console

    from conserve_server.core.errors import ConserveError
    from conserve_server.simulation.live.recorder import Recording, watch
    from conserve_server.simulation.workloads.record import arrivals_of

    recording, key = Recording(), os.environ.get("CONSERVE_API_KEY")
    with Console(stderr=True).status(f"watching {args.url}") as status:

        def tell(recording: Recording) -> None:
            status.update(f"{len(recording.turns)} conversations, {recording.turn_count} turns")

        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(watch(args.url, recording, seconds=args.seconds, key=key, tell=tell))
    if recording.lost is not None:
        print(f"recorded until then: {recording.lost}")
    if not recording.turns:
        raise ConserveError(f"{args.url} told of no turn with counted tokens: nothing was written")
    return arrivals_of(recording.conversations)


def _lately(hours: float | None) -> str:
    return "" if hours is None else f" in the last {hours:g} hours"


def _positive(text: str) -> float:
    number = float(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number
