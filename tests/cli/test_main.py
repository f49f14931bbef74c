"""The console script: help without extras, exit statuses, and `conserve up` as a process."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conserve_sdk._version import __version__
from conserve_server.cli.main import SUBCOMMANDS, main
from tests.processes import is_running, pids_in, wait_for, wait_gone

FAKE = Path(__file__).parents[1] / "engines" / "fake_vllm.py"
CONFIGS = Path(__file__).parents[2] / "examples" / "config"
BASE_ONLY = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Absent())
from conserve_server.cli.main import main
sys.exit(main({arguments!r}))
"""
SERVER_EXTRA = {"aiohttp", "msgspec", "prometheus_client", "psutil", "pydantic", "starlette", "uvicorn"}


def without_server_extra(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = BASE_ONLY.format(absent=SERVER_EXTRA, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in SUBCOMMANDS)])
def test_help_needs_no_server_extra(arguments: list[str]) -> None:
    answer = without_server_extra(*arguments)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("usage: conserve")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["serve", "up"])
def test_without_the_server_extra_the_install_line_is_named(name: str) -> None:
    answer = without_server_extra(name, "conserve.toml")
    assert answer.returncode == 2
    assert answer.stderr == f"conserve {name} needs the server extra: pip install 'conserve-sdk[server]'\n"


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_can_be_parsed_and_run(name: str) -> None:
    module = importlib.import_module(f"conserve_server.cli.{name.replace('-', '_')}")
    assert callable(module.add_parser)
    assert callable(module.run)


def test_the_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"conserve {__version__}\n"


def test_a_configuration_that_can_not_be_used_is_exit_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "conserve.toml"
    config.write_text("[pools.decode]\ncount = 1\ncores = []\nspeed = 3\n")
    assert main(["up", str(config)]) == 2
    assert capsys.readouterr().err.startswith(
        f"conserve up: {config} can't be used:\n  pools.decode.speed: no"
    )


def test_listed_engines_are_nothing_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", str(CONFIGS / "remote.toml")]) == 2
    assert "pools.decode.count must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_example_configuration_can_be_used(path: Path) -> None:
    from conserve_server.core.config import load_config

    assert load_config(path).pools.decode


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration of fake engines whose decode engine starts stubborn children."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{FAKE}" "$@"\n')
    python.chmod(0o755)
    config = tmp_path / "conserve.toml"
    config.write_text(f"""
model = "{tmp_path}/model"
[pools.prefill]
count = 1
[pools.decode]
count = 1
flags = ["--fake-engine", "stubborn", "--fake-children", "{tmp_path}/children"]
[launcher]
python = "{python}"
run_dir = "{tmp_path}/run"
stop_timeout_s = 0.5
""")
    return config


@contextmanager
def conserve_up(config: Path) -> Iterator[subprocess.Popen[str]]:
    """`conserve up`, its engines ready; what it prints is in `said_by`."""
    command = [sys.executable, "-m", "conserve_server.cli.main", "up", str(config)]
    with (
        said_by(config).open("w") as said,
        subprocess.Popen(command, stdout=said, stderr=subprocess.PIPE, text=True) as process,
    ):
        try:
            wait_for(
                lambda: "Ctrl-C" in said_by(config).read_text() or process.poll() is not None, "the engines"
            )
            yield process
        finally:
            process.kill()


def said_by(config: Path) -> Path:
    return config.parent / "said.txt"


def pids_of(config: Path) -> list[int]:
    """The engines' and their children's processes."""
    record = json.loads((config.parent / "run" / "pool.json").read_text())
    return [engine["pid"] for engine in record["engines"]] + pids_in(config.parent / "children")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_told_to_stop_it_stops_every_process_and_says_so(
    config: Path, number: signal.Signals, status: int
) -> None:
    with conserve_up(config) as process:
        pids = pids_of(config)
        assert len(pids) == 4
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert not any(map(is_running, pids))
    assert "Traceback" not in errors
    assert errors.endswith("engines stopped\n")
    assert "decode-0" in said_by(config).read_text()


@pytest.mark.slow
def test_killed_it_leaves_nothing_running(config: Path) -> None:
    with conserve_up(config) as process:
        pids = pids_of(config)
        os.kill(process.pid, signal.SIGKILL)
        wait_gone(pids)


@pytest.mark.slow
def test_an_engine_that_does_not_come_up_is_exit_status_1(config: Path) -> None:
    config.write_text(config.read_text().replace("stubborn", "dies"))
    with conserve_up(config) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "conserve up: engine decode-0 ended with exit code 7" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_models_are_listed_with_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["smollm2-135m", "tiny-random"]
    assert all(str(tmp_path) in line for line in lines)
