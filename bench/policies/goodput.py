"""Goodput: the highest rate of conversations that a policy serves within a tier's targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log
from typing import Final

from bench.policies.candidates import FLEETS, POWER, Candidate, timing
from bench.policies.workloads import Kind, workload
from conserve_server.simulation.fleet import SimulatedEngine
from conserve_server.simulation.metrics import metrics
from conserve_server.simulation.power import fleet_energy
from conserve_server.simulation.simulator import Simulator
from conserve_server.simulation.standalone import Standalone


@dataclass(frozen=True, slots=True)
class Tier:
    """Targets: p95 TTFET in times alone, p99 of token gaps, p95 TTFT of first and later turns."""

    max_ttfet_x_alone: float
    max_gap_p99_s: float
    max_first_ttft_s: float = float("inf")
    max_later_ttft_s: float = float("inf")


TIERS: Final[Mapping[str, Tier]] = {
    "L": Tier(5, 0.100),
    "M": Tier(3, 0.040, 3.0, 1.5),
    "T": Tier(3, 0.025, 3.0, 1.5),
    "X": Tier(3, 0.018, 3.0, 1.5),
}

STEP = 1.12
"""Rates are powers of this: goodput is known to 12 %."""
WIDE, NARROW = 4, 1
"""Steps at a time for a search that knows nothing, and for one that begins where another seed's ended."""


@dataclass(frozen=True, slots=True)
class Point:
    """What one run at one rate gave."""

    rate_per_s: float
    ttfet_x_alone: float
    gap_p99_s: float
    first_ttft_s: float
    later_ttft_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    attainment: float
    output_tokens_per_s: float
    joules_per_output_token: float
    joules_range: tuple[float, float]
    transfers_per_conversation: float
    cached_share: float

    def passes(self, tier: Tier) -> bool:
        return (
            self.ttfet_x_alone <= tier.max_ttfet_x_alone
            and self.gap_p99_s <= tier.max_gap_p99_s
            and self.first_ttft_s <= tier.max_first_ttft_s
            and self.later_ttft_s <= tier.max_later_ttft_s
        )


_ALONE: dict[str, Standalone] = {}


def _alone(fleet: str) -> Standalone:
    """Alone on the fleet's fastest GPU, which is the first, under vLLM's default settings."""
    gpu = FLEETS[fleet][0]
    if gpu not in _ALONE:
        _ALONE[gpu] = Standalone(SimulatedEngine(name="alone", timing=timing(gpu), power=POWER[gpu]))
    return _ALONE[gpu]


def measure(candidate: Candidate, fleet: str, name: str, rate: float, seed: int, kind: Kind) -> Point:
    """One run."""
    where = candidate.fleet(fleet)
    work = workload(name, rate, seed, kind, engines=len(where.engines))
    outcome = Simulator(candidate.policy(), where, candidate.options).run(work)
    gaps = [engine.activity.gaps for engine in outcome.engines.values()]
    found = metrics(outcome.records, gaps, outcome.ends_s, alone=_alone(fleet).all_of(work))
    energy, alone = fleet_energy(where, outcome), found.x_alone
    if alone is None:
        raise RuntimeError("the comparison is with conversations alone")
    tokens = found.output_tokens
    return Point(
        rate,
        alone.ttfet.p95,
        found.gap_p99_s,
        found.first_ttft_s.p95,
        found.later_ttft_s.p95,
        found.ttft_s.p50,
        found.ttft_s.p99,
        alone.goodput_per_s * outcome.ends_s / found.conversations,
        found.output_tokens_per_s,
        energy.modelled.total_j / tokens,
        (energy.least.total_j / tokens, energy.most.total_j / tokens),
        found.transfers / found.conversations,
        found.cached_share,
    )


@dataclass
class Search:
    """The rates of one candidate in one cell with one seed; every run is made once."""

    candidate: Candidate
    fleet: str
    workload: str
    seed: int
    kind: Kind
    points: dict[int, Point] = field(default_factory=dict)

    def goodput(self, tier: Tier, start: int, stride: int = WIDE) -> int | None:
        """The highest step that passes, looking from `start`, that many steps at a time and then each.

        None where not even the lowest does. Raises RuntimeError where even the highest does.
        """
        step = start
        if self._passes(step, tier):
            while self._passes(step + stride, tier):
                step += stride
                if step >= HIGHEST:
                    raise RuntimeError(
                        f"{self.candidate.name} serves {self.workload} at {rate_of(step):.0f} conversations "
                        "a second: so few conversations are no load; raise the workload's count"
                    )
        else:
            while not self._passes(step, tier):
                if step <= LOWEST:
                    return None
                step -= stride
        return max(s for s in range(step, step + stride) if self._passes_up_to(step, s, tier))

    def _passes_up_to(self, first: int, last: int, tier: Tier) -> bool:
        return all(self._passes(step, tier) for step in range(first, last + 1))

    def _passes(self, step: int, tier: Tier) -> bool:
        if step not in self.points:
            rate = rate_of(step)
            self.points[step] = measure(self.candidate, self.fleet, self.workload, rate, self.seed, self.kind)
        return self.points[step].passes(tier)


LOWEST, HIGHEST = -36, 44


def rate_of(step: int) -> float:
    """Conversations a second."""
    return float(STEP**step)


def step_of(rate: float) -> int:
    """The nearest step."""
    return round(log(rate) / log(STEP))
