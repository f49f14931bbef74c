"""Options that name a workload: a recorded trace or a profile, its arrivals, and how it is cut to size."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conserve_server.simulation.workload import ConversationShape, Workload


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    """The workload, as simulate, bench and plan take it."""
    parser.add_argument(
        "workload", help="a trace file (docs/workloads.md), or a profile: coding-agent, interactive-coding, …"
    )
    group = parser.add_argument_group("workload")
    group.add_argument("--format", help="the trace's format, where its first line doesn't tell it")
    group.add_argument(
        "--rate", type=_above_zero, metavar="PER_S", help="conversations a second (default: as recorded)"
    )
    group.add_argument(
        "--burstiness",
        type=_above_zero,
        default=1.0,
        metavar="X",
        help="with --rate: how uneven arrivals are (default: 1, Poisson; 3: bursts)",
    )
    group.add_argument(
        "--conversations", type=_at_least_one, metavar="N", help="how many (default: all, or 100)"
    )
    group.add_argument("--seed", type=int, default=1, help="of arrivals and profiles (default: 1)")
    group.add_argument("--max-turns", type=_at_least_one, metavar="N", help="cut conversations after N turns")
    group.add_argument(
        "--max-context", type=_at_least_one, metavar="TOKENS", help="cut conversations that grow beyond it"
    )
    group.add_argument("--max-gap", type=_above_zero, metavar="S", help="shorten longer tool gaps to it")
    group.add_argument(
        "--token-scale", type=_above_zero, default=1.0, metavar="X", help="multiply all lengths (default: 1)"
    )


def workload_of(args: argparse.Namespace) -> Workload:
    """The workload that the options name. Raises ConfigError or TraceError for one that can't be had."""
    from conserve_server.core.errors import ConfigError
    from conserve_server.simulation.workload import Arrival, Workload
    from conserve_server.simulation.workloads.arrivals import bursty

    recorded = _recorded(args)
    fitted = [(each.at_s, shape) for each in recorded.arrivals if (shape := _sized(args, each.conversation))]
    if not fitted:
        raise ConfigError(f"no conversation of {args.workload} is short enough: raise --max-context")
    if args.rate is None:
        kept = fitted[: args.conversations]
        return Workload(recorded.name, tuple(Arrival(at_s, shape) for at_s, shape in kept))
    return bursty(
        [shape for _, shape in fitted],
        rate_per_s=args.rate,
        count=args.conversations or len(fitted),
        seed=args.seed,
        name=recorded.name,
        variation=args.burstiness,
    )


def _recorded(args: argparse.Namespace) -> Workload:
    from conserve_server.core.errors import ConfigError
    from conserve_server.simulation.workload import Arrival, Workload
    from conserve_server.simulation.workloads.load import load_workload
    from conserve_server.simulation.workloads.profiles import PROFILES, profile_conversations

    if args.workload not in PROFILES:
        return load_workload(pathlib.Path(args.workload), args.format)
    if args.rate is None:
        raise ConfigError(f"{args.workload} is a profile and says no times: give --rate")
    shapes = profile_conversations(args.workload, count=args.conversations or 100, seed=args.seed)
    return Workload(args.workload, tuple(Arrival(0.0, shape) for shape in shapes))


def _sized(args: argparse.Namespace, shape: ConversationShape) -> ConversationShape | None:
    from conserve_server.simulation.workloads.recorded import cut, scaled

    return cut(
        scaled(shape, args.token_scale) if args.token_scale != 1.0 else shape,
        max_turns=args.max_turns,
        max_context_tokens=args.max_context,
        max_gap_s=args.max_gap,
    )


def _above_zero(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number
