"""The command line, and the process that it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from conserve_server.core.errors import ConfigError
from conserve_server.engines.emulated import EmulatedTiming
from conserve_server.engines.emulated.__main__ import parse_arguments
from conserve_server.engines.engine import Role


def test_the_command_line_is_the_configuration(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text('[[rules]]\nreply = "hello"\n')
    line = f"--port 9 --role prefill --model m --name n --script {script} --kv-blocks 5 --speed 2"
    config = parse_arguments(line.split())
    assert (config.port, config.role, config.model, config.name) == (9, Role.PREFILL, "m", "n")
    assert (config.kv_blocks, config.script[0].reply) == (5, "hello")
    assert config.timing == EmulatedTiming().faster(2)


@pytest.mark.parametrize("line", ["--speed 0", "--kv-blocks 0", "--script missing.toml"])
def test_what_cannot_be_used_is_refused(line: str) -> None:
    with pytest.raises(ConfigError):
        parse_arguments(line.split())


@pytest.mark.slow
def test_the_process_says_that_it_is_emulated_and_dies_on_command() -> None:
    command = [sys.executable, "-m", "conserve_server.engines.emulated", "--port", "0", "--name", "e"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            url = line.split(" at ")[1].split(": ")[0]
            assert line.startswith("EMULATED engine e (decode)")
            httpx2.post(f"{url}/emulated/faults", json={"kind": "die"}).raise_for_status()
            with pytest.raises(httpx2.HTTPError):
                httpx2.post(f"{url}/v1/completions", json={"prompt": "x"})
            assert process.wait(timeout=10) == 70
        finally:
            process.kill()
