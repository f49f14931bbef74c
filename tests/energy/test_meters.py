"""Which meters a configuration means, and what runs on which device."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from conserve_server.core.energy_config import EnergyConfig, EnergyNodeConfig
from conserve_server.core.errors import ConfigError
from conserve_server.core.policy_config import TierConfig
from conserve_server.energy.meters import EngineKind, Engines, MeterPlan, plan_meters
from conserve_server.energy.modelled import H100
from tests.energy.conftest import FakeDriver
from tests.energy.test_dcgm import Page
from tests.energy.test_dcgm import exporter as exporter


def engines(kind: EngineKind = "local", *, are_on_cpus: bool = False, **gpus: tuple[str, ...]) -> Engines:
    named = {name.replace("_", "-"): listed for name, listed in gpus.items()}
    return Engines(kind, named, are_on_cpus)


def shape(plan: MeterPlan) -> dict[str, tuple[str, ...]]:
    """The engines of each domain, by its name."""
    return {domain.name: domain.engines for domain in plan.domains}


def plan(config: EnergyConfig, found: Engines) -> MeterPlan:
    made = plan_meters(config, found, 0.0)
    for meter in made.meters:
        meter.close()
    return made


def test_emulated_engines_are_modelled_each_on_a_gpu_of_its_own() -> None:
    made = plan(EnergyConfig(), engines("emulated", prefill_0=(), decode_0=()))
    assert shape(made) == {"prefill-0": ("prefill-0",), "decode-0": ("decode-0",)}
    assert made.modelled is not None
    assert made.reason is None


def test_the_modelled_gpu_and_its_cap_can_be_chosen() -> None:
    made = plan(EnergyConfig(gpu="a100", power_cap_w=200), engines("emulated", decode_0=()))
    (device,) = made.domains[0].devices
    assert (device.label, device.limit_w) == ("a100", 200)
    assert H100.limit_w == 700


def test_a_tier_says_which_gpu_an_engine_is_modelled_on_and_its_cap() -> None:
    tiers = {"decode-0": TierConfig(gpu="a100", power_cap_w=200), "decode-1": TierConfig()}
    found = Engines("emulated", {"decode-0": (), "decode-1": ()}, tiers=tiers)
    devices = [domain.devices[0] for domain in plan(EnergyConfig(), found).domains]
    assert [(device.label, device.limit_w) for device in devices] == [("a100", 200), ("h100", 700)]


def test_a_gpu_without_known_watts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"energy\.gpu: no watts are known of 'tpu', only of a100"):
        plan(EnergyConfig(gpu="tpu"), engines("emulated", decode_0=()))


def test_local_engines_are_on_the_gpus_they_were_started_on(driver: FakeDriver) -> None:
    driver.gpus(*("75 400 -",) * 4)
    made = plan(EnergyConfig(), engines(prefill_0=("0",), decode_0=("1", "2"), decode_1=("3",)))
    assert shape(made) == {"0": ("prefill-0",), "1+2": ("decode-0",), "3": ("decode-1",)}


def test_engines_that_share_a_gpu_are_attributed_together(driver: FakeDriver) -> None:
    driver.gpus("75 400 -")
    made = plan(EnergyConfig(), engines(decode_0=("0",), decode_1=("GPU-000000000000",)))
    assert shape(made) == {"0": ("decode-0", "decode-1")}


def test_cpu_engines_without_a_counter_are_not_measured_and_say_why(tmp_path: Path) -> None:
    made = plan(EnergyConfig(), engines(decode_0=("0",), are_on_cpus=True))
    if not made.domains:
        assert (made.reason or "").startswith("RAPL: ")
        assert made.why_unmetered("decode-0") == made.reason


def test_listed_engines_are_not_guessed_at() -> None:
    made = plan(EnergyConfig(), engines("listed", decode_0=()))
    assert (made.meters, made.reason) == ((), "no energy meter is configured")


def test_meters_can_be_off() -> None:
    made = plan(EnergyConfig(meter="off"), engines("emulated", decode_0=()))
    assert made.reason == "energy.meter is off"


def test_listed_engines_on_another_node_are_read_there(exporter: Page) -> None:
    config = EnergyConfig(
        nodes={"node-a": EnergyNodeConfig(url=exporter.url)},
        devices={"decode-0": ("node-a/0",), "decode-1": ("node-a/GPU-b",)},
    )
    made = plan(config, engines("listed", prefill_0=(), decode_0=(), decode_1=()))
    assert shape(made) == {"node-a/0": ("decode-0",), "node-a/1": ("decode-1",)}
    assert made.why_unmetered("prefill-0") == "prefill-0: its devices are not named in energy.devices"


def test_a_node_that_does_not_answer_leaves_its_engines_unmetered_and_the_gateway_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = EnergyConfig(
        nodes={"node-a": EnergyNodeConfig(url="http://127.0.0.1:9/metrics")},
        devices={"decode-0": ("node-a/0",)},
    )
    with caplog.at_level(logging.WARNING):
        made = plan(config, engines("listed", decode_0=()))
    assert made.why_unmetered("decode-0").startswith("energy.nodes.node-a: http://127.0.0.1:9/metrics")
    assert "its engines are not measured" in caplog.text


def test_a_device_that_no_meter_knows_is_named(driver: FakeDriver, exporter: Page) -> None:
    config = EnergyConfig(
        nodes={"node-a": EnergyNodeConfig(url=exporter.url)}, devices={"decode-0": ("node-a/9",)}
    )
    made = plan(config, engines("listed", decode_0=()))
    assert made.why_unmetered("decode-0") == "decode-0: no meter knows a device 'node-a/9'"


def test_an_engine_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"energy\.devices names decode-7: the engines are decode-0"):
        plan(EnergyConfig(devices={"decode-7": ("0",)}), engines("listed", decode_0=()))


def test_a_meter_that_was_asked_for_by_name_must_be_there(driver: FakeDriver) -> None:
    driver.gpus()
    with pytest.raises(ConfigError, match="the driver shows no GPU"):
        plan(EnergyConfig(meter="nvml"), engines(decode_0=("0",)))


def test_a_record_is_replayed_for_the_engines_it_names(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"devices": {"decode-0": {"energy": [[0, 0], [9, 9]]}}}))
    config = EnergyConfig(meter="replay", replay_file=str(path))
    made = plan(config, engines("listed", decode_0=(), decode_1=()))
    assert shape(made) == {"decode-0": ("decode-0",)}
    with pytest.raises(ConfigError, match=r"needs energy\.replay_file"):
        plan(EnergyConfig(meter="replay"), engines("listed", decode_0=()))
