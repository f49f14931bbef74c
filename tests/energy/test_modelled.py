from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.energy.modelled import (
    A40,
    A100,
    GPU_POWER,
    H100,
    H100_QWEN3_8B,
    L40S,
    GpuPower,
    PhaseEnergy,
    gpu_power,
    interval_energy,
    power_range,
)

gpus = st.sampled_from(sorted(GPU_POWER.values(), key=lambda gpu: gpu.name))
seconds = st.floats(0, 1e4)


def test_an_interval_costs_its_phases_watts() -> None:
    energy = interval_energy(H100, idle_s=10, prefill_s=2, decode_s=5, batch=16)
    assert energy == PhaseEnergy(idle_j=750, decode_j=1900, prefill_j=1400)
    assert energy.total_j == 4050


def test_decode_of_qwen3_8b_on_an_h100_grows_with_the_logarithm_of_the_batch() -> None:
    assert H100_QWEN3_8B.decode_at_w(8) == pytest.approx(288 + 40.6 * 3)
    assert H100_QWEN3_8B.decode_at_w(256) == pytest.approx(288 + 40.6 * 8)


def test_batches_beyond_the_fit_stay_at_its_end_and_an_empty_one_at_its_start() -> None:
    assert H100_QWEN3_8B.decode_at_w(4096) == H100_QWEN3_8B.decode_at_w(256)
    assert H100_QWEN3_8B.decode_at_w(0) == 288


def test_gpus_without_published_phases_are_scaled_by_their_limit_and_say_so() -> None:
    assert (L40S.prefill_w, A40.prefill_w) == (350, 300)
    assert L40S.decode_w / L40S.limit_w == pytest.approx(A100.decode_w / A100.limit_w)
    assert L40S.is_assumed
    assert A40.is_assumed
    assert not A100.is_assumed


@given(gpus, st.floats(80, 1000), st.floats(0, 1000))
def test_no_phase_draws_more_than_its_cap(gpu: GpuPower, cap_w: float, batch: float) -> None:
    capped = gpu.capped(cap_w)
    limit_w = min(cap_w, gpu.limit_w)
    assert max(capped.idle_w, capped.prefill_w, capped.decode_at_w(batch)) <= limit_w
    assert capped.limit_w == limit_w


@given(gpus, seconds, seconds, seconds)
def test_the_range_goes_from_less_to_more(
    gpu: GpuPower, idle_s: float, prefill_s: float, decode_s: float
) -> None:
    low, high = (
        interval_energy(end, idle_s=idle_s, prefill_s=prefill_s, decode_s=decode_s).total_j
        for end in power_range(gpu)
    )
    assert low <= high


@given(gpus, seconds, seconds, seconds, st.floats(1, 512))
def test_energies_of_pieces_add_up(
    gpu: GpuPower, idle_s: float, prefill_s: float, decode_s: float, batch: float
) -> None:
    whole = interval_energy(gpu, idle_s=idle_s, prefill_s=prefill_s, decode_s=decode_s, batch=batch)
    half = interval_energy(
        gpu, idle_s=idle_s / 2, prefill_s=prefill_s / 2, decode_s=decode_s / 2, batch=batch
    )
    assert (half + half).total_j == pytest.approx(whole.total_j)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h100", H100),
        ("NVIDIA H100 80GB HBM3", H100),
        ("h100_sxm", H100),
        ("NVIDIA A100-SXM4-80GB", A100),
        ("H100-Qwen3-8B", H100_QWEN3_8B),
        ("NVIDIA L40S", L40S),
        ("NVIDIA A4000", None),
        ("", None),
    ],
)
def test_a_gpu_is_found_by_any_of_its_names(name: str, expected: GpuPower | None) -> None:
    assert gpu_power(name) == expected


def test_a_gpu_that_idles_above_its_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="idle_w must be from 0 to limit_w"):
        GpuPower("x", limit_w=50, idle_w=60, decode_w=50, prefill_w=50)
