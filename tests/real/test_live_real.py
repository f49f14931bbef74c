"""Calibration and replay on real vLLM: what is measured and counted, never how fast it was."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from conserve_sdk import protocol
from conserve_server.cli.gateway_process import running_gateway
from conserve_server.cli.main import main
from conserve_server.engines.engine import Role
from conserve_server.simulation.calibration import read_calibration
from conserve_server.simulation.live.replay import replay
from conserve_server.simulation.live.token_client import connected
from conserve_server.simulation.metrics import metrics
from conserve_server.simulation.records import PATHS
from conserve_server.simulation.timing import Step
from conserve_server.simulation.workload import Arrival, ConversationShape, TurnShape, Workload
from tests.real.cluster import KV_CACHE_GIB, RealCluster

pytestmark = pytest.mark.real


def test_a_real_engine_is_calibrated(real_cluster: RealCluster, tmp_path: Path) -> None:
    output = tmp_path / "timing.json"
    url = real_cluster.engines.url(Role.DECODE)
    assert main(["calibrate", url, str(output), "--repeats", "1", "--longest", "600"]) == 0
    found = read_calibration(output)
    assert found.model == real_cluster.model
    assert found.kv_bytes_per_token * found.kv_capacity_tokens == KV_CACHE_GIB * 2**30
    timing = found.timing
    assert 0 < timing.step_s(Step(0, 0, 0, 1, 64)) <= timing.step_s(Step(1, 512))


async def test_a_workload_is_replayed_through_a_real_gateway(
    real_cluster: RealCluster, tmp_path: Path
) -> None:
    turns = (TurnShape(150, 6), TurnShape(40, 5, gap_s=1.0), TurnShape(40, 4, gap_s=1.0))
    shapes = [ConversationShape(f"c{number}", turns) for number in range(3)]
    workload = Workload("w", tuple(Arrival(0.5 * number, shape) for number, shape in enumerate(shapes)))
    env = {"CONSERVE_TRACE_DIR": str(tmp_path / "traces")}
    config, log = real_cluster.engines.config_path, tmp_path / "gateway.log"
    async with asyncio.timeout(180), running_gateway(config, env, log) as url, connected(url) as client:
        found = await replay(workload, client, speed=2.0)
    assert found.failures == []
    measured = metrics(found.records, [found.gaps], found.duration_s)
    assert (measured.conversations, measured.turns, measured.transfers) == (3, 9, 3)
    paths = {PATHS[path] for path in found.records.path}
    assert paths == {protocol.Path.REMOTE_PREFILL, protocol.Path.PINNED}
    # Later prompts contain the answers before them, token by token: whole blocks of them are cached.
    later = [row for row in range(9) if found.records.index[row] > 0]
    assert all(found.records.cached_tokens[row] >= 128 for row in later)
