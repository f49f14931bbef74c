"""`conserve up` tells the power caps of the GPUs that its engines run on."""

from __future__ import annotations

from conserve_server.cli.up import power_caps
from conserve_server.engines.engine import EngineSpec, Role
from tests.energy.conftest import FakeDriver
from tests.energy.conftest import built_driver as built_driver
from tests.energy.conftest import driver as driver


def spec(name: str, *gpus: str) -> EngineSpec:
    return EngineSpec(name, Role.DECODE, "http://127.0.0.1:9", gpus)


def test_each_gpu_of_an_engine_is_told_with_its_cap(driver: FakeDriver) -> None:
    driver.gpus("75 400 -", "75 400 -", "75 400 - NVIDIA A40")
    assert power_caps([spec("decode-0", "0"), spec("decode-1", "2")]) == [
        "GPU 0, NVIDIA H100 80GB HBM3: power cap 700 W",
        "GPU 2, NVIDIA A40: power cap 700 W",
    ]


def test_a_driver_that_can_t_be_asked_is_told(driver: FakeDriver) -> None:
    driver.gpus()
    assert power_caps([spec("decode-0", "0")]) == ["power caps are not known: NVML: the driver shows no GPU"]


def test_engines_on_cpus_have_none() -> None:
    assert power_caps([spec("decode-0")]) == []
