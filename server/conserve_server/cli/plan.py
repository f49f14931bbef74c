"""`conserve plan`: which GPUs, pools and policy serve a workload within its objectives."""

from __future__ import annotations

import argparse
import os
import pathlib
from typing import TYPE_CHECKING

from conserve_server.cli.workload_options import add_workload_options, workload_of

if TYPE_CHECKING:
    from conserve_server.simulation.planner import Plans, Question
    from conserve_server.simulation.plans import Assessed, Offer

_OFFER = "NAME[@TIMING.json]:COUNT:PRICE[:WATTS,WATTS]"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `plan` to the console script's subcommands."""
    parser = subparsers.add_parser(
        "plan",
        help="size a cluster for a workload",
        description="Search GPUs, pools and policies with the simulator: the cheapest and the most frugal "
        "plan that meets the objectives, and the configuration of the cheapest.",
    )
    add_workload_options(parser)
    parser.add_argument("--model", default="Qwen/Qwen3-8B", help="the model (default: %(default)s)")
    parser.add_argument(
        "--gpu",
        action="append",
        required=True,
        metavar=_OFFER,
        help="GPUs that may be used: how many, their price an hour, power caps to try, a calibration in "
        "place of the shipped grid; may be repeated",
    )
    group = parser.add_argument_group("objectives, in seconds; 0 leaves one out")
    group.add_argument("--first-ttft", type=float, default=3.0, help="p95 of first turns (default: 3)")
    group.add_argument("--later-ttft", type=float, default=1.5, help="p95 of later turns (default: 1.5)")
    group.add_argument("--gap", type=float, default=0.04, help="p99 between output tokens (default: 0.04)")
    group.add_argument("--ttfet", type=float, default=0.0, help="p95 of a conversation's TTFET")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument(
        "--config", type=pathlib.Path, metavar="FILE", help="write the cheapest plan's TOML here"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, metavar="FILE", help="write all that was found as JSON"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status: 0, or 1 where no fleet of these offers meets the objectives."""
    question = _question(args)
    found = _planned(question, args.processes)
    print(_report(found))
    if args.output is not None:
        _write_json(args.output, found)
    cheapest = found.cheapest
    if cheapest is None:
        return 1
    _write_config(args, cheapest)
    return 0


def _question(args: argparse.Namespace) -> Question:
    from conserve_server.simulation.planner import Question
    from conserve_server.simulation.plans import Objectives

    objectives = Objectives(
        first_ttft_p95_s=args.first_ttft or None,
        later_ttft_p95_s=args.later_ttft or None,
        gap_p99_s=args.gap or None,
        ttfet_p95_s=args.ttfet or None,
    )
    offers = tuple(offer for text in args.gpu for offer in offers_of(text))
    for offer in offers:
        _ = offer.power, offer.timing(args.model)  # raises now for what the search could not use
    return Question(workload_of(args), args.model, objectives, offers)


def offers_of(text: str) -> list[Offer]:
    """The offers in `text`, one for each power cap. Raises ConfigError for what can't be read."""
    from conserve_server.core.errors import ConfigError
    from conserve_server.simulation.plans import Offer

    parts = text.split(":")
    name, _, timing = parts[0].partition("@")
    try:
        if len(parts) not in (3, 4) or not name or int(parts[1]) < 1 or float(parts[2]) < 0:
            raise ValueError
        caps = [float(each) for each in parts[3].split(",")] if len(parts) == 4 else [None]
        file = pathlib.Path(timing) if timing else None
        return [Offer(name.lower(), int(parts[1]), float(parts[2]), file, cap_w) for cap_w in caps]
    except ValueError:
        raise ConfigError(f"--gpu must be {_OFFER}, such as h100:8:2.50:700,500, got {text!r}") from None


def _planned(question: Question, processes: int) -> Plans:
    from rich.progress import Progress

    from conserve_server.simulation.planner import plan

    with Progress(transient=True) as progress:
        task = progress.add_task("searching", total=None)

        def tell(done: int, total: int, last: str) -> None:
            progress.update(task, completed=done, total=total, description=f"searching ({last} done)")

        return plan(question, processes=max(processes, 1), tell=tell)


def _report(found: Plans) -> str:
    if found.cheapest is None or found.most_frugal is None:
        near = min(found.assessed, key=lambda each: (len(each.missed), each.candidate.price_per_h))
        return (
            f"no fleet of {len(found.assessed)} that were simulated meets the objectives; "
            f"nearest: {near.candidate.label}, which misses {', '.join(near.missed)}"
        )
    lines = [f"cheapest:     {_line(found.cheapest)}", f"most frugal:  {_line(found.most_frugal)}"]
    lines += [f"frontier, of {len(found.assessed)} fleets that were simulated:"]
    lines += [f"  {_line(each)}" for each in found.frontier]
    lines.append("Joules are modelled, with the range that the model of watts errs in.")
    return "\n".join(lines)


def _line(each: Assessed) -> str:
    least, most = each.joules_range
    joules = f"{each.joules_per_token:.2f} ({least:.2f} to {most:.2f}) J a token"
    return f"{each.candidate.label}: {each.candidate.price_per_h:.2f} an hour, {joules}"


def _write_config(args: argparse.Namespace, cheapest: Assessed) -> None:
    from conserve_server.core.errors import ConserveError
    from conserve_server.simulation.plan_config import plan_config

    text = plan_config(cheapest.candidate, args.model)
    if args.config is None:
        print(f"\n{text}", end="")
        return
    try:
        args.config.write_text(text)
    except OSError as error:
        raise ConserveError(f"can't write {args.config}: {error.strerror}; name another file") from error
    print(f"the cheapest plan's configuration: {args.config}")


def _write_json(path: pathlib.Path, found: Plans) -> None:
    import json

    from conserve_server.core.errors import ConserveError

    document = {
        "frontier": [each.candidate.label for each in found.frontier],
        "fleets": [
            {
                "fleet": each.candidate.label,
                "policy": each.candidate.policy,
                "engines": each.candidate.engines,
                "price_per_h": each.candidate.price_per_h,
                "joules_per_output_token": each.joules_per_token,
                "joules_range": each.joules_range,
                "misses": each.missed,
                "metrics": each.metrics.to_json() if each.metrics else None,
            }
            for each in found.assessed
        ],
    }
    try:
        path.write_text(json.dumps(document, indent=2) + "\n")
    except OSError as error:
        raise ConserveError(f"can't write {path}: {error.strerror}; name another file") from error
