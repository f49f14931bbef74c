"""Which pools and which policy serve a workload within its objectives, for the least money or energy.

Candidates come in families that differ in size alone. In each, the smallest fleet that meets the
objectives is found by bisection, as more engines never do worse by much. Families are searched in
parallel, each in a process of its own; the same question gets the same answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context

from conserve_server.scheduling.policies import policy_of
from conserve_server.simulation.fleet import Options
from conserve_server.simulation.metrics import metrics
from conserve_server.simulation.plans import Assessed, Candidate, Objectives, Offer
from conserve_server.simulation.power import fleet_energy
from conserve_server.simulation.simulator import Simulator
from conserve_server.simulation.workload import Workload

_PREFILL_SHARES = (0.125, 0.25, 0.5)


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be planned."""

    workload: Workload
    model: str
    objectives: Objectives
    offers: tuple[Offer, ...]


@dataclass(frozen=True, slots=True)
class Plans:
    """The answer. `frontier`: plans that no other beats in price and in joules, the cheapest first."""

    assessed: list[Assessed]
    frontier: list[Assessed]

    @property
    def cheapest(self) -> Assessed | None:
        return self.frontier[0] if self.frontier else None

    @property
    def most_frugal(self) -> Assessed | None:
        return self.frontier[-1] if self.frontier else None


@dataclass(frozen=True, slots=True)
class Family:
    """Candidates of one policy on the same offers, the smallest first."""

    candidates: tuple[Candidate, ...]


def plan(
    question: Question, *, processes: int, tell: Callable[[int, int, str], None] = lambda *_: None
) -> Plans:
    """Search all families; `tell` hears how many of them are done, of how many, and which was last."""
    families = list(families_of(question.offers))
    assessed: list[Assessed] = []
    # Forking a process that runs threads is not safe.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        searches = {pool.submit(search, question, family): family for family in families}
        for done, finished in enumerate(as_completed(searches), 1):
            assessed += finished.result()
            tell(done, len(families), searches[finished].candidates[0].policy)
    assessed.sort(key=lambda each: (each.candidate.price_per_h, each.joules_per_token, each.candidate.label))
    return Plans(assessed, frontier(assessed))


def families_of(offers: Sequence[Offer]) -> Iterator[Family]:
    """Collocated and split fleets of each offer, and prefillers of one with decoders of another."""
    for offer in offers:
        sizes = range(1, offer.count + 1)
        for policy in ("collocated_sticky", "conserve_plus"):
            yield Family(tuple(Candidate(policy, offer, size) for size in sizes))
        for share in _PREFILL_SHARES:
            split = [_split(offer, size, share) for size in sizes[1:]]
            family = tuple(each for each in dict.fromkeys(split) if each is not None)
            if family:
                yield Family(family)
    for first, second in itertools.permutations(offers, 2):
        if first.gpu != second.gpu:
            yield from _mixed(first, second)


def _split(offer: Offer, size: int, share: float) -> Candidate | None:
    prefillers = max(round(size * share), 1)
    if prefillers >= size:
        return None
    return Candidate("conserve", offer, size - prefillers, offer, prefillers)


def _mixed(first: Offer, second: Offer) -> Iterator[Family]:
    """Prefillers of `first`, decoders of `second`: one prefiller for every so many decoders."""
    for decoders_each in (1, 3):
        sizes = range(1, second.count + 1)
        family = [Candidate("conserve", second, size, first, -(-size // decoders_each)) for size in sizes]
        fitting = tuple(each for each in family if each.prefillers <= first.count)
        if fitting:
            yield Family(fitting)


def search(question: Question, family: Family) -> list[Assessed]:
    """What was looked at on the way to the smallest fleet that meets the objectives."""
    looked_at: dict[int, Assessed] = {}

    def meets(index: int) -> bool:
        looked_at[index] = assess(question, family.candidates[index])
        return looked_at[index].is_plan

    low, high = 0, len(family.candidates) - 1
    if meets(high):
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if meets(middle) else (middle + 1, high)
    return list(looked_at.values())


def assess(question: Question, candidate: Candidate) -> Assessed:
    """Simulate the workload on the candidate."""
    fleet = candidate.fleet(question.model)
    try:
        scheduler = candidate.scheduler
        options = Options(
            kv_budget_fraction=scheduler.budget_fraction,
            tells_resident=scheduler.policy == "conserve_plus",
        )
        outcome = Simulator(policy_of(scheduler), fleet, options).run(question.workload)
    except ValueError as error:  # a conversation is larger than an engine's KV cache
        return Assessed(candidate, [str(error)])
    gaps = [engine.activity.gaps for engine in outcome.engines.values()]
    found = metrics(outcome.records, gaps, outcome.ends_s)
    energy, tokens = fleet_energy(fleet, outcome), max(found.output_tokens, 1)
    return Assessed(
        candidate,
        question.objectives.missed(found),
        energy.modelled.total_j / tokens,
        (energy.least.total_j / tokens, energy.most.total_j / tokens),
        found,
    )


def frontier(assessed: Sequence[Assessed]) -> list[Assessed]:
    """The plans that no other beats in price and in joules, the cheapest first."""
    kept: list[Assessed] = []
    plans = (each for each in assessed if each.is_plan)
    for each in sorted(plans, key=lambda each: (each.candidate.price_per_h, each.joules_per_token)):
        if not kept or each.joules_per_token < kept[-1].joules_per_token:
            kept.append(each)
    return kept
