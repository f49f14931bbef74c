from __future__ import annotations

import random

import pytest

from conserve_server.energy.fitting import FittedWeights
from conserve_server.energy.work import Work, WorkTimes

MODEL = WorkTimes().weights()


def intervals(seed: int, count: int) -> list[Work]:
    """Mixed load: prompts of up to 8 thousand tokens, batches of up to 16."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        prompt, tokens, batch = draw.randrange(8000), draw.randrange(500), draw.randrange(1, 17)
        context = draw.randrange(1000, 30_000)
        found.append(Work(prompt, prompt * context, 0, tokens, tokens / batch, tokens * context))
    return found


def joules(work: Work, prefill: float, decode: float) -> float:
    return prefill * MODEL.prefill(work) + decode * MODEL.decode(work)


def test_before_it_has_learned_anything_it_splits_as_the_model_does() -> None:
    assert FittedWeights(MODEL).weights == MODEL


def test_it_learns_that_prefill_costs_three_times_what_the_model_says() -> None:
    fitted = FittedWeights(MODEL)
    for work in intervals(1, 400):
        fitted.learn(joules(work, prefill=3.0, decode=1.0), [work])
    weights = fitted.weights
    relation = (weights.prefill_token / weights.decode_step) / (MODEL.prefill_token / MODEL.decode_step)
    assert relation == pytest.approx(3.0, rel=0.15)


def test_what_no_interval_tells_apart_stays_as_the_model_has_it() -> None:
    fitted = FittedWeights(MODEL)
    work = Work(1000, 1e6, 0, 100, 50, 1e6)
    for _ in range(50):
        fitted.learn(2 * joules(work, 1, 1), [work])
    relation = fitted.weights.prefill_token / fitted.weights.decode_step
    assert relation == pytest.approx(MODEL.prefill_token / MODEL.decode_step, rel=0.05)


@pytest.mark.parametrize("dynamic_j", [0.0, 5.0, 1e9])
def test_no_weight_is_ever_negative_and_some_work_always_counts(dynamic_j: float) -> None:
    fitted = FittedWeights(MODEL)
    for index, work in enumerate(intervals(2, 60)):
        fitted.learn(dynamic_j if index % 2 else 0.0, [work])
        assert min(fitted.weights.vector) >= 0
        assert max(fitted.weights.vector) > 0


def test_an_interval_without_work_teaches_nothing() -> None:
    fitted = FittedWeights(MODEL)
    fitted.learn(100.0, [])
    fitted.learn(100.0, [Work()])
    assert (fitted.intervals, fitted.weights) == (0, MODEL)
