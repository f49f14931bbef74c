"""The SDK's bench: its sums, and that it measures and keeps what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.sdk_overhead import SIDES, compare, growth

ROOT = Path(__file__).parents[2]


def test_what_is_added_is_the_median_of_each_rounds_difference() -> None:
    rounds = [
        {"off": 100.0, "tagged": 120.0, "official": 200.0, "traced": 230.0, "tool": 5.0},
        {"off": 300.0, "tagged": 322.0, "official": 400.0, "traced": 430.0, "tool": 6.0},
        {"off": 100.0, "tagged": 124.0, "official": 200.0, "traced": 230.0, "tool": 7.0},
    ]
    found = compare(rounds)
    assert found["added_us"]["tagging"]["median"] == 22.0  # 20, 22, 24: not the difference of medians
    assert found["added_us"]["official"]["median"] == 100.0
    assert found["of_official"] == {"spans": 1.08, "tagging_and_spans": 1.3}
    assert found["tool_call_us"]["median"] == 6.0


def test_growth_is_told_in_mebibytes() -> None:
    grown = growth(5_000, 10 * 2**20, 12.5 * 2**20)
    assert grown == {"calls": 5_000, "before_mib": 10.0, "after_mib": 12.5, "grown_mib": 2.5}


@pytest.mark.slow
def test_a_short_run_measures_each_side_and_keeps_it(tmp_path: Path) -> None:
    kept = tmp_path / "sdk.json"
    sizes = ("--calls", "1", "--rounds", "2", "--imports", "2", "--memory-calls", "20")
    done = subprocess.run(
        (sys.executable, "bench/sdk_overhead.py", *sizes, "--output", str(kept)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(kept.read_text())
    assert set(found["call_us"]) == set(SIDES)
    assert {name: each["calls"] for name, each in found["memory"].items()} == {"off": 20, "traced": 20}
