"""Fleets, workloads and runs of the simulator's tests: a timing that is easy to reckon with."""

from __future__ import annotations

import random
from collections.abc import Sequence

from conserve_server.core.policy_config import SchedulerConfig
from conserve_server.energy.modelled import A40
from conserve_server.scheduling.policies import POLICIES
from conserve_server.simulation.engine_model import EngineSettings
from conserve_server.simulation.fleet import Fleet, Options, SimulatedEngine
from conserve_server.simulation.host_tier import HostMemory
from conserve_server.simulation.link import Link
from conserve_server.simulation.simulator import Outcome, Simulator
from conserve_server.simulation.timing import LinearTiming
from conserve_server.simulation.workload import Arrival, ConversationShape, TurnShape, Workload

TIMING = LinearTiming(
    base_s=0.01,
    prefill_token_s=0.0001,
    decode_s=0.001,
    decode_context_s=1e-7,
    kv_bytes_per_token=100_000,
    kv_capacity_tokens=64_000,
)
"""10 ms a step, 10,000 prompt tokens a second, 1 ms a decoding request, 0.1 µs a token that it reads."""

LINK = Link(latency_s=0.005, bytes_per_s=1e9)
"""5 ms, and 0.1 ms a token."""


def engine(name: str, *, prefills: bool = False, decodes: bool = False, capacity: int = 64_000,
           settings: EngineSettings | None = None, host: HostMemory | None = None,
) -> SimulatedEngine:  # fmt: skip
    return SimulatedEngine(
        name=name,
        timing=TIMING,
        power=A40,
        settings=settings or EngineSettings(),
        takes_prefills=prefills,
        takes_conversations=decodes,
        kv_capacity_tokens=capacity,
        host=host,
    )


def fleet(
    prefillers: int = 1, decoders: int = 2, *, capacity: int = 64_000, settings: EngineSettings | None = None
) -> Fleet:
    p = [engine(f"p{i}", prefills=True, settings=settings) for i in range(prefillers)]
    d = [engine(f"d{i}", decodes=True, capacity=capacity, settings=settings) for i in range(decoders)]
    return Fleet((*p, *d), LINK)


def conversation(
    name: str, *turns: tuple[int, int], gap_s: float = 1.0, prefix: str | None = None, shared: int = 0
) -> ConversationShape:
    """A conversation of (appended, output) turns."""
    shapes = [TurnShape(appended, output, gap_s if i else 0.0) for i, (appended, output) in enumerate(turns)]
    return ConversationShape(name, tuple(shapes), prefix, shared)


def workload(*arrivals: tuple[float, ConversationShape]) -> Workload:
    return Workload("test", [Arrival(at_s, shape) for at_s, shape in arrivals])


def random_workload(count: int, rate: float, *, turns: int = 5, seed: int = 1) -> Workload:
    """Poisson arrivals of agents that append and produce some hundred tokens a turn."""
    draw = random.Random(seed)
    at_s, arrivals = 0.0, []
    for number in range(count):
        at_s += draw.expovariate(rate)
        later = [
            TurnShape(draw.randrange(20, 600), draw.randrange(1, 300), draw.expovariate(1.0))
            for _ in range(turns - 1)
        ]
        first = TurnShape(draw.randrange(1000, 6000), draw.randrange(1, 300))
        arrivals.append(Arrival(at_s, ConversationShape(f"c{number}", (first, *later))))
    return Workload("random", arrivals)


def run(policy: str, work: Workload, on: Fleet | None = None, options: Options | None = None) -> Outcome:
    return Simulator(POLICIES[policy](SchedulerConfig()), on or fleet(), options).run(work)


def ttft_s(outcome: Outcome) -> list[float]:
    """By turn, in the order of their ends."""
    records = outcome.records
    return [first - arrived for first, arrived in zip(records.first_token_s, records.arrived_s, strict=True)]


def rows(outcome: Outcome) -> list[Sequence[float]]:
    """All that the records hold."""
    columns = [getattr(outcome.records, name) for name in vars(outcome.records)]
    return list(zip(*columns, strict=True))
