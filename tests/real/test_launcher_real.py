"""Real vLLM engines come up, move KV, are restarted, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conserve_server.engines.engine import Role
from conserve_server.engines.guardian import descendants
from conserve_server.engines.slots import engine_slots, usable_cores
from conserve_server.engines.vllm_command import UNBOUND
from tests.processes import is_running, wait_for, wait_gone
from tests.real.cluster import START_S, RealCluster, local_engines

pytestmark = pytest.mark.real

TO_BE_PULLED = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


def chat(url: str, prompt: str, max_tokens: int = 8, **more: object) -> dict[str, Any]:
    """A greedy answer of exactly `max_tokens` tokens."""
    body = {
        "model": "tiny-random",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        **more,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def text(answer: dict[str, Any]) -> str:
    content: str = answer["choices"][0]["message"]["content"]
    return content


def metric(url: str, name: str) -> float:
    """The sum of a metric's samples."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def moved(cluster: RealCluster, prompt: str, decoder: int) -> dict[str, Any]:
    """Prefilled on the prefill engine, decoded where its KV was moved to."""
    first = chat(cluster.engines.url(Role.PREFILL), prompt, max_tokens=1, kv_transfer_params=TO_BE_PULLED)
    return chat(
        cluster.engines.url(Role.DECODE, decoder), prompt, kv_transfer_params=first["kv_transfer_params"]
    )


@pytest.mark.parametrize("decoder", [0, 1])
def test_kv_moves_to_each_decoder_and_the_answer_is_that_of_one_engine_alone(
    real_cluster: RealCluster, decoder: int
) -> None:
    prompt = f"decoder {decoder}: " + "what moves here? " * 20
    url = real_cluster.engines.url(Role.DECODE, decoder)
    before = metric(url, "vllm:nixl_bytes_transferred_sum")
    answer = moved(real_cluster, prompt, decoder)
    assert text(answer) == text(chat(real_cluster.reference_url, prompt))
    assert metric(url, "vllm:nixl_bytes_transferred_sum") > before
    assert answer["metrics"]["queue_time_ms"] > 0


def worker_of(pid: int) -> int:
    """The process of an engine that runs the model."""
    return next(p for p in descendants(pid) if b"VLLM::Worker" in Path(f"/proc/{p}/cmdline").read_bytes())


def test_workers_stay_on_their_engines_cores_and_sleep_between_looks(real_cluster: RealCluster) -> None:
    engines = real_cluster.engines
    with ExitStack() as held:
        slots = engine_slots(engines.config, held, cores=usable_cores())
    for slot in slots:
        pid = engines.pid(slot.name)
        assert pid is not None
        cores = os.sched_getaffinity(worker_of(pid))
        if slot.cores == UNBOUND:
            assert cores == set(usable_cores())
        else:
            assert cores <= {int(core) for core in slot.cores.split(",")}
        log = (Path(engines.config.launcher.run_dir) / "logs" / f"{slot.name}.log").read_text()
        assert "readers of the engine's queues sleep 100 µs between two looks" in log


def test_an_answer_can_be_held_to_a_json_schema(real_cluster: RealCluster) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    held = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}
    url = real_cluster.engines.url(Role.DECODE)
    answer = chat(url, "Is it?", max_tokens=200, ignore_eos=False, response_format=held)
    assert isinstance(json.loads(text(answer))["ok"], bool)


def test_a_forced_tool_call_is_held_to_its_schema(real_cluster: RealCluster) -> None:
    parameters = {
        "type": "object",
        "properties": {"day": {"enum": ["monday", "friday"]}},
        "required": ["day"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "plan", "parameters": parameters}}
    forced = {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "plan"}}}
    answer = chat(real_cluster.engines.url(Role.DECODE), "Plan.", max_tokens=100, ignore_eos=False, **forced)
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["day"] in ("monday", "friday")


def test_a_killed_decoder_is_started_again_at_its_address_and_takes_kv_again(
    real_cluster: RealCluster,
) -> None:
    engines = real_cluster.engines
    before = engines.pid("decode-1")
    assert before is not None
    family = [before, *descendants(before)]
    assert len(family) >= 3
    os.kill(before, signal.SIGKILL)
    wait_gone(family)
    wait_for(lambda: engines.pid("decode-1") not in (before, None), "decode-1 again", limit_s=START_S)
    answer = moved(real_cluster, "after the restart " * 10, decoder=1)
    assert text(answer) == text(chat(real_cluster.reference_url, "after the restart " * 10))


def test_engines_whose_launcher_is_killed_are_gone(tmp_path: Path, vllm_python: str) -> None:
    with local_engines(tmp_path, vllm_python) as engines:
        family = descendants(engines.up.pid)
        assert len(family) >= 4
        assert all(map(is_running, family))
        engines.up.kill()
        engines.up.wait()
        wait_gone(family)
