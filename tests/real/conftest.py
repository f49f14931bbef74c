"""Real vLLM engines, started once for all tests that need them."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from conserve_server.engines.engine import Role
from tests.real.cluster import RealCluster, local_engines

ROOT = Path(__file__).parents[2]
DEFAULT_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
NOTES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOTES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for note in config.stash.get(NOTES, []):
        terminalreporter.write_line(f"REAL ENGINES: {note}", bold=True)


@pytest.fixture(scope="session")
def vllm_python(request: pytest.FixtureRequest) -> str:
    """The Python of the environment that holds vLLM.

    Skips, and says so in the summary, only on a machine that vLLM's CPU build is not for.
    """
    python = Path(os.environ.get("CONSERVE_VLLM_PYTHON", DEFAULT_PYTHON)).absolute()
    if python.exists():
        return str(python)
    if (sys.platform, platform.machine()) == ("linux", "x86_64"):
        pytest.fail(f"no vLLM environment at {python}: make it with tools/install_vllm.py .venv-vllm")
    note = f"NOT TESTED: vLLM's CPU build is not for {platform.system()} on {platform.machine()}"
    request.config.stash[NOTES].append(note)
    pytest.skip(note)


@pytest.fixture(scope="session")
def real_cluster(
    vllm_python: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[RealCluster]:
    """One prefill and two decode engines with the tiny model, and the reference engine alone."""
    started_s = time.monotonic()
    with ExitStack() as stack:
        folder, alone = tmp_path_factory.mktemp("cluster"), tmp_path_factory.mktemp("reference")
        engines = stack.enter_context(local_engines(folder, vllm_python, prefill=1, decode=2))
        flags = '["--no-enable-prefix-caching"]'
        reference = stack.enter_context(local_engines(alone, vllm_python, flags=flags))
        note = f"1 prefill, 2 decode and 1 reference engine ready after {time.monotonic() - started_s:.0f} s"
        request.config.stash[NOTES].append(note)
        yield RealCluster(engines, reference.url(Role.DECODE))
