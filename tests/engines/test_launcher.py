"""A pool of fake engines: it comes up whole or not at all, stays up, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from conserve_server.core.config import Config
from conserve_server.core.errors import ConfigError, EngineStartError
from conserve_server.engines.engine import Role
from conserve_server.engines.launcher import LocalPool
from conserve_server.engines.local_engine import Pace
from conserve_server.engines.pool_record import read_record
from conserve_server.engines.progress import Progress
from tests.engines.conftest import ConfigOf
from tests.processes import eventually, is_running, pids_in, wait_gone

pytestmark = pytest.mark.slow

FAST = Pace(report_s=0.1, backoff_s=0.01)
ONE: dict[str, Any] = {"decode": {"count": 1}}


SILENT: dict[str, Any] = {"decode": {"count": 1, "flags": ["--fake-engine", "silent"]}}


def decode_flags(*flags: str) -> dict[str, Any]:
    """Healthy prefill engines, and one decode engine with these flags."""
    return {"prefill": {"count": 1}, "decode": {"count": 1, "flags": list(flags)}}


async def models_at(url: str) -> list[str]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/models") as response:
        document = await response.json(content_type=None)
    return [model["id"] for model in document["data"]]


async def refused(config: Config) -> str:
    with pytest.raises(EngineStartError) as refusal:
        async with LocalPool(config, pace=FAST):
            pytest.fail("the pool came up")
    return str(refusal.value)


async def test_every_engine_is_ready_inside_and_gone_outside(config_of: ConfigOf) -> None:
    config = config_of()
    async with LocalPool(config, pace=FAST) as pool:
        assert [(spec.name, spec.role) for spec in pool.specs] == [
            ("prefill-0", Role.PREFILL),
            ("decode-0", Role.DECODE),
            ("decode-1", Role.DECODE),
        ]
        for spec in pool.specs:
            assert await models_at(spec.url) == [config.model]
        pids = list(pool.pids.values())
        assert len(pids) == 3
        assert all(map(is_running, pids))
    assert not any(map(is_running, pids))


async def test_engines_that_ignore_sigterm_are_gone_outside_with_their_children(
    config_of: ConfigOf, tmp_path: Path
) -> None:
    children = tmp_path / "children"
    pools = decode_flags("--fake-engine", "stubborn", "--fake-children", str(children))
    async with LocalPool(config_of(pools=pools, stop_timeout_s=0.3), pace=FAST) as pool:
        pids = [*pool.pids.values(), *pids_in(children)]
        assert len(pids) == 4
    assert not any(map(is_running, pids))


async def test_an_engine_that_dies_at_start_is_named_with_its_exit_code_and_log(config_of: ConfigOf) -> None:
    message = await refused(config_of(pools=decode_flags("--fake-engine", "dies")))
    assert "engine decode-0 ended with exit code 7" in message
    assert message.endswith("no such weights")


async def test_when_one_engine_fails_to_start_the_others_are_stopped(
    config_of: ConfigOf, tmp_path: Path
) -> None:
    children = tmp_path / "children"
    pools = {
        "prefill": {"count": 1, "flags": ["--fake-children", str(children)]},
        "decode": {"count": 1, "flags": ["--fake-engine", "dies after", "--fake-after", str(children)]},
    }
    assert "engine decode-0 ended with exit code 7" in await refused(config_of(pools=pools))
    assert len(pids_in(children)) == 2
    assert not any(map(is_running, pids_in(children)))


async def test_an_engine_that_is_never_ready_ends_the_wait(config_of: ConfigOf) -> None:
    message = await refused(config_of(pools=SILENT, start_timeout_s=0.5))
    assert "engine decode-0 was not ready after" in message
    assert "launcher.start_timeout_s" in message


async def test_a_start_that_is_cancelled_leaves_nothing_running(config_of: ConfigOf, tmp_path: Path) -> None:
    children = tmp_path / "children"
    pools = {
        "prefill": {"count": 1, "flags": ["--fake-children", str(children)]},
        "decode": {"count": 1, "flags": ["--fake-engine", "silent"]},
    }
    start = asyncio.create_task(LocalPool(config_of(pools=pools), pace=FAST).__aenter__())
    try:
        await eventually(lambda: len(pids_in(children)) == 2, "the prefill engine's children")
    finally:
        start.cancel()
        await asyncio.wait({start})
    assert start.cancelled()
    assert not any(map(is_running, pids_in(children)))


async def test_engines_that_can_not_be_warmed_serve_all_the_same(config_of: ConfigOf) -> None:
    heard: list[Progress] = []
    async with LocalPool(config_of(), pace=FAST, report=heard.append):
        pass
    cold = [each.detail for each in heard if each.name == "warm-up"]
    assert len(cold) == 2  # decoders
    assert cold[0].startswith("prefill-0 answered 501")
    heard.clear()
    async with LocalPool(config_of(warm_up=False), pace=FAST, report=heard.append):
        pass
    assert "warm-up" not in {each.name for each in heard}


async def test_progress_tells_the_engine_its_state_and_the_end_of_its_log(config_of: ConfigOf) -> None:
    heard: list[Progress] = []
    start = asyncio.create_task(
        LocalPool(config_of(pools=SILENT), report=heard.append, pace=FAST).__aenter__()
    )
    try:
        await eventually(
            lambda: "fake engine on" in heard[-1].detail if heard else False, "the log's last line"
        )
    finally:
        start.cancel()
        await asyncio.wait({start})
    said = [p for p in heard if p.name == "decode-0"]
    assert {p.state for p in said} == {"starting"}
    assert [p.elapsed_s for p in said] == sorted(p.elapsed_s for p in said)


async def test_an_engine_that_dies_is_started_again_at_its_address(config_of: ConfigOf) -> None:
    config = config_of()
    async with LocalPool(config, pace=FAST) as pool:
        specs, before = pool.specs, pool.pids
        os.kill(before["decode-0"], signal.SIGKILL)
        await eventually(
            lambda: pool.pids.get("decode-0", before["decode-0"]) != before["decode-0"], "a new one"
        )
        await eventually(lambda: read_record_pids(config) == pool.pids, "the record of the new one")
        assert await models_at(specs[1].url) == [config.model]
        assert pool.specs == specs
        assert {n: p for n, p in pool.pids.items() if n != "decode-0"} == {
            n: p for n, p in before.items() if n != "decode-0"
        }


async def test_an_engine_that_keeps_dying_is_given_up_with_its_last_reason(
    config_of: ConfigOf, tmp_path: Path
) -> None:
    heard: list[Progress] = []
    pools = decode_flags("--fake-engine", "serves once", "--fake-mark", str(tmp_path / "served"))
    config = config_of(pools=pools, max_restarts=2)
    async with LocalPool(config, report=heard.append, pace=FAST) as pool:
        os.kill(pool.pids["decode-0"], signal.SIGKILL)
        async with asyncio.timeout(20):
            error = await pool.wait_failed()
        assert "engine decode-0 ended with exit code 7" in str(error)
        assert "prefill-0" in pool.pids
    states = [p.state for p in heard if p.name == "decode-0" and p.state != "starting"]
    assert states == ["ready", "restarting", "restarting", "failed"]


async def test_the_first_port_is_used_as_asked(config_of: ConfigOf, tmp_path: Path) -> None:
    async with LocalPool(config_of(pools=ONE), pace=FAST) as first:
        port = int(first.specs[0].url.rpartition(":")[2])
    async with LocalPool(config_of(pools=ONE), pace=FAST, first_port=port) as again:
        assert again.specs[0].url == f"http://127.0.0.1:{port}"
        with pytest.raises(EngineStartError, match=f"port {port} on 127.0.0.1 can't be used"):
            async with LocalPool(config_of(pools=ONE, run_dir=str(tmp_path / "other")), first_port=port):
                pytest.fail("two engines share a port")


async def test_one_run_directory_holds_one_pool(config_of: ConfigOf) -> None:
    async with LocalPool(config_of(pools=ONE), pace=FAST):
        with pytest.raises(ConfigError, match="another conserve up runs its engines from"):
            async with LocalPool(config_of(pools=ONE)):
                pytest.fail("two pools share a run directory")


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        ('{"versions": {}, "nixl": false}', "has no vLLM"),
        ('{"versions": {"vllm": "0.30.2"}, "nixl": true}', "has vLLM 0.30.2, ConServe needs 0.31 or newer"),
        ('{"versions": {"vllm": "0.31.0"}, "nixl": false}', "has no NIXL"),
    ],
)
async def test_an_environment_that_can_not_run_engines_is_named_with_the_fix(
    config_of: ConfigOf, fake_python: str, monkeypatch: pytest.MonkeyPatch, probe: str, reason: str
) -> None:
    monkeypatch.setenv("FAKE_PROBE", probe)
    message = await refused(config_of())
    assert f"{fake_python} {reason}" in message
    assert "install" in message


async def test_engines_that_move_no_kv_need_no_nixl(
    config_of: ConfigOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PROBE", '{"versions": {"vllm": "0.31.0"}, "nixl": false}')
    async with LocalPool(config_of(pools=ONE), pace=FAST) as pool:
        assert len(pool.specs) == 1


async def test_a_python_that_does_not_exist_is_named(config_of: ConfigOf) -> None:
    assert "there is no Python at /nowhere/python" in await refused(config_of(python="/nowhere/python"))


async def test_emulated_engines_come_up_the_same_way(config_of: ConfigOf) -> None:
    config = config_of(model="smollm2-135m", engine="emulated", python=None)
    async with LocalPool(config, pace=FAST) as pool:
        for spec in pool.specs:
            assert await models_at(spec.url) == ["smollm2-135m"]
        pids = list(pool.pids.values())
    wait_gone(pids)


def read_record_pids(config: Config) -> dict[str, int]:
    import json

    document = json.loads((Path(config.launcher.run_dir) / "pool.json").read_text())
    assert read_record(config)
    return {engine["name"]: engine["pid"] for engine in document["engines"]}
