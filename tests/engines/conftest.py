"""What the launcher's tests share: a fake vLLM Python and configurations for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conserve_server.core.config import Config, parse_config

FAKE = Path(__file__).parent / "fake_vllm.py"


@pytest.fixture
def fake_python(tmp_path: Path) -> str:
    """A program that answers as a vLLM environment's Python would."""
    program = tmp_path / "fake-python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{FAKE}" "$@"\n')
    program.chmod(0o755)
    return str(program)


ConfigOf = Callable[..., Config]


@pytest.fixture
def config_of(tmp_path: Path, fake_python: str) -> ConfigOf:
    """A configuration of fake engines; `pools` and `launcher` are merged into one that works."""

    def make(*, model: str | None = None, pools: dict[str, Any] | None = None, **launcher: object) -> Config:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        defaults = {
            "python": fake_python,
            "run_dir": str(tmp_path / "run"),
            "start_timeout_s": 20.0,
            "stop_timeout_s": 2.0,
        }
        return parse_config(
            {
                "model": model or str(folder),
                "pools": pools or {"prefill": {"count": 1}, "decode": {"count": 2}},
                "launcher": {**defaults, **launcher},
            }
        )

    return make
