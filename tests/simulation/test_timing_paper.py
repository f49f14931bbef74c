"""The paper's observations, held against the steps that stand for them."""

from __future__ import annotations

import pytest

from conserve_server.core.errors import ConfigError
from conserve_server.simulation.timing import EngineTiming, Step
from conserve_server.simulation.timing_paper import PaperTiming, bookkeeping_s, transfer_s

TIMING = PaperTiming()


def prefill_s(timing: EngineTiming, tokens: int, chunk: int = 8192) -> float:
    starts = range(0, tokens, chunk)
    return sum(timing.step_s(Step(1, min(chunk, tokens - start), start)) for start in starts)


def test_a_first_turn_of_15k_tokens_takes_eight_tenths_of_a_second() -> None:
    assert prefill_s(TIMING, 15_000) == pytest.approx(0.8, rel=0.02)


@pytest.mark.parametrize(
    ("context", "observed_s"),
    [(3_000, 14.5e-3), (6_000, 14.5e-3), (15_000, 19.85e-3), (17_000, 21.75e-3), (20_000, 24.6e-3)],
)
def test_an_append_to_a_cached_context_takes_what_was_observed(context: int, observed_s: float) -> None:
    assert TIMING.step_s(Step(1, 67, context)) == pytest.approx(observed_s, rel=0.15)


def test_a_decode_step_alone_is_bound_by_launches() -> None:
    assert TIMING.step_s(Step(decode_requests=1, decode_context_tokens=10)) == pytest.approx(
        12.4e-3, rel=0.01
    )
    assert TIMING.step_s(Step(decode_requests=1, decode_context_tokens=9_000)) < 14e-3


def test_a_saturated_decoder_steps_as_slowly_as_observed() -> None:
    step = Step(decode_requests=17, decode_context_tokens=17 * 15_000)
    assert 55e-3 <= TIMING.step_s(step) <= 60e-3


def test_a_power_cap_slows_prefills_and_hardly_decodes() -> None:
    capped = PaperTiming(power_cap_w=200)
    decode = Step(decode_requests=17, decode_context_tokens=17 * 15_000)
    assert 1.20 <= prefill_s(capped, 15_000) / prefill_s(TIMING, 15_000) <= 1.47
    assert 1.0 < capped.step_s(decode) / TIMING.step_s(decode) < 1.05


def test_a_cap_that_was_not_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="power_cap_w must be 200 to 300, got 100"):
        PaperTiming(power_cap_w=100)


def test_a_transfer_costs_what_the_artifact_says() -> None:
    assert transfer_s(1_024) == pytest.approx(4.849e-3)
    assert transfer_s(15_000) == pytest.approx(0.985e-6 * 15_000 + 5.27e-3)
    assert bookkeeping_s(33) == pytest.approx(2 * (2e-3 + 3 * 5e-6))
