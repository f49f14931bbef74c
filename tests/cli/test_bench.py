"""`conserve bench` and `conserve calibrate`, as their users call them, against emulated engines."""

from __future__ import annotations

import asyncio
import json
import pathlib

import pytest

from conserve_server.cli.main import main
from conserve_server.engines.emulated import EmulatedConfig, serve_emulated
from conserve_server.simulation.calibration import read_calibration
from tests.gateway.conftest import served

TRACE = {
    "format": "conserve-trace-v1",
    "id": "c1",
    "at_s": 0.0,
    "turns": [
        {"appended_tokens": 100, "output_tokens": 4},
        {"appended_tokens": 20, "output_tokens": 3, "gap_s": 5.0},
    ],
}


@pytest.fixture
def trace(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "trace.jsonl"
    file.write_text(json.dumps(TRACE) + "\n")
    return file


async def test_a_trace_is_replayed_and_its_metrics_written(
    trace: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = trace.with_name("bench.json")
    async with served() as gateway:
        arguments = ["bench", str(trace), "--url", gateway.url, "--speed", "50", "--output", str(output)]
        assert await asyncio.to_thread(main, arguments) == 0
    assert "1 conversations, 2 turns" in capsys.readouterr().out
    document = json.loads(output.read_text())
    assert document["metrics"]["turns"] == 2
    assert document["failures"] == []


async def test_a_conversation_that_fails_makes_the_command_fail(
    trace: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served() as gateway:
        arguments = ["bench", str(trace), "--url", gateway.url, "--token-scale", "900"]
        assert await asyncio.to_thread(main, arguments) == 1
    assert "1 of 1 conversations failed" in capsys.readouterr().out


def test_a_gateway_that_is_not_there_is_said_so(
    trace: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(trace), "--url", "http://127.0.0.1:9"]) == 1
    assert "nothing to use at http://127.0.0.1:9" in capsys.readouterr().err


async def test_an_engine_is_measured_and_its_timing_written(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "timing.json"
    async with serve_emulated(EmulatedConfig(max_model_len=400)) as url:
        arguments = ["calibrate", url, str(output), "--repeats", "1", "--kv-bytes-per-token", "147456"]
        assert await asyncio.to_thread(main, arguments) == 0
    assert "points: median error" in capsys.readouterr().out
    found = read_calibration(output)
    assert found.kv_bytes_per_token == 147456
    assert found.kv_capacity_tokens == 320_000
    assert found.fit.observations == 8


async def test_an_engine_that_hides_its_kv_needs_the_bytes(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve_emulated(EmulatedConfig()) as url:
        assert await asyncio.to_thread(main, ["calibrate", url, str(tmp_path / "t.json")]) == 2
    assert "give --kv-bytes-per-token" in capsys.readouterr().err
