"""The real binding (nvidia-ml-py) over the fake driver."""

from __future__ import annotations

import subprocess
import sys

import pytest

from conserve_sdk.protocol import EnergySource
from conserve_server.core.errors import ConfigError
from conserve_server.energy.nvml import NvmlMeter
from tests.energy.conftest import FakeDriver


def energies(meter: NvmlMeter, now_s: float = 0.0) -> list[float | None]:
    return [reading.energy_j for reading in meter.read(now_s)]


def test_the_energy_counter_is_read_in_joules(driver: FakeDriver) -> None:
    driver.gpus("75 400 -", "75 400 -")
    driver.energy(0, 1234.5)
    driver.energy(1, 2.0)
    meter = NvmlMeter(0.1)
    assert energies(meter) == [1234.5, 2.0]
    assert meter.interval_s is None
    meter.close()


def test_a_gpu_is_described_as_the_driver_knows_it(driver: FakeDriver) -> None:
    driver.gpus("75 400 -", "75 400 m NVIDIA A40")
    meter = NvmlMeter(0.1)
    h100, a40 = meter.devices
    assert (h100.name, h100.label, h100.aliases) == ("0", "NVIDIA H100 80GB HBM3", ("GPU-000000000000",))
    assert (h100.source, h100.how) == (EnergySource.MEASURED, "NVML energy counter")
    assert (h100.idle_w, h100.limit_w, h100.note) == (75, 700, None)
    assert a40.note == "MIG is on: its meter is the whole GPU's, not a slice's"
    assert a40.idle_w is None  # nothing is published, and a guess is no measurement
    meter.close()


def test_power_is_integrated_where_there_is_no_counter(driver: FakeDriver) -> None:
    driver.gpus("75 400 n")
    meter = NvmlMeter(0.1)
    assert meter.devices[0].how == "NVML power, integrated every 0.1 s"
    assert meter.interval_s == 0.1
    assert energies(meter, 0.0) == [0.0]
    driver.gpus("75 200 n")
    assert energies(meter, 1.0) == [300.0]
    assert energies(meter, 1.5) == [400.0]
    meter.close()


def test_watts_are_not_carried_over_a_long_silence(driver: FakeDriver) -> None:
    driver.gpus("75 400 n")
    meter = NvmlMeter(0.1)
    assert energies(meter, 0.0) == [0.0]
    assert energies(meter, 100.0) == [0.0]
    assert energies(meter, 101.0) == [400.0]
    meter.close()


def test_a_lost_gpu_reads_as_lost_and_the_others_go_on(driver: FakeDriver) -> None:
    driver.gpus("75 400 -", "75 400 -")
    driver.energy(1, 5.0)
    meter = NvmlMeter(0.1)
    driver.gpus("75 400 l", "75 400 -")
    lost, there = meter.read(0.0)
    assert (lost.energy_j, lost.error) == (None, "GPU is lost")
    assert there.energy_j == 5.0
    driver.gpus("75 400 -", "75 400 -")
    driver.energy(0, 7.0)
    assert energies(meter) == [7.0, 5.0]
    meter.close()


def test_an_error_at_the_start_is_not_taken_for_a_missing_counter(driver: FakeDriver) -> None:
    driver.gpus("75 400 u")
    meter = NvmlMeter(0.1)
    assert meter.devices[0].how == "NVML energy counter"
    assert meter.read(0.0)[0].error == "Unknown Error"
    meter.close()


def test_only_the_gpus_that_are_wanted_are_read(driver: FakeDriver) -> None:
    driver.gpus("75 400 -", "75 400 -", "75 400 m")
    meter = NvmlMeter(0.1, ["1", "GPU-000000000001", "MIG-2"])
    assert [device.name for device in meter.devices] == ["1", "2"]
    assert "MIG-2" in meter.devices[1].aliases
    meter.close()


def test_a_gpu_that_is_not_there_is_named(driver: FakeDriver) -> None:
    with pytest.raises(ConfigError, match="NVML knows no GPU '7': there are 0, GPU-000000000000"):
        NvmlMeter(0.1, ["7"])


def test_a_machine_without_gpus_says_so(driver: FakeDriver) -> None:
    driver.gpus()
    with pytest.raises(ConfigError, match="the driver shows no GPU"):
        NvmlMeter(0.1)


def test_a_machine_without_a_driver_says_so() -> None:
    program = (
        "from conserve_server.energy.nvml import NvmlMeter\n"
        "from conserve_server.core.errors import ConfigError\n"
        "try: NvmlMeter(0.1)\n"
        "except ConfigError as error: print(error)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env={}
    )
    assert found.stdout == "NVML: NVML Shared Library Not Found: is an NVIDIA driver installed?\n"
