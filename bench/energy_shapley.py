"""How far splits of a small batch's energy are from its exact Shapley values.

A batch runs on one modelled GPU: requests arrive, are prefilled in chunks and decoded together,
step by step. Its cost is what the steps take (grids of measured kernel times) times the modelled
watts beyond idle. The same for every subset of the batch, run alone, gives each
request's Shapley value: the one split in which everybody pays the mean of what they add.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from conserve_server.energy.accounts import ConversationAccount, TurnAccount
from conserve_server.energy.attribution import Metered, attribute
from conserve_server.energy.fitting import FittedWeights
from conserve_server.energy.legs import Counted, Leg, work_between
from conserve_server.energy.modelled import H100_QWEN3_8B
from conserve_server.energy.shared_time import SharedTime
from conserve_server.energy.work import Weights, Work
from conserve_server.simulation.timing import EngineTiming, Step

CHUNK_TOKENS = 2048
POWER = H100_QWEN3_8B
MOST = 5
"""Requests of a batch: 2 to so many. Every subset is run."""
LEARNED = 200
"""Batches that the fitted weights have learned from; none of those that are compared."""


@dataclass(frozen=True, slots=True)
class Request:
    """One turn of the batch: new prompt tokens over cached ones, and an answer."""

    arrives_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(slots=True)
class Served:
    """How the batch treated one request."""

    request: Request
    prefilled: int = 0
    produced: int = 0
    first_s: float = 0.0
    ended_s: float = 0.0

    @property
    def is_decoding(self) -> bool:
        return self.prefilled == self.request.prompt_tokens

    @property
    def context(self) -> int:
        return self.request.cached_tokens + self.prefilled + self.produced


def run(requests: Sequence[Request], timing: EngineTiming) -> tuple[float, list[Served]]:
    """Joules beyond idle of serving just these, and when each was served."""
    served = [Served(request) for request in requests]
    now_s, energy_j = 0.0, 0.0
    while left := [each for each in served if not each.ended_s]:
        here = [each for each in left if each.request.arrives_s <= now_s]
        if not here:
            now_s = min(each.request.arrives_s for each in left)
            continue
        decodes = [each for each in here if each.is_decoding]
        chunks = _chunks([each for each in here if not each.is_decoding], CHUNK_TOKENS - len(decodes))
        step_s = timing.step_s(_step(decodes, chunks))
        watts = POWER.prefill_w if chunks else POWER.decode_at_w(len(decodes))
        energy_j += (watts - POWER.idle_w) * step_s
        now_s += step_s
        for each in decodes:
            _produce(each, now_s)
        for each, tokens in chunks:
            each.prefilled += tokens
            if each.is_decoding:
                each.first_s = now_s
                _produce(each, now_s)
    return energy_j, served


def _chunks(waiting: Sequence[Served], budget: int) -> list[tuple[Served, int]]:
    chunks = []
    for each in waiting:
        tokens = min(budget, each.request.prompt_tokens - each.prefilled)
        if tokens > 0:
            chunks.append((each, tokens))
            budget -= tokens
    return chunks


def _step(decodes: Sequence[Served], chunks: Sequence[tuple[Served, int]]) -> Step:
    return Step(
        prefill_requests=len(chunks),
        prefill_tokens=sum(tokens for _, tokens in chunks),
        prefill_context_tokens=sum(each.context for each, _ in chunks),
        decode_requests=len(decodes),
        decode_context_tokens=sum(each.context for each in decodes),
    )


def _produce(each: Served, now_s: float) -> None:
    each.produced += 1
    if each.produced == each.request.output_tokens:
        each.ended_s = now_s


def shapley(requests: Sequence[Request], timing: EngineTiming) -> list[float]:
    """Each request's Shapley value in joules, from the cost of every subset."""
    count = len(requests)
    cost = {
        subset: run([requests[i] for i in subset], timing)[0]
        for size in range(count + 1)
        for subset in itertools.combinations(range(count), size)
    }
    return [
        math.fsum(
            (cost[tuple(sorted((*subset, player)))] - cost[subset])
            / (count * math.comb(count - 1, len(subset)))
            for subset in cost
            if player not in subset
        )
        for player in range(count)
    ]


# -- the splits --------------------------------------------------------------------------------


def work_of(served: Sequence[Served]) -> list[Work]:
    """What each did, in one interval that holds the whole batch."""
    end_s = max(each.ended_s for each in served)
    legs = [_leg(each) for each in served]
    batch: SharedTime[Leg, Leg] = SharedTime(0.0)
    events = [(each.first_s, True, leg) for each, leg in zip(served, legs, strict=True)]
    events += [(each.ended_s, False, leg) for each, leg in zip(served, legs, strict=True)]
    for at_s, begins, leg in sorted(events, key=lambda event: event[0]):
        if begins:
            batch.put(leg, 1, leg, at_s)
        else:
            batch.drop(leg, at_s)
    batched, _ = batch.close(end_s)
    return [
        work_between(
            leg, leg.counted or Counted(0), 0.0, end_s, until_s=end_s, batched_s=batched.get(leg, 0.0)
        )
        for leg in legs
    ]


