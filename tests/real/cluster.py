"""Real engines for tests: `conserve up` as a process, over the tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from conserve_server.cli.gateway_process import running_gateway
from conserve_server.core.config import Config, load_config
from conserve_server.engines.engine import EngineSpec, Role
from conserve_server.engines.guardian import descendants
from conserve_server.engines.pool_record import read_record
from tests.processes import wait_for, wait_gone

MODEL = "tiny-random"
KV_CACHE_GIB = 0.015625
"""16 MiB: 8,192 tokens of the tiny model, four conversations of its full length."""
MAX_MODEL_LEN = 2048
STORES_RESPONSES = '{ VLLM_ENABLE_RESPONSES_API_STORE = "1" }'
START_S = 600.0
STOP_S = 60.0


@dataclass(frozen=True, slots=True)
class LocalEngines:
    """Engines that `conserve up` with the configuration at `config_path` runs; its process is `up`."""

    config_path: Path
    config: Config
    specs: tuple[EngineSpec, ...]
    up: subprocess.Popen[bytes]

    def url(self, role: Role, index: int = 0) -> str:
        """The address of an engine, such as the second decode engine."""
        return next(spec.url for spec in self.specs if spec.name == f"{role}-{index}")

    def pid(self, name: str) -> int | None:
        """The engine's process now; None while it is being started again."""
        record = json.loads((Path(self.config.launcher.run_dir) / "pool.json").read_text())
        pid: int | None = next(e["pid"] for e in record["engines"] if e["name"] == name)
        return pid


@dataclass(frozen=True, slots=True)
class RealCluster:
    """One prefill and two decode engines, and one engine alone whose answers are the reference.

    The reference has no KV connector and no prefix cache: whatever the cluster answers under
    greedy decoding, it must answer too.
    """

    engines: LocalEngines
    reference_url: str
    model: str = MODEL


@contextmanager
def local_engines(
    folder: Path,
    python: str,
    *,
    prefill: int = 0,
    decode: int = 1,
    flags: str = "[]",
    env: str = STORES_RESPONSES,
    host_kv_gib: float | None = None,
) -> Iterator[LocalEngines]:
    """`conserve up`, its engines ready; stopped afterwards, and nothing of it left running."""
    config_path = folder / "conserve.toml"
    config_path.write_text(f"""
model = "{MODEL}"
[pools.prefill]
count = {prefill}
[pools.decode]
count = {decode}
{"" if host_kv_gib is None else f"host_kv_gib = {host_kv_gib}"}
[launcher]
python = "{python}"
run_dir = "{folder}/run"
kv_cache_gib = {KV_CACHE_GIB}
max_model_len = {MAX_MODEL_LEN}
start_timeout_s = {START_S}
flags = {flags}
env = {env}
""")
    with (folder / "up.log").open("wb") as log:
        command = [sys.executable, "-m", "conserve_server.cli.main", "up", str(config_path)]
        up = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        config = load_config(config_path)
        yield LocalEngines(config_path, config, _ready(up, config, folder), up)
        left = descendants(up.pid)
        up.terminate()
        up.wait(STOP_S)
        wait_gone(left)  # a killed process is there for a moment longer
    finally:
        up.kill()  # its guardians see that and stop what is left
        up.wait(STOP_S)


def _ready(up: subprocess.Popen[bytes], config: Config, folder: Path) -> tuple[EngineSpec, ...]:
    record = Path(config.launcher.run_dir) / "pool.json"
    wait_for(lambda: record.exists() or up.poll() is not None, "real engines", limit_s=START_S)
    if up.poll() is not None:
        pytest.fail(f"conserve up ended with {up.returncode}:\n{(folder / 'up.log').read_text()}")
    return read_record(config)


@asynccontextmanager
async def gateway_over(engines: LocalEngines, folder: Path, more: str = "") -> AsyncIterator[str]:
    """The URL of a gateway process over these engines; `more` lines of its configuration."""
    pools = {role: [spec.url for spec in engines.specs if spec.role is role] for role in Role}
    lines = [f"[pools.{role}]\nengines = {json.dumps(urls)}" for role, urls in pools.items()]
    config = folder / "gateway.toml"
    config.write_text("\n".join([*lines, more]) + "\n")
    env = {**os.environ, "CONSERVE_TRACE_DIR": str(folder / "traces")}
    async with running_gateway(config, env, folder / "gateway.log") as url:
        yield url
