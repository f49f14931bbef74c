from __future__ import annotations

import math
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.core.errors import ConfigError
from conserve_server.simulation.timing import EngineTiming, Step
from conserve_server.simulation.timing_grid import (
    Grid,
    GridTiming,
    HostOverhead,
    grid_names,
    grid_timing,
    load_grid,
)

NO_OVERHEAD = HostOverhead(0.0, 0.0)
H100: EngineTiming = grid_timing("h100", "qwen3-8b", overhead=NO_OVERHEAD)

# shared: 1 ms a token. Prefill attention of n requests: n x (tokens + context). Decode: n x context / 10.
SMALL = Grid(
    gpu="toy",
    model="toy",
    source="by hand",
    kv_bytes_per_token=10,
    kv_capacity_tokens=1000,
    step_tokens=(1, 10, 100),
    shared_ms=(1.0, 10.0, 100.0),
    prefills=(1, 2, 4),
    prefill_tokens=(1, 10, 100),
    prefill_context=(0, 100, 1000),
    prefill_ms=[[[n * (t + c) for c in (0, 100, 1000)] for t in (1, 10, 100)] for n in (1, 2, 4)],
    decodes=(1, 4),
    decode_context=(10, 100),
    decode_ms=[[n * c / 10 for c in (10, 100)] for n in (1, 4)],
)


@pytest.mark.parametrize(
    ("step", "milliseconds"),
    [
        (Step(1, 10, 100), 10 + 110),
        (Step(1, 7, 50), 7 + 57),
        (Step(3, 30, 300), 30 + 330),
        (Step(decode_requests=1, decode_context_tokens=55), 1 + 5.5),
        (Step(decode_requests=2, decode_context_tokens=110), 2 + 11),
        (Step(1, 8, 100, 2, 110), 10 + 108 + 11),
        (Step(), 0),
    ],
)
def test_a_step_is_the_sum_of_its_parts_between_the_points(step: Step, milliseconds: float) -> None:
    assert GridTiming(SMALL, overhead=NO_OVERHEAD).step_s(step) == pytest.approx(milliseconds / 1e3)


def test_the_last_slope_goes_on_beyond_a_grid() -> None:
    timing = GridTiming(SMALL, overhead=NO_OVERHEAD)
    assert timing.step_s(Step(1, 200, 2000)) == pytest.approx((200 + 2200) / 1e3)
    assert timing.step_s(Step(decode_requests=8, decode_context_tokens=8000)) == pytest.approx(
        (8 + 800) / 1e3
    )


def test_the_host_adds_to_each_step_and_to_each_sequence() -> None:
    bare, timing = (
        GridTiming(SMALL, overhead=NO_OVERHEAD),
        GridTiming(SMALL, overhead=HostOverhead(5e-3, 1e-3)),
    )
    step = Step(2, 20, 0, 3, 30)
    assert timing.step_s(step) - bare.step_s(step) == pytest.approx(5e-3 + 5 * 1e-3)


def test_a_capacity_given_replaces_the_grids_own() -> None:
    assert GridTiming(SMALL).kv_capacity_tokens == 1000
    assert GridTiming(SMALL, kv_capacity_tokens=77).kv_capacity_tokens == 77


@pytest.mark.parametrize(
    ("step", "milliseconds"),
    [
        (Step(1, 2048), 44.5),
        (Step(1, 180, 13_500), 11.2),
        (Step(1, 630, 30_000), 32.0),
        (Step(decode_requests=1, decode_context_tokens=16_000), 7.3),
        (Step(decode_requests=8, decode_context_tokens=8 * 16_000), 13.7),
        (Step(decode_requests=16, decode_context_tokens=16 * 16_000), 19.8),
    ],
)
def test_known_steps_of_qwen3_8b_on_an_h100(step: Step, milliseconds: float) -> None:
    assert H100.step_s(step) == pytest.approx(milliseconds / 1e3, rel=0.03)


@pytest.mark.parametrize(("gpu", "model"), grid_names())
def test_a_shipped_grid_is_close_to_its_model_and_says_so(gpu: str, model: str) -> None:
    timing = grid_timing(gpu, model)
    check = timing.grid.check
    assert check is not None
    assert check["steps"] >= 2000
    assert check["median_error"] < 0.003
    assert check["p95_error"] < 0.04
    assert timing.kv_capacity_tokens > 20_000
    assert "aiconfigurator-core" in timing.grid.source


def test_the_page_states_each_grids_capacity_and_errors() -> None:
    page = (pathlib.Path(__file__).parents[2] / "docs" / "timing.md").read_text()
    told = [line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 7]
    expected = []
    for gpu, model in grid_names():
        grid = load_grid(gpu, model)
        check = grid.check or {}
        errors = f"{check['median_error']:.2%} | {check['p95_error']:.1%} | {check['max_error']:.1%}"
        expected.append(f"| `{gpu}` | `{model}` | {grid.kv_capacity_tokens:,} | {errors} |")
    assert told == expected


def test_a_model_may_go_by_the_name_that_engines_serve() -> None:
    assert grid_timing("H100", "Qwen/Qwen3-8B").grid == grid_timing("h100", "qwen3-8b").grid


def test_a_pair_without_a_grid_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(ConfigError, match=r"no step time grid for 'gpt-5' on 'h100'; there are: a100 llama"):
        grid_timing("h100", "gpt-5")


@given(
    st.integers(0, 40),
    st.integers(0, 9000),
    st.integers(0, 200_000),
    st.integers(0, 600),
    st.integers(0, 5_000_000),
)
def test_no_step_is_free_or_without_end(
    prefills: int, tokens: int, context: int, decodes: int, read: int
) -> None:
    step = Step(prefills, prefills and tokens + prefills, prefills and context, decodes, decodes and read)
    seconds = H100.step_s(step)
    assert math.isfinite(seconds)
    assert (seconds > 0) == bool(prefills or decodes)


@given(st.integers(1, 256), st.integers(0, 1_000_000), st.integers(1, 100_000))
def test_reading_more_context_takes_no_less_time(requests: int, context: int, more: int) -> None:
    less_s = H100.step_s(Step(decode_requests=requests, decode_context_tokens=context))
    more_s = H100.step_s(Step(decode_requests=requests, decode_context_tokens=context + more))
    assert more_s >= less_s * 0.98
