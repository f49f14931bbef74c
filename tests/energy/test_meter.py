"""Meters that need no driver: null, replay, RAPL, modelled."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from conserve_sdk.protocol import EnergySource
from conserve_server.core.errors import ConfigError
from conserve_server.energy.meter import NullMeter, ReplayMeter
from conserve_server.energy.modelled import A40, H100
from conserve_server.energy.modelled_meter import ModelledMeter
from conserve_server.energy.rapl import RaplMeter


def record(folder: Path, energy: object, **more: object) -> Path:
    path = folder / "record.json"
    path.write_text(json.dumps({"devices": {"decode-0": {"energy": energy, **more}}}))
    return path


def test_the_null_meter_has_nothing_to_read() -> None:
    meter = NullMeter()
    assert (meter.devices, meter.read(0.0)) == ((), ())
    meter.close()


def test_a_replay_counts_as_the_record_did_from_its_own_start(tmp_path: Path) -> None:
    meter = ReplayMeter(record(tmp_path, [[0, 100], [10, 300], [20, 300]], idle_w=50), now_s=1000.0)
    assert [meter.read(1000 + s)[0].energy_j for s in (0, 5, 10, 15, 20)] == [100, 200, 300, 300, 300]
    assert meter.read(1020.1)[0].error == "the record is over"
    (device,) = meter.devices
    assert (device.source, device.how, device.idle_w) == (EnergySource.REPLAYED, "the record record.json", 50)


@pytest.mark.parametrize(
    ("energy", "problem"),
    [
        ([[0, 1]], "needs at least 2 entries"),
        ([[0, 2], [1, 1]], "its joules must not fall"),
        ([[1, 1], [0, 2]], "its seconds must rise"),
        ([["a", 1], [0, 2]], "no energy record"),
        (None, "needs at least 2 entries"),
    ],
)
def test_a_record_that_is_none_is_refused(tmp_path: Path, energy: object, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        ReplayMeter(record(tmp_path, energy), 0.0)


def test_a_record_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"energy\.replay_file: .*missing\.json can't be read"):
        ReplayMeter(tmp_path / "missing.json", 0.0)


# -- RAPL ------------------------------------------------------------------------------------


def zone(powercap: Path, name: str, energy_uj: int) -> Path:
    folder = powercap / name
    folder.mkdir(parents=True)
    (folder / "name").write_text("package-0\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    return folder


def test_cpu_packages_are_read_and_their_parts_left_out(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", 1_000_000)
    zone(tmp_path, "intel-rapl:1", 7_000_000)
    meter = RaplMeter(tmp_path)
    assert [device.name for device in meter.devices] == ["cpu-0", "cpu-1"]
    assert meter.devices[0].wraps_at_j == pytest.approx(262143.32885)
    assert [reading.energy_j for reading in meter.read(0.0)] == [5.0, 7.0]


def test_a_package_that_vanishes_reads_as_such(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", 5_000_000)
    meter = RaplMeter(tmp_path)
    (folder / "energy_uj").unlink()
    (reading,) = meter.read(0.0)
    assert reading.energy_j is None
    assert "No such file" in (reading.error or "")


def test_a_kernel_without_powercap_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the kernel shows no CPU package"):
        RaplMeter(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_counter_for_root_only_names_the_fix(tmp_path: Path) -> None:
    (zone(tmp_path, "intel-rapl:0", 1) / "energy_uj").chmod(0)
    with pytest.raises(ConfigError, match=r"is for root only: chmod a\+r it"):
        RaplMeter(tmp_path)


# -- modelled --------------------------------------------------------------------------------


def test_an_engine_draws_by_what_it_does() -> None:
    meter = ModelledMeter({"decode-0": H100}, 0.0)
    meter.does("decode-0", 1, 0, 2.0)  # idle until now
    meter.does("decode-0", 1, 3, 3.0)  # prefilled
    meter.does("decode-0", 0, 4, 4.0)  # prefilled beside its decodes
    meter.does("decode-0", 0, 0, 6.0)  # decoded
    (reading,) = meter.read(7.0)
    assert reading.energy_j == 3 * H100.idle_w + 2 * H100.prefill_w + 2 * H100.decode_w


def test_a_modelled_gpu_says_that_it_is_and_how() -> None:
    (h100,) = ModelledMeter({"decode-0": H100}, 0.0).devices
    assert (h100.name, h100.source, h100.how) == (
        "decode-0",
        EnergySource.MODELLED,
        "watts of h100 by phase",
    )
    (a40,) = ModelledMeter({"decode-0": A40}, 0.0).devices
    assert a40.note == "scaled from another GPU: no watts by phase are published"


def test_what_other_engines_do_changes_nothing() -> None:
    meter = ModelledMeter({"decode-0": H100}, 0.0)
    meter.does("decode-1", 1, 1, 1.0)
    assert meter.read(2.0)[0].energy_j == 2 * H100.idle_w
