"""How fast and how large the simulator is: `make bench-simulator`, or with other sizes by hand.

Conversations of 20 turns with the lengths of a self-hosted coding agent (statistics of
agentcgroup's SWE-rebench sessions: first input 13.4k tokens, appended p50 180, output p50 145)
on a fleet of H100s with Qwen3-8B, a quarter of them prefillers, under ConServe. Arrivals are made
as they are needed, at two thirds of what the fleet can take. Growth: the same on a tenth of the
fleet with a tenth of the conversations; where cost is linear, the cost of a turn is the same.
Writes build/simulator.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from conserve_server.core.policy_config import SchedulerConfig
from conserve_server.core.turn import Turn
from conserve_server.energy.modelled import H100_QWEN3_8B
from conserve_server.scheduling.actions import PlacementFailed
from conserve_server.scheduling.engine_state import EngineProfile
from conserve_server.scheduling.policies import POLICIES
from conserve_server.scheduling.scheduler import Scheduler
from conserve_server.simulation.engine_model import EngineSettings
from conserve_server.simulation.fleet import Fleet, SimulatedEngine
from conserve_server.simulation.simulator import Simulator
from conserve_server.simulation.timing_grid import grid_timing
from conserve_server.simulation.workload import Arrival, ConversationShape, TurnShape, Workload

SEED = 1
TURNS = 20
RATE_PER_ENGINE = 0.06
"""Conversations a second for each engine of the fleet: two thirds of what its KV has room for."""


class Arrivals(Sequence[Arrival]):
    """Arrivals that are drawn when they are read, one after another."""

    def __init__(self, count: int, rate: float) -> None:
        self._count, self._rate = count, rate

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Arrival: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Arrival]: ...
    def __getitem__(self, index: int | slice) -> Arrival | Sequence[Arrival]:
        raise NotImplementedError("these arrivals are read in order")

    def __iter__(self) -> Iterator[Arrival]:
        draw, at_s = random.Random(SEED), 0.0
        for number in range(self._count):
            at_s += draw.expovariate(self._rate)
            turns = [TurnShape(round(draw.gauss(13_400, 400)), _answer(draw))]
            turns += [
                TurnShape(_append(draw), _answer(draw), draw.expovariate(1 / 3.4)) for _ in range(TURNS - 1)
            ]
            yield Arrival(at_s, ConversationShape(f"c{number}", tuple(turns)))


def _append(draw: random.Random) -> int:
    return 1 + min(8000, round(draw.lognormvariate(5.19, 1.5)))


def _answer(draw: random.Random) -> int:
    return 1 + min(4000, round(draw.lognormvariate(4.98, 1.0)))


def fleet(engines: int) -> Fleet:
    timing = grid_timing("h100", "qwen3-8b")
    prefillers = max(1, engines // 4)
    return Fleet(
        tuple(
            SimulatedEngine(
                name=f"e{number}",
                timing=timing,
                power=H100_QWEN3_8B,
                takes_prefills=number < prefillers,
                takes_conversations=number >= prefillers,
                settings=EngineSettings(max_num_batched_tokens=8192 if number < prefillers else 2048),
            )
            for number in range(engines)
        )
    )


def simulate(policy: str, conversations: int, engines: int) -> dict[str, float | int]:
    """One run, and what it took."""
    workload = Workload("bench", Arrivals(conversations, RATE_PER_ENGINE * engines))
    started_s = time.process_time()
    outcome = Simulator(POLICIES[policy](SchedulerConfig()), fleet(engines)).run(workload)
    elapsed_s = time.process_time() - started_s
    activities = [engine.activity for engine in outcome.engines.values()]
    steps, turns = sum(a.steps for a in activities), len(outcome.records)
    return {
        "conversations": conversations,
        "engines": engines,
        "turns": turns,
        "cpu_s": elapsed_s,
        "engine_steps": steps,
        "engine_runs": sum(a.runs for a in activities),
        "events": outcome.events,
        "simulated_s": outcome.ends_s,
        "mean_busy_share": sum(a.busy_s for a in activities) / engines / outcome.ends_s,
        "engine_steps_per_s": steps / elapsed_s,
        "conversations_per_s": conversations / elapsed_s,
        "us_per_turn": elapsed_s / turns * 1e6,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def decisions(policy: str, engines: int, conversations: int = 500) -> dict[str, float]:
    """Microseconds of the scheduler for an arriving turn, first and later ones, with that many engines."""
    prefillers = engines // 4
    profiles = [
        EngineProfile(f"e{n}", takes_prefills=n < prefillers, takes_conversations=n >= prefillers)
        for n in range(engines)
    ]
    scheduler = Scheduler(POLICIES[policy](SchedulerConfig()), engines=profiles, kv_budget_fraction=0.9)
    for profile in profiles:
        scheduler.on_engine_up(profile.name, 400_000, 0.0)
    took: dict[bool, list[float]] = {True: [], False: []}
    for number in range(TURNS * conversations):
        turn_id, now_s = number + 1, number / 1000
        is_first, conversation = number < conversations, f"c{number % conversations}"
        prompt = 13_400 if is_first else 14_000 + 300 * (number // conversations)
        turn = Turn(turn_id, conversation, prompt)
        started_s = time.thread_time()
        (action,) = scheduler.on_turn(turn, now_s)
        if isinstance(action, PlacementFailed):
            raise action.error
        took[is_first].append(time.thread_time() - started_s)
        if action.placement.prefiller is not None:
            scheduler.on_prefilled(turn_id, prompt, now_s)
        scheduler.on_first_token(turn_id, now_s)
        scheduler.on_turn_ended(turn_id, prompt + 150, now_s)
    every = sorted(took[True] + took[False])
    return {
        "first_turn_us": _median_us(took[True]),
        "later_turn_us": _median_us(took[False]),
        "mean_us": sum(every) / len(every) * 1e6,
        "p50_us": every[len(every) // 2] * 1e6,
        "p99_us": every[len(every) * 99 // 100] * 1e6,
    }


def _median_us(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 2] * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--conversations", type=int, default=100_000)
    parser.add_argument("--engines", type=int, default=100)
    parser.add_argument("--policy", default="conserve", choices=sorted(POLICIES))
    parser.add_argument("--output", type=Path, default=Path("build/simulator.json"))
    args = parser.parse_args()
    found = {
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, one core",
        "seed": SEED,
        "policy": args.policy,
        "small": simulate(args.policy, args.conversations // 10, max(4, args.engines // 10)),
        "full": simulate(args.policy, args.conversations, args.engines),
        "decision_at_1000_engines": {p: decisions(p, 1000) for p in ("conserve", "conserve_plus")},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
