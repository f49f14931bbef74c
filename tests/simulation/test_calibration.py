from __future__ import annotations

import itertools
import pathlib
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.core.errors import ConfigError, TraceError
from conserve_server.simulation.calibration import (
    Observation,
    fit,
    non_negative,
    read_calibration,
    write_calibration,
)
from conserve_server.simulation.timing import LinearTiming, Step

REQUEST_S = 0.004
STEPS = [
    *(Step(1, tokens, context) for tokens, context in itertools.product((16, 128, 512), (0, 300, 1500))),
    *(Step(0, 0, 0, batch, batch * context) for batch, context in itertools.product((1, 2, 8), (64, 512))),
]


def observed(timing: LinearTiming, noise: float = 0.0) -> list[Observation]:
    rng = random.Random(1)
    found = []
    for step in STEPS:
        is_request = step.prefill_tokens > 0
        seconds = timing.step_s(step) + REQUEST_S * is_request
        found.append(Observation(step, seconds * (1 + rng.uniform(-noise, noise)), is_request))
    return found


constants = st.floats(1e-6, 1e-2)
timings = st.builds(
    LinearTiming,
    base_s=st.floats(1e-3, 1e-1),
    prefill_token_s=st.floats(1e-6, 1e-3),
    prefill_pair_s=st.floats(1e-9, 1e-6),
    decode_s=st.floats(1e-4, 1e-2),
    decode_context_s=st.floats(1e-8, 1e-5),
)


@given(timings)
def test_a_linear_engine_is_found_again(timing: LinearTiming) -> None:
    found = fit(observed(timing), model="m", kv_bytes_per_token=10, kv_capacity_tokens=1000)
    assert found.fit.worst_error < 1e-6
    for step in STEPS:
        assert found.timing.step_s(step) == pytest.approx(timing.step_s(step), rel=1e-5)
    assert found.request_s == pytest.approx(REQUEST_S, rel=1e-3)


def test_noise_is_told_by_the_errors_of_the_fit() -> None:
    timing = LinearTiming(base_s=0.01, prefill_token_s=1e-4, decode_s=1e-3, decode_context_s=1e-6)
    found = fit(observed(timing, noise=0.05), model="m", kv_bytes_per_token=10, kv_capacity_tokens=1000)
    assert 0 < found.fit.median_error < 0.05
    assert found.base_s == pytest.approx(0.01, rel=0.2)


def test_no_constant_is_below_zero() -> None:
    rows = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    falling = non_negative(rows, np.array([3.0, 2.0, 1.0]))
    assert falling.tolist() == [pytest.approx(2.0), 0.0]


def test_too_few_observations_are_refused() -> None:
    few = observed(LinearTiming(base_s=0.01, prefill_token_s=1e-4))[:3]
    with pytest.raises(ConfigError, match="3 observations are too few"):
        fit(few, model="m", kv_bytes_per_token=10, kv_capacity_tokens=1000)
    with pytest.raises(ConfigError, match="0 observations are too few"):
        fit([], model="m", kv_bytes_per_token=10, kv_capacity_tokens=1000)


def test_a_calibration_is_read_back_as_it_was_written(tmp_path: pathlib.Path) -> None:
    timing = LinearTiming(base_s=0.01, prefill_token_s=1e-4, decode_s=1e-3)
    found = fit(observed(timing), model="m", kv_bytes_per_token=10, kv_capacity_tokens=1000)
    write_calibration(tmp_path / "timing.json", found)
    assert read_calibration(tmp_path / "timing.json") == found


def test_a_file_that_is_no_calibration_is_named_with_its_field(tmp_path: pathlib.Path) -> None:
    (tmp_path / "timing.json").write_text('{"format": "conserve-timing-v1", "model": "m", "base_s": -1}')
    with pytest.raises(TraceError, match=r"timing\.json: Expected `float` >= 0.* - at `\$\.base_s`"):
        read_calibration(tmp_path / "timing.json")
