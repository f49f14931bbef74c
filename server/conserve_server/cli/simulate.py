"""`conserve simulate`: what a fleet would do with a workload under a policy, without a GPU."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conserve_server.core.policy_config import SchedulerConfig
    from conserve_server.simulation.engine_model import EngineSettings
    from conserve_server.simulation.fleet import Fleet, SimulatedEngine
    from conserve_server.simulation.host_tier import HostMemory
    from conserve_server.simulation.metrics import Metrics
    from conserve_server.simulation.power import FleetEnergy
    from conserve_server.simulation.workload import Workload


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `simulate` to the console script's subcommands."""
    parser = subparsers.add_parser(
        "simulate",
        help="what a fleet would do with a workload",
        description="Run a workload through the scheduler that the gateway serves with, on modelled engines.",
    )
    parser.add_argument("workload", help="a profile (coding-agent, interactive-coding, …) or a trace's file")
    parser.add_argument("--format", help="the trace's format, where its first line does not tell")
    parser.add_argument("--rate", type=_positive, help="conversations a second; a trace keeps its own times")
    parser.add_argument("--count", type=int, default=200, help="conversations (default: 200)")
    parser.add_argument("--arrivals", choices=("poisson", "bursty", "even"), default="poisson")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--gpu",
        default="h100",
        help="of every engine, or of prefillers, then decoders: h100,a100; h100@timing.json: a calibration",
    )
    parser.add_argument("--model", default="qwen3-8b")
    parser.add_argument("--prefill", type=int, metavar="N", help="engines that only prefill (default: 1)")
    parser.add_argument(
        "--decode", type=int, metavar="N", help="engines that hold conversations (default: 3)"
    )
    parser.add_argument("--both-roles", action="store_true", help="let the decode engines prefill for others")
    parser.add_argument("--policy", help="as scheduler.policy names it")
    parser.add_argument(
        "--config", type=pathlib.Path, help="take scheduler and pool sizes from this TOML file"
    )
    parser.add_argument(
        "--chunk",
        type=int,
        metavar="TOKENS",
        help="max_num_batched_tokens of decode engines; under conserve_plus they follow the load without it",
    )
    parser.add_argument(
        "--power-cap",
        type=_positive,
        metavar="WATTS",
        help="of decode engines: fewer watts, slower prefills, hardly slower decodes",
    )
    _add_kv(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_kv(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--release-kv",
        action="store_true",
        help="engines run conserve_vllm: they free the KV of ended conversations and tell what they evicted",
    )
    parser.add_argument(
        "--host-kv", type=int, metavar="TOKENS", help="give each decode engine a host tier of so much KV"
    )
    parser.add_argument(
        "--host-bandwidth",
        type=_positive,
        default=25.0,
        metavar="GB/S",
        help="from the host to the device (default: 25, four fifths of PCIe 4.0 x16)",
    )
    parser.add_argument(
        "--fetch-lead",
        type=_positive,
        metavar="SECONDS",
        help="fetch from the host tier so long before each turn, when its tool has ended",
    )


def run(args: argparse.Namespace) -> int:
    """Simulate and print. Raises ConfigError for what there is no workload, GPU or policy of."""
    from conserve_server.scheduling.policies import policy_of
    from conserve_server.simulation.fleet import Options
    from conserve_server.simulation.metrics import metrics
    from conserve_server.simulation.power import fleet_energy
    from conserve_server.simulation.simulator import Simulator
    from conserve_server.simulation.standalone import Standalone

    scheduler, prefill, decode, both = _scheduler(args)
    work, where = _workload(args), _fleet(args, scheduler, prefill, decode, both)
    options = Options(
        kv_budget_fraction=scheduler.budget_fraction,
        estimates=scheduler.estimates,
        is_replay=True,
        releases_kv=args.release_kv,
        tells_resident=args.release_kv,
        fetch_lead_s=args.fetch_lead,
    )
    outcome = Simulator(policy_of(scheduler, is_replay=True), where, options).run(work)
    alone = Standalone(where.engines[-1]).all_of(work)
    gaps = [engine.activity.gaps for engine in outcome.engines.values()]
    found = metrics(outcome.records, gaps, outcome.ends_s, alone=alone)
    energy = fleet_energy(where, outcome)
    loaded_tokens = sum(engine.loaded_tokens for engine in outcome.engines.values())
    if args.json:
        document = _document(args, work, scheduler.policy, where, found, energy)
        print(json.dumps({**document, "loaded_from_host_tokens": loaded_tokens}, indent=2))
    else:
        _print(scheduler.policy, where, found, energy)
        if any(engine.host is not None for engine in where.engines):
            print(f"{loaded_tokens} tokens loaded from host tiers")
    return 0


# -- what is simulated -------------------------------------------------------------------------


def _scheduler(args: argparse.Namespace) -> tuple[SchedulerConfig, int, int, bool]:
    """The scheduler's configuration, and how many engines prefill, decode, and do both."""
    from conserve_server.core.config import load_config
    from conserve_server.core.errors import ConfigError
    from conserve_server.core.policy_config import SchedulerConfig

    scheduler, prefill, decode, both = SchedulerConfig(), 1, 3, args.both_roles
    if args.config is not None:
        config = load_config(args.config)
        scheduler, prefill, decode = config.scheduler, config.pools.prefill.size, config.pools.decode.size
        both = both or config.pools.decode.has_both_roles
    if args.policy is not None:
        scheduler = scheduler.model_copy(update={"policy": args.policy})
    prefill = prefill if args.prefill is None else args.prefill
    decode = decode if args.decode is None else args.decode
    if decode < 1 or prefill < 0:
        raise ConfigError(f"--decode must be at least 1 and --prefill at least 0, got {decode} and {prefill}")
    return scheduler, prefill, decode, both


def _workload(args: argparse.Namespace) -> Workload:
    from conserve_server.core.errors import ConfigError
    from conserve_server.simulation.workloads import arrivals
    from conserve_server.simulation.workloads.load import load_workload
    from conserve_server.simulation.workloads.profiles import PROFILES, profile_conversations

    if args.workload in PROFILES:
        conversations = profile_conversations(args.workload, count=args.count, seed=args.seed)
        if args.rate is None:
            raise ConfigError(f"{args.workload} is a profile: pass --rate, conversations a second")
    elif pathlib.Path(args.workload).exists():
        recorded = load_workload(pathlib.Path(args.workload), args.format)
        if args.rate is None:
            return recorded
        conversations = [arrival.conversation for arrival in recorded.arrivals]
    else:
        known = ", ".join(PROFILES)
        raise ConfigError(f"{args.workload!r} is neither a file nor a profile; the profiles are: {known}")
    arrive = {"poisson": arrivals.poisson, "bursty": arrivals.bursty, "even": arrivals.evenly}[args.arrivals]
    return arrive(conversations, rate_per_s=args.rate, count=args.count, seed=args.seed, name=args.workload)


def _fleet(
    args: argparse.Namespace, scheduler: SchedulerConfig, prefill: int, decode: int, both: bool
) -> Fleet:
    from conserve_server.simulation.engine_model import EngineSettings
    from conserve_server.simulation.fleet import Fleet

    prefill_gpu, _, decode_gpu = args.gpu.partition(",")
    prefillers = [
        _engine(args, f"prefill-{n}", prefill_gpu, EngineSettings(max_num_batched_tokens=8192), prefills=True)
        for n in range(prefill)
    ]
    smallest = scheduler.conserve_plus.smallest_chunk_tokens
    adapts = scheduler.policy == "conserve_plus" and smallest > 0
    settings = EngineSettings(
        max_num_batched_tokens=args.chunk or 2048,
        schedules_by_priority=True,
        adapts_chunks=adapts and args.chunk is None,
        smallest_chunk_tokens=smallest,
    )
    decoders = [
        _engine(args, f"decode-{n}", decode_gpu or prefill_gpu, settings, prefills=both, decodes=True)
        for n in range(decode)
    ]
    return Fleet((*prefillers, *decoders))


def _engine(
    args: argparse.Namespace,
    name: str,
    gpu: str,
    settings: EngineSettings,
    *,
    prefills: bool,
    decodes: bool = False,
) -> SimulatedEngine:
    from conserve_server.simulation.fleet import SimulatedEngine
    from conserve_server.simulation.plans import Offer

    gpu_name, _, timing_file = gpu.partition("@")
    cap_w: float | None = args.power_cap if decodes else None
    offer = Offer(gpu_name.lower(), 1, 0.0, pathlib.Path(timing_file) if timing_file else None, cap_w)
    timing, power = offer.timing(args.model), offer.power_with(args.model)
    return SimulatedEngine(
        name=name,
        timing=timing,
        power=power,
        settings=settings,
        takes_prefills=prefills,
        takes_conversations=decodes,
        power_cap_w=cap_w,
        host=_host(args, timing.kv_bytes_per_token) if decodes else None,
    )


def _host(args: argparse.Namespace, kv_bytes_per_token: int) -> HostMemory | None:
    """As the command line says it, or else the configuration."""
    from conserve_server.core.config import load_config
    from conserve_server.core.errors import ConfigError
    from conserve_server.simulation.host_tier import HostMemory

    tokens: int | None = args.host_kv
    if tokens is None and args.config is not None:
        host_gib = load_config(args.config).pools.decode.host_kv_gib
        tokens = None if host_gib is None else int(host_gib * 1024**3 / kv_bytes_per_token)
    if tokens is None:
        if args.fetch_lead is not None:
            raise ConfigError("--fetch-lead needs a host tier to fetch from: pass --host-kv")
        return None
    if tokens <= 0:
        raise ConfigError(f"a host tier must have room for more than 0 tokens, got {tokens}: see --host-kv")
    return HostMemory(tokens, args.host_bandwidth * 1e9)


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


# -- what is printed ---------------------------------------------------------------------------


def _document(
    args: argparse.Namespace, work: Workload, policy: str, fleet: Fleet, found: Metrics, energy: FleetEnergy
) -> dict[str, object]:
    return {
        "workload": work.name,
        "rate_per_s": args.rate,
        "seed": args.seed,
        "policy": policy,
        "engines": [engine.name for engine in fleet.engines],
        "metrics": found.to_json(),
        "energy": {
            "kind": "modelled",
            "total_j": energy.modelled.total_j,
            "range_j": [energy.least.total_j, energy.most.total_j],
            "idle_j": energy.modelled.idle_j,
            "prefill_j": energy.modelled.prefill_j,
            "decode_j": energy.modelled.decode_j,
        },
    }


def _print(policy: str, fleet: Fleet, found: Metrics, energy: FleetEnergy) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("seconds", "mean", "p50", "p95", "p99", title=f"{policy} on {len(fleet.engines)} engines")
    for name, spread in (
        ("TTFT, first turns", found.first_ttft_s),
        ("TTFT, later turns", found.later_ttft_s),
        ("TBT by turn", found.tbt_s),
        ("TTFET", found.ttfet_s),
        ("E2E", found.e2e_s),
        ("wait for room", found.wait_s),
    ):
        table.add_row(name, *(f"{value:.3f}" for value in (spread.mean, spread.p50, spread.p95, spread.p99)))
    console, tokens = Console(), found.output_tokens or 1
    console.print(table)
    console.print(
        f"{found.conversations} conversations, {found.turns} turns in {found.duration_s:.0f} s: "
        f"{found.output_tokens_per_s:.0f} output tokens/s, token gaps p99 {found.gap_p99_s * 1000:.1f} ms"
    )
    console.print(
        f"{found.cached_share:.0%} of prompt tokens cached, {found.transfers} transfers of "
        f"{found.moved_tokens} tokens, {energy.modelled.total_j / tokens:.2f} J an output token "
        f"(modelled, {energy.least.total_j / tokens:.2f} to {energy.most.total_j / tokens:.2f})"
    )
    if found.x_alone is not None:
        alone = found.x_alone
        console.print(
            f"against each conversation alone: TTFET p95 {alone.ttfet.p95:.2f} x, "
            f"E2E p95 {alone.e2e.p95:.2f} x; goodput {alone.goodput_per_s:.2f} conversations/s within 5 x"
        )
