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
_SMALLEST_CHUNKS = (256, 512)
"""Of ConServe+: which is better depends on the objective for gaps."""


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
        yield Family(tuple(Candidate("collocated_sticky", offer, size) for size in sizes))
        for smallest in _SMALLEST_CHUNKS:
            plus = [Candidate("conserve_plus", offer, size, smallest_chunk_tokens=smallest) for size in sizes]
            yield Family(tuple(plus))
        for share in _PREFILL_SHARES:
            split = [_split(offer, size, share) for size in sizes[1:]]
            family = tuple(each for each in dict.fromkeys(split) if each is not None)
            if family:
                yield Family(family)
    for first, second in itertools.permutations(offers, 2):
        if first.gpu != second.gpu:
            yield from _mixed("conserve", first, second, (1, 3))
            # One of each is the same fleet both ways round.
            yield from _mixed("conserve_plus", first, second, (1, 3) if first.gpu < second.gpu else (3,))


def _split(offer: Offer, size: int, share: float) -> Candidate | None:
    prefillers = max(round(size * share), 1)
    if prefillers >= size:
        return None
    return Candidate("conserve", offer, size - prefillers, offer, prefillers)


def _mixed(policy: str, first: Offer, second: Offer, each: Sequence[int]) -> Iterator[Family]:
    """Prefillers of `first`, decoders of `second`: one prefiller for every so many decoders."""
    chunks = _SMALLEST_CHUNKS if policy == "conserve_plus" else _SMALLEST_CHUNKS[:1]
    for decoders_each, smallest in itertools.product(each, chunks):
        sizes = range(1, min(second.count, first.count * decoders_each) + 1)
        counts = ((size, -(-size // decoders_each)) for size in sizes)
        yield Family(tuple(Candidate(policy, second, size, first, count, smallest) for size, count in counts))


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
