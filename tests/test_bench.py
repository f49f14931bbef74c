"""The measuring programs: that their sums are right, and that the short soak finds nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench.gateway import ratios
from bench.soak import Seen, memory_growth, problems

ROOT = Path(__file__).parents[1]


def rates(**by_path: float) -> dict[str, dict[str, float]]:
    return {
        name.replace("_", "-"): {"requests_per_s": rate, "p50_ms": 1000 / rate}
        for name, rate in by_path.items()
    }


def test_ratios_are_taken_round_by_round_and_the_worse_path_counts() -> None:
    slow = rates(direct=100, vllm_router=50, pass_through=20, pinned=30, untraced=40)
    fast = rates(direct=1000, vllm_router=500, pass_through=250, pinned=350, untraced=450)
    rounds = [{"4k-c32-whole": each, "4k-c1-whole": each} for each in (slow, fast, fast)]
    found = ratios(rounds)
    assert found["throughput_4k_c32"] == found["throughput_4k_c32_pass-through"] == 0.5
    assert found["throughput_4k_c32_pinned"] == 0.7
    assert found["added_p50_ms_4k_c1"]["ours"] == 3.0
    assert found["added_p50_ms_4k_c1"]["vllm-router"] == 1.0


def test_memory_is_compared_after_warming_up() -> None:
    assert memory_growth([10.0] * 40 + [50.0] * 40 + [52.0] * 20) == (50.0, 52.0, 0.04)


def test_a_soak_names_what_it_found() -> None:
    seen = Seen(outcomes=Counter(completed=3, cancelled=1))
    nothing = {"conversations": 0.0, "sockets": 0.0}
    assert problems(seen, 0.04, nothing, 1.0, 0) == []
    seen.outcomes["status 502"] += 1
    found = problems(seen, 0.06, {"conversations": 2.0}, 29.0, 0)
    assert [problem.split()[0] for problem in found] == ["conversations:", "memory", "it", "turns"]


@pytest.mark.slow
def test_a_short_soak_leaves_nothing_behind(tmp_path: Path) -> None:
    found = tmp_path / "soak.json"
    command = (sys.executable, "bench/soak.py", "--seconds", "20", "--agents", "6", "--output", str(found))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(found.read_text())["turns"] > 20
