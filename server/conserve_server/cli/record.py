"""`conserve record`: what a gateway served, as a workload to simulate, replay or plan for."""

from __future__ import annotations

import argparse
import pathlib


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `record` to the console script's subcommands."""
    parser = subparsers.add_parser(
        "record",
        help="write what was served as a workload: token counts and times, no content",
        description="Write the conversations in the trace folder as a workload for simulate, bench and plan.",
    )
    parser.add_argument("output", type=pathlib.Path, metavar="FILE", help="the file to write, JSON lines")
    parser.add_argument(
        "--dir",
        type=pathlib.Path,
        help="the trace folder (default: $CONSERVE_TRACE_DIR, else ~/.local/state/conserve/traces)",
    )
    parser.add_argument(
        "--since", type=_hours, metavar="HOURS", help="only conversations that began in the last HOURS"
    )


def run(args: argparse.Namespace) -> int:
    """Write the file. Raises ConserveError where there is nothing to write."""
    import time

    from conserve_sdk.protocol import trace_dir
    from conserve_server.core.errors import ConserveError
    from conserve_server.simulation.workloads.own import write_own
    from conserve_server.simulation.workloads.record import recorded_arrivals
    from conserve_server.telemetry.spans_file import read_spans

    folder = args.dir if args.dir is not None else trace_dir()
    if not folder.is_dir():
        raise ConserveError(f"no trace folder {folder}: a gateway writes it, --dir reads another")
    since_unix_s = 0.0 if args.since is None else time.time() - args.since * 3600
    arrivals = recorded_arrivals(read_spans(folder), since_unix_s=since_unix_s)
    if not arrivals:
        raise ConserveError(f"no conversation with counted tokens in {folder}" + _lately(args.since))
    written = write_own(args.output, arrivals)
    turns = sum(len(each.conversation.turns) for each in arrivals)
    print(f"{args.output}: {written} conversations, {turns} turns, {arrivals[-1].at_s:.0f} s of arrivals")
    return 0


def _lately(hours: float | None) -> str:
    return "" if hours is None else f" in the last {hours:g} hours"


def _hours(text: str) -> float:
    hours = float(text)
    if hours <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return hours
