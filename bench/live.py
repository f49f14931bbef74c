"""Five policies on real vLLM engines, in one run, in turns; and what the simulator says of the same.

    make bench-live
    python bench/live.py [--python .venv-vllm/bin/python] [--model tiny-random] [--rounds 3]
                         [--policies conserve,conditional] [--conversations 16] [--rate 0.5]
                         [--output build/live.json]

Two CPU engines run throughout, each on a core of its own; either can give and take KV. Each round
starts a gateway over them once for each policy, in an order that turns from round to round, and
replays the same workload with the same arrivals. Ratios are taken within a round. A first
measurement of the idle engines is the simulator's timing (`conserve calibrate`), of prefills,
appends, decodes and transfers: nothing is fitted to the replays. Engines, gateway and client share
the machine's cores, which the model knows nothing of: with a model as small as tiny-random, most of
a turn is their work and not the engine's steps.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from conserve_sdk.protocol import Path
from conserve_server.cli.gateway_process import running_gateway
from conserve_server.cli.local_pool import started_pool
from conserve_server.core.config import parse_config
from conserve_server.core.policy_config import SchedulerConfig
from conserve_server.energy.modelled import A40
from conserve_server.scheduling.policies import policy_of
from conserve_server.simulation.calibration import Calibration, fit
from conserve_server.simulation.fleet import Fleet, SimulatedEngine
from conserve_server.simulation.link import Link
from conserve_server.simulation.live.engine_page import read_page
from conserve_server.simulation.live.probes import Plan, Prober
from conserve_server.simulation.live.replay import replay
from conserve_server.simulation.live.token_client import TokenClient, connected, random_tokens
from conserve_server.simulation.metrics import metrics
from conserve_server.simulation.records import PATHS, Records
from conserve_server.simulation.simulator import Simulator
from conserve_server.simulation.timing import Step
from conserve_server.simulation.workload import ConversationShape, TurnShape, Workload
from conserve_server.simulation.workloads.arrivals import poisson

ROOT = pathlib.Path(__file__).resolve().parents[1]
BASELINE = "full_disaggregation"
TARGET_RATIO, TARGET_ERROR = 0.7, 0.25
# Which engines prefill for others and which hold conversations, 0 and 1, under each policy.
ROLES = {
    "conserve": ((0,), (1,)),
    "conserve_plus": ((0,), (1,)),
    "full_disaggregation": ((0,), (1,)),
    "conditional": ((0,), (1,)),
    "collocated_sticky": ((), (0, 1)),
}
COMPARED = ("conserve", "full_disaggregation", "collocated_sticky")
PLAN = Plan(prefills=(16, 64, 128, 256, 512), contexts=(256, 768), appends=(16, 64), batches=(1, 2, 4))
TRANSFERS = (64, 1024)
CONDITIONAL_TOKENS = 128
"""The threshold of `conditional`, between this workload's appends and its first turns."""
_KEPT = ("conserve-sdk", "aiohttp", "numpy")


@dataclass(frozen=True)
class Run:
    """One policy in one round."""

    policy: str
    round: int
    found: dict[str, object]
    ttfet_s: list[float]


def main() -> None:
    options = parse(sys.argv[1:])
    result = asyncio.run(measured(options))
    print(summary(result))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("CONSERVE_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python")
    parser.add_argument("--python", type=pathlib.Path, default=default, help="of the vLLM environment")
    parser.add_argument(
        "--engine", choices=("vllm", "emulated"), default="vllm", help="emulated: a quick look"
    )
    parser.add_argument("--model", default="tiny-random")
    parser.add_argument("--policies", type=policy_names, default=tuple(ROLES), metavar="NAME,…")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--conversations", type=int, default=16, help="in each replay")
    parser.add_argument("--rate", type=float, default=0.5, help="conversations a second")
    parser.add_argument("--first-tokens", type=int, default=600)
    parser.add_argument("--appended-tokens", type=int, default=48)
    parser.add_argument("--output-tokens", type=int, default=8)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--gap", type=float, default=0.2, help="seconds in a tool")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/live.json"))
    return parser.parse_args(arguments)


def policy_names(text: str) -> tuple[str, ...]:
    """The named ones; those that are compared with each other belong to every run."""
    named = [*text.split(","), *COMPARED]
    if unknown := set(named) - set(ROLES):
        raise argparse.ArgumentTypeError(
            f"no policy {', '.join(unknown)} here: choose from {', '.join(ROLES)}"
        )
    return tuple(policy for policy in ROLES if policy in named)


async def measured(options: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="conserve-live-") as folder:
        async with engines(options, pathlib.Path(folder)) as (urls, home):
            calibration, link = await calibrated(urls, home)
            runs = [
                await one_run(options, policy, number, urls, home)
                for number in range(options.rounds)
                for policy in turned(list(options.policies), number)
            ]
    simulated = {policy: simulate(options, policy, calibration, link) for policy in options.policies}
    return report(options, runs, simulated, calibration, link)


def turned(policies: list[str], by: int) -> list[str]:
    return policies[by % len(policies) :] + policies[: by % len(policies)]


