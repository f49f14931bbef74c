from __future__ import annotations

import pytest

from conserve_server.core.errors import ConfigError
from conserve_server.simulation.power_cap import CappedTiming
from conserve_server.simulation.timing import LinearTiming, Step

TIMING = LinearTiming(base_s=0.01, prefill_token_s=1e-4, decode_s=1e-3, decode_context_s=1e-7)
PREFILL, DECODE = Step(1, 2000, 0), Step(0, 0, 0, 8, 80_000)


def test_at_two_thirds_of_its_limit_a_gpu_is_as_slow_as_the_paper_measured() -> None:
    capped = CappedTiming(TIMING, 2 / 3)
    assert capped.step_s(PREFILL) == pytest.approx(1.335 * TIMING.step_s(PREFILL))
    assert capped.step_s(DECODE) == pytest.approx(1.03 * TIMING.step_s(DECODE))
    assert capped.kv_capacity_tokens == TIMING.kv_capacity_tokens


def test_a_step_of_both_slows_by_its_parts() -> None:
    mixed = Step(1, 2000, 0, 8, 80_000)
    decode_s = TIMING.step_s(DECODE)
    expected_s = 1.03 * decode_s + 1.335 * (TIMING.step_s(mixed) - decode_s)
    assert CappedTiming(TIMING, 2 / 3).step_s(mixed) == pytest.approx(expected_s)


def test_without_a_cap_nothing_changes() -> None:
    assert CappedTiming(TIMING, 1.0).step_s(PREFILL) == TIMING.step_s(PREFILL)


@pytest.mark.parametrize("share", [0.5, 1.2])
def test_a_cap_beyond_what_was_measured_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="must be from 67% to 100%"):
        CappedTiming(TIMING, share)
