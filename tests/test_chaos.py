"""`make chaos`, in short: every fault once, and nothing lost."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FAULTS = 19
LIMIT_S = 540


@pytest.mark.slow
def test_every_fault_once_loses_no_turn(tmp_path: pathlib.Path) -> None:
    output = tmp_path / "chaos.json"
    size = ["--conversations", "30", "--seconds", "1", "--window", "1.5"]
    command = [sys.executable, "-m", "bench.chaos", *size, "--output", str(output)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    found = json.loads(output.read_text())
    assert len(found["faults"]) == FAULTS
    assert all(fault["injected"] for fault in found["faults"].values())
    assert [found[name] for name in ("lost", "hung", "duplicated", "leaked_reservations")] == [0, 0, 0, 0]
    assert found["turns"] > 0