@asynccontextmanager
async def engines(
    options: argparse.Namespace, home: pathlib.Path
) -> AsyncIterator[tuple[list[str], pathlib.Path]]:
    """The two engines' addresses, while they run."""
    pool = {"count": 1, "has_both_roles": True}
    document = {
        "model": options.model,
        "pools": {"prefill": {**pool, "cores": ["0"]}, "decode": {**pool, "cores": ["1"]}},
        "launcher": {
            "engine": options.engine,
            "python": str(options.python),
            "run_dir": str(home / "run"),
            "kv_cache_gib": 1.0,
            "max_model_len": 2048,
            "start_timeout_s": 600.0,
        },
    }
    async with started_pool(parse_config(document)) as running:
        yield [spec.url for spec in running.specs], home


def scheduler_of(policy: str) -> dict[str, object]:
    return {"policy": policy, "conditional": {"threshold_tokens": CONDITIONAL_TOKENS}}


@asynccontextmanager
async def gateway(policy: str, urls: list[str], home: pathlib.Path) -> AsyncIterator[TokenClient]:
    """A client of a gateway over the engines under this policy."""
    prefillers, decoders = ROLES[policy]
    lines = [f"[scheduler]\npolicy = {json.dumps(policy)}"]
    lines.append(f"[scheduler.conditional]\nthreshold_tokens = {CONDITIONAL_TOKENS}")
    for role, members in (("prefill", prefillers), ("decode", decoders)):
        lines.append(f"[pools.{role}]\nengines = {json.dumps([urls[each] for each in members])}")
    config = home / f"{policy}.toml"
    config.write_text("\n".join(lines) + "\n")
    env = {"CONSERVE_TRACE_DIR": str(home / "traces")}
    async with running_gateway(config, env, home / "gateway.log") as url, connected(url) as client:
        yield client


def workload(options: argparse.Namespace, seed: int) -> Workload:
    """Agents of one kind: a long first turn, short appends and answers, a tool between turns."""
    first = TurnShape(options.first_tokens, options.output_tokens)
    later = TurnShape(options.appended_tokens, options.output_tokens, options.gap)
    turns = (first, *[later] * (options.turns - 1))
    shapes = [ConversationShape(f"c{number}", turns) for number in range(options.conversations)]
    return poisson(shapes, rate_per_s=options.rate, count=len(shapes), seed=seed, name="live")


async def one_run(
    options: argparse.Namespace, policy: str, number: int, urls: list[str], home: pathlib.Path
) -> Run:
    async with gateway(policy, urls, home) as client:
        name = f"{policy}-{number}-{time.time_ns():x}"
        # What a pair of engines does once, such as shaking hands, is done before the clock runs.
        await client.stream(random_tokens(name, 100), 2, conversation=f"{name}-warm")
        found = await replay(workload(options, number), client, run_name=name)
    if found.failures:
        raise SystemExit(f"{policy}: {len(found.failures)} conversations failed: {found.failures[0]}")
    all_of = metrics(found.records, [found.gaps], found.duration_s).to_json()
    print(f"round {number}, {policy}: p95 TTFET {spread(all_of, 'ttfet_s', 'p95'):.3f} s", file=sys.stderr)
    return Run(policy, number, all_of, ttfets(found.records, 0.0))


def spread(found: Mapping[str, object], metric: str, statistic: str) -> float:
    each = found[metric]
    assert isinstance(each, dict)
    return float(each[statistic])


def ttfets(records: Records, leg_s: float) -> list[float]:
    """Each conversation's TTFET, with `leg_s` more for each request that its turns are made of."""
    by_conversation: dict[int, float] = {}
    for row, conversation in enumerate(records.conversation):
        legs = 2 if PATHS[records.path[row]].moves_kv else 1
        ends_s = records.first_token_s[row] if records.is_last[row] else records.ended_s[row]
        took_s = ends_s - records.arrived_s[row] + legs * leg_s
        by_conversation[conversation] = by_conversation.get(conversation, 0.0) + took_s
    return list(by_conversation.values())


# -- the simulator's side ----------------------------------------------------------------------


async def calibrated(urls: list[str], home: pathlib.Path) -> tuple[Calibration, Link]:
    """The timing of an engine alone, and of a transfer between the two."""
    async with connected(urls[1]) as client:
        page = await read_page(client)
        observations = await Prober(client, PLAN.within(page.longest)).measure()
    assert page.kv_capacity_tokens is not None
    bytes_per_token = page.kv_bytes_per_token or 1
    found = fit(
        observations,
        model=client.target.model,
        kv_bytes_per_token=bytes_per_token,
        kv_capacity_tokens=page.kv_capacity_tokens,
    )
    short_s, long_s = [await transfer_s(tokens, found, urls, home) for tokens in TRANSFERS]
    per_token_s = max((long_s - short_s) / (TRANSFERS[1] - TRANSFERS[0]), 1e-9)
    latency_s = max(short_s - per_token_s * TRANSFERS[0], 0.0)
    return found, Link(latency_s, bytes_per_token / per_token_s)