def by_work(served: Sequence[Served], energy_j: float, weights: Weights) -> list[float]:
    """Ours."""
    metered = Metered(energy_j, max(each.ended_s for each in served), 0.0)
    work = list(enumerate(work_of(served)))
    split = attribute(metered, held={}, held_s=0.0, work=work, weights=weights)
    return [joules.total_j for _, joules in split.shares]


def _leg(each: Served) -> Leg:
    turn = TurnAccount(ConversationAccount("default", "m"))
    request = each.request
    return Leg(
        turn,
        "decode-0",
        request.arrives_s,
        expected_tokens=request.prompt_tokens,
        first_s=each.first_s,
        ended_s=each.ended_s,
        counted=Counted(
            request.prompt_tokens, request.cached_tokens, decode_tokens=request.output_tokens - 1
        ),
    )


def by_tokens(served: Sequence[Served], energy_j: float) -> list[float]:
    """Each token the same: new prompt tokens and output."""
    return _shared([each.request.prompt_tokens + each.request.output_tokens for each in served], energy_j)


def by_all_tokens(served: Sequence[Served], energy_j: float) -> list[float]:
    """Each token of the request the same, cached ones too: what a bill by tokens does."""
    return _shared([each.context for each in served], energy_j)


def by_time(served: Sequence[Served], energy_j: float) -> list[float]:
    """The seconds from arrival to end."""
    return _shared([each.ended_s - each.request.arrives_s for each in served], energy_j)


def _shared(sizes: Sequence[float], energy_j: float) -> list[float]:
    return [energy_j * size / math.fsum(sizes) for size in sizes]


# -- the comparison ----------------------------------------------------------------------------


def batches(seed: int, count: int, most: int) -> list[list[Request]]:
    """Agents' turns: half first turns of 1 to 16 thousand tokens, half appends to long contexts."""
    draw = random.Random(seed)
    return [
        [
            Request(
                arrives_s=draw.uniform(0.0, 0.5),
                prompt_tokens=draw.randrange(1000, 16_000) if is_first else draw.randrange(20, 2000),
                cached_tokens=0 if is_first else draw.randrange(4000, 30_000),
                output_tokens=draw.randrange(16, 300),
            )
            for is_first in [draw.random() < 0.5 for _ in range(draw.randrange(2, most + 1))]
        ]
        for _ in range(count)
    ]


def misplaced(split: Sequence[float], exact: Sequence[float]) -> float:
    """The share of the energy that went to the wrong request."""
    return math.fsum(abs(a - b) for a, b in zip(split, exact, strict=True)) / 2 / math.fsum(exact)


def worst(split: Sequence[float], exact: Sequence[float]) -> float:
    """The largest error of one request, relative to what it should pay."""
    return max(abs(a - b) / b for a, b in zip(split, exact, strict=True))


def fitted(timing: EngineTiming, model: Weights, *, seed: int, count: int) -> Weights:
    """The weights that a gateway has learned after so many other batches."""
    learned = FittedWeights(model)
    for requests in batches(seed, count, MOST):
        energy_j, served = run(requests, timing)
        learned.learn(energy_j, work_of(served))
    return learned.weights


def compare(timing: EngineTiming, model: Weights, *, seed: int, count: int) -> dict[str, object]:
    """Each split's errors over random batches."""
    learned = fitted(timing, model, seed=seed + 1, count=LEARNED)
    errors: dict[str, list[tuple[float, float]]] = {}
    for requests in batches(seed, count, MOST):
        energy_j, served = run(requests, timing)
        exact = shapley(requests, timing)
        for name, split in {
            "by_work_model_weights": by_work(served, energy_j, model),
            "by_work_fitted_weights": by_work(served, energy_j, learned),
            "by_new_tokens": by_tokens(served, energy_j),
            "by_all_tokens": by_all_tokens(served, energy_j),
            "by_time": by_time(served, energy_j),
        }.items():
            errors.setdefault(name, []).append((misplaced(split, exact), worst(split, exact)))
    return {name: _summary(found) for name, found in errors.items()}


def _summary(found: Sequence[tuple[float, float]]) -> dict[str, float]:
    shares, worsts = zip(*found, strict=True)
    return {
        "misplaced_share_median": round(statistics.median(shares), 4),
        "misplaced_share_p90": round(statistics.quantiles(shares, n=10)[-1], 4),
        "worst_request_error_median": round(statistics.median(worsts), 4),
    }
