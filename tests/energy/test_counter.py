from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_sdk.protocol import EnergySource
from conserve_server.energy.counter import DeviceCounter, Drawn
from conserve_server.energy.meter import Device, Reading


def counter(wraps_at_j: float | None = None) -> DeviceCounter:
    return DeviceCounter(Device("0", "GPU", EnergySource.MEASURED, "test", wraps_at_j=wraps_at_j))


def look(at: DeviceCounter, time_s: float, energy_j: float | None, error: str | None = None) -> None:
    at.look(Reading("0", time_s, energy_j, error))


def test_an_interval_is_the_difference_of_two_readings() -> None:
    gpu = counter()
    look(gpu, 0, 1000)
    assert gpu.take() == Drawn(None, "its first reading")
    look(gpu, 1, 1400)
    look(gpu, 2, 1500)
    assert gpu.take() == Drawn(500)
    assert gpu.metered_j == 500


def test_an_interval_in_which_the_counter_fell_is_dropped_and_the_next_counts() -> None:
    gpu = counter()
    look(gpu, 0, 1000)
    gpu.take()
    look(gpu, 1, 3)
    assert gpu.take() == Drawn(None, "its counter fell from 1000.0 J to 3.0 J")
    look(gpu, 2, 403)
    assert gpu.take() == Drawn(400)


def test_a_counter_that_wrapped_goes_on() -> None:
    gpu = counter(wraps_at_j=4294967.296)
    look(gpu, 0, 4294900)
    gpu.take()
    look(gpu, 1, 200)
    assert gpu.take().energy_j == pytest.approx(267.296)


def test_a_wrap_that_no_device_could_draw_is_a_new_start() -> None:
    gpu = counter(wraps_at_j=4294967.296)
    look(gpu, 0, 1_000_000)
    gpu.take()
    look(gpu, 1, 200)
    assert gpu.take().energy_j is None


def test_a_silent_device_loses_nothing_once_it_answers_again() -> None:
    gpu = counter()
    look(gpu, 0, 1000)
    gpu.take()
    look(gpu, 1, None, "GPU is lost")
    assert (gpu.has_moved, gpu.problem) == (False, "GPU is lost")
    look(gpu, 2, 1800)
    assert (gpu.has_moved, gpu.problem) == (True, None)
    assert gpu.take() == Drawn(800)


def test_a_counter_that_stands_still_was_not_refreshed() -> None:
    gpu = counter()
    look(gpu, 0, 1000)
    gpu.take()
    look(gpu, 1, 1000)
    assert not gpu.has_moved
    look(gpu, 2, 1001)
    assert gpu.has_moved


@given(st.lists(st.tuples(st.floats(0, 1000), st.booleans()), max_size=30))
def test_what_is_taken_adds_up_to_what_the_counter_rose(steps: list[tuple[float, bool]]) -> None:
    gpu = counter()
    look(gpu, 0, 100)
    gpu.take()
    energy_j = 100.0
    taken_j = 0.0
    for second, (more_j, takes) in enumerate(steps, 1):
        energy_j += more_j
        look(gpu, second, energy_j)
        if takes:
            taken_j += gpu.take().energy_j or 0.0
    taken_j += gpu.take().energy_j or 0.0
    assert taken_j == pytest.approx(energy_j - 100)