async def transfer_s(tokens: int, found: Calibration, urls: list[str], home: pathlib.Path) -> float:
    """What a first turn through both engines takes beyond its prefill and its two requests."""
    async with gateway("conserve", urls, home) as client:
        taken = []
        for number in range(6):
            name = f"transfer-{tokens}-{number}-{time.time_ns():x}"
            answer = await client.stream(random_tokens(name, tokens), 2, conversation=name)
            await client.release(name)
            assert answer.path is Path.REMOTE_PREFILL
            taken.append(answer.first_s - answer.sent_s)
    computed_s = found.timing.step_s(Step(1, tokens)) + found.timing.step_s(Step(1, 1, tokens))
    return max(statistics.median(taken[1:]) - computed_s - 2 * found.request_s, 0.0)


def simulate(
    options: argparse.Namespace, policy: str, calibration: Calibration, link: Link
) -> list[list[float]]:
    """Each round's TTFETs on modelled engines under the same policy and arrivals."""
    prefillers, decoders = ROLES[policy]
    members = [
        SimulatedEngine(
            name=f"engine-{each}",
            timing=calibration.timing,
            power=A40,
            takes_prefills=each in prefillers,
            takes_conversations=each in decoders,
        )
        for each in (0, 1)
    ]
    config = SchedulerConfig.model_validate(scheduler_of(policy))
    rounds = []
    for number in range(options.rounds):
        simulator = Simulator(policy_of(config), Fleet(tuple(members), link))
        records = simulator.run(workload(options, number)).records
        rounds.append(ttfets(records, calibration.request_s))
    return rounds


# -- the report --------------------------------------------------------------------------------


def report(
    options: argparse.Namespace,
    runs: list[Run],
    simulated: dict[str, list[list[float]]],
    calibration: Calibration,
    link: Link,
) -> dict[str, object]:
    policies = {policy: of_policy(policy, runs, each) for policy, each in simulated.items()}
    ratio = statistics.median(policies["conserve"]["ratios_to_full_disaggregation"])
    errors = {policy: policies[policy]["simulation_error"] for policy in COMPARED}
    real = sorted(COMPARED, key=lambda each: float(policies[each]["p95_ttfet_s"]))
    foreseen = sorted(COMPARED, key=lambda each: float(policies[each]["simulated_p95_ttfet_s"]))
    return {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} logical CPUs, "
        f"load {os.getloadavg()[0]:.1f}",
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _KEPT},
        "options": {key: str(value) for key, value in vars(options).items()},
        "calibration": json_of(calibration),
        "link": dataclasses.asdict(link),
        "policies": policies,
        "conserve_to_full_disaggregation": ratio,
        "target_ratio": TARGET_RATIO,
        "within_target": ratio <= TARGET_RATIO,
        "simulation": {
            "errors": errors,
            "target": TARGET_ERROR,
            "within_target": all(abs(each) <= TARGET_ERROR for each in errors.values()),
            "measured_order": real,
            "simulated_order": foreseen,
            "same_order": real == foreseen,
        },
    }


def json_of(calibration: Calibration) -> dict[str, object]:
    names = ("base_s", "prefill_token_s", "prefill_pair_s", "decode_s", "decode_context_s", "request_s")
    return {name: getattr(calibration, name) for name in names} | {
        "points": calibration.fit.observations,
        "median_error": calibration.fit.median_error,
        "worst_error": calibration.fit.worst_error,
    }


def of_policy(policy: str, runs: list[Run], simulated: list[list[float]]) -> dict[str, Any]:
    """The p95 TTFET of all rounds together, each round's ratio to the baseline, and the simulated one."""
    mine = [run for run in runs if run.policy == policy]
    baseline = {run.round: p95(run.ttfet_s) for run in runs if run.policy == BASELINE}
    real_s = p95([value for run in mine for value in run.ttfet_s])
    simulated_s = p95([value for values in simulated for value in values])
    return {
        "p95_ttfet_s": real_s,
        "p95_ttfet_s_by_round": [p95(run.ttfet_s) for run in mine],
        "ratios_to_full_disaggregation": [p95(run.ttfet_s) / baseline[run.round] for run in mine],
        "simulated_p95_ttfet_s": simulated_s,
        "simulation_error": simulated_s / real_s - 1,
        "rounds": [run.found for run in mine],
    }


def p95(values: list[float]) -> float:
    return float(np.percentile(values, 95))


def summary(result: dict[str, object]) -> str:
    policies = result["policies"]
    assert isinstance(policies, dict)
    lines = [f"{'':22}{'p95 TTFET s':>12}{'x full disagg.':>16}{'simulated s':>13}{'error':>8}"]
    for policy, each in policies.items():
        ratio = statistics.median(each["ratios_to_full_disaggregation"])
        figures = f"{each['p95_ttfet_s']:12.3f}{ratio:16.2f}{each['simulated_p95_ttfet_s']:13.3f}"
        lines.append(f"{policy:22}{figures}{each['simulation_error']:+8.0%}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
