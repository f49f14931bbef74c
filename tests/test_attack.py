"""`make attack`, whole: nothing that clients, tenants, engines and operators do makes the gateway fall."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from bench.attack.__main__ import CASES

ROOT = pathlib.Path(__file__).parents[1]
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
LIMIT_S = 900


def run(output: pathlib.Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.attack", *arguments, "--output", str(output)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert output.exists(), ran.stdout + ran.stderr
    found: dict[str, Any] = json.loads(output.read_text())
    return found


@pytest.mark.slow
def test_every_case_is_held(tmp_path: pathlib.Path) -> None:
    found = run(tmp_path / "attack.json")
    assert found["cases"] == [case.name for case in CASES]
    assert found["fell"] == {}


@pytest.mark.real
def test_what_bears_on_security_is_held_on_real_vllm(tmp_path: pathlib.Path) -> None:
    names = ["a_key_in_a_trailer", "trailers_without_end", "an_upgrade_to_h2c", "another_host"]
    names += ["cached_tokens_of_others", "conversations_of_others", "several_prompts"]
    found = run(tmp_path / "attack.json", "--vllm", str(VLLM_PYTHON), "--only", *names)
    assert found["engines"] == "vllm"
    assert found["fell"] == {}


def test_each_case_says_what_it_does() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(case.what for case in CASES)
