"""Energy accounting, measured: do the books sum, how good is the split, what does reading cost?

    python -m bench.energy [--seed 1] [--batches 60] [--output build/energy.json]

Three parts. `books`: a gateway over emulated engines reads three GPUs of the tests' fake driver
through the real NVML binding while conversations run, some of them cancelled; what was metered is
compared with what was charged and left unallocated. `shapley`: splits of small batches against
exact Shapley values (bench/energy_shapley.py), on several GPUs and models. `meter_cost`: CPU time
of reading 8 GPUs 10 times a second, the fake driver's own work included. No part uses a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from bench import energy_shapley
from conserve_server.core.clock import SystemClock
from conserve_server.core.energy_config import EnergyConfig
from conserve_server.energy.ledger import EnergyLedger
from conserve_server.energy.metering import Metering
from conserve_server.energy.meters import Engines, plan_meters
from conserve_server.energy.work import WorkTimes
from conserve_server.simulation.timing_grid import grid_timing
from tests.energy.conftest import FakeDriver

_ENGINES = ("prefill-0", "decode-0", "decode-1")
_HARDWARE = (
    ("h100", "qwen3-8b"),
    ("a100", "qwen3-8b"),
    ("l40s", "qwen3-0.6b"),
    ("h100", "qwen3-32b"),
    ("b200", "llama-3.1-70b"),
)
_PACKAGES = ("conserve-sdk", "nvidia-ml-py")
_COST_S = 10.0
_LIMIT_S = 60.0


def main() -> None:
    options = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        driver = FakeDriver(pathlib.Path(folder) / "driver")
        driver.build()
        result = {
            "command": shlex.join(["python", "-m", "bench.energy", *sys.argv[1:]]),
            "machine": f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} logical CPUs",
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in _PACKAGES},
            },
            "seed": options.seed,
            "gpu": "none: a fake driver under the real NVML binding, modelled watts",
            "books": asyncio.run(books(driver, pathlib.Path(folder))),
            "shapley": splits(options.seed, options.batches),
            "meter_cost": meter_cost(driver),
        }
    print(json.dumps(result, indent=2))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/energy.json"))
    return parser.parse_args(arguments)


# -- books -------------------------------------------------------------------------------------


async def books(driver: FakeDriver, folder: pathlib.Path) -> dict[str, Any]:
    """24 conversations of 3 turns, every sixth turn cancelled; then what became of the joules."""
    driver.gpus("75 410 -", "75 380 -", "75 305 -")
    async with gateway(driver, folder) as client:
        await asyncio.gather(*(converse(client, f"c{number}", number) for number in range(24)))
        await asyncio.sleep(3.0)
        domains = (await client.get("/health")).json()["energy"]["domains"]
        reports = [(await client.get(f"/v1/conversations/c{number}")).json() for number in range(24)]
    keys = ("metered_j", "charged_j", "unallocated_idle_j", "unallocated_dynamic_j")
    found: dict[str, Any] = {key: sum(domain[key] for domain in domains) for key in keys}
    found["intervals"] = sum(domain["intervals"] for domain in domains)
    found["worst_interval_residual_j"] = max(domain["worst_residual_j"] for domain in domains)
    found["sum_of_reports_j"] = sum(report["energy"]["total_j"] for report in reports)
    found["in_tool_gaps_j"] = sum(report["energy"]["gap_j"] for report in reports)
    found["conversations"] = len(reports)
    found["turns"] = sum(len(report["turns"]) for report in reports)
    return found


async def converse(client: httpx2.AsyncClient, name: str, number: int) -> None:
    headers = {"x-conserve-conversation-id": name}
    for turn in range(3):
        text = "Tell me more about the harbour. " * (20 + 10 * (number % 5))
        messages = [{"role": "user", "content": text}]
        body = {"model": "bench", "messages": messages, "stream": True, "max_tokens": 40 + 5 * (number % 7)}
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            async for _ in answer.aiter_bytes():
                if (number + turn) % 6 == 0:
                    break
        await asyncio.sleep(0.2 + 0.05 * (number % 4))
    await client.delete(f"/v1/conversations/{name}")


@asynccontextmanager
async def gateway(driver: FakeDriver, folder: pathlib.Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A gateway process with emulated engines, each on one of the driver's GPUs."""
    devices = "\n".join(f'{engine} = ["{index}"]' for index, engine in enumerate(_ENGINES))
    config = folder / "conserve.toml"
    config.write_text(
        f'model = "bench"\n[pools.prefill]\ncount = 1\n[pools.decode]\ncount = 2\n[launcher]\n'
        f'engine = "emulated"\nrun_dir = "{folder}/run"\n[energy]\nmeter = "nvml"\nidle_w = 75.0\n'
        f"[energy.devices]\n{devices}\n"
    )
    command = (sys.executable, "-m", "conserve_server.cli.main", "serve", str(config), "--up", "--port", "0")
    env = {**os.environ, **driver.env, "OTEL_TRACES_EXPORTER": "none"}
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_LIMIT_S):
            announced = (await process.stdout.readuntil(b"traces")).decode()
            url = announced.partition("http://")[2].partition("/v1")[0]
            async with httpx2.AsyncClient(base_url=f"http://{url}", timeout=_LIMIT_S) as client:
                await all_up(client)
                yield client
    finally:
        process.terminate()
        await process.communicate()


async def all_up(client: httpx2.AsyncClient) -> None:
    # Seen over HTTP, where nothing signals.
    while not all(engine["up"] for engine in (await client.get("/health")).json()["engines"]):  # noqa: ASYNC110
        await asyncio.sleep(0.1)


# -- the split ---------------------------------------------------------------------------------


def splits(seed: int, count: int) -> dict[str, Any]:
    """Errors against exact Shapley values; the model weights are those of an H100 with Qwen3-8B."""
    model = WorkTimes().weights(energy_shapley.POWER)
    return {
        "batches": count,
        "requests_each": f"2 to {energy_shapley.MOST}",
        **{
            f"{gpu} {name}": energy_shapley.compare(grid_timing(gpu, name), model, seed=seed, count=count)
            for gpu, name in _HARDWARE
        },
    }


# -- cost --------------------------------------------------------------------------------------


def meter_cost(driver: FakeDriver) -> dict[str, Any]:
    """CPU seconds a second of a process that does nothing else than read 8 GPUs at 10 Hz.

    `reading`: the meter alone. `sampling`: all of it where power has to be sampled, with intervals
    of 1 s. `short_intervals`: all of it with intervals of 0.1 s, ten times as many as usual.
    """
    program = "import sys; from bench.energy import cost; print(cost(sys.argv[1]))"
    found: dict[str, Any] = {"gpus": 8, "hz": 10, "seconds": _COST_S}
    for part in ("reading", "sampling", "short_intervals"):
        driver.gpus(*(f"75 400 {'n' if part == 'sampling' else '-'}",) * 8)
        done = subprocess.run(
            (sys.executable, "-c", program, part),
            env={**os.environ, **driver.env, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=_LIMIT_S,
        )
        found[f"{part}_cpu_share_of_a_core"] = round(float(done.stdout), 5)
    return found


def cost(part: str) -> float:
    """The share of a core that reading takes; runs in a process of its own, on the fake driver."""
    engines = Engines("local", {f"decode-{index}": (str(index),) for index in range(8)})
    clock = SystemClock()
    config = EnergyConfig(meter="nvml", window_s=0.1 if part == "short_intervals" else 1.0)
    plan = plan_meters(config, engines, clock.now_s())
    if part != "reading":
        ledger = EnergyLedger({domain.name: domain.engines for domain in plan.domains}, clock.now_s())
        return asyncio.run(_cpu_share(Metering(plan, ledger, clock, config)))
    (meter,) = plan.meters
    started_s, busy_s = time.monotonic(), time.process_time()
    while time.monotonic() < started_s + _COST_S:
        meter.read(clock.now_s())
        time.sleep(0.1)
    return (time.process_time() - busy_s) / (time.monotonic() - started_s)


async def _cpu_share(metering: Metering) -> float:
    task = asyncio.create_task(metering.run())
    await asyncio.sleep(1.0)
    started_s, busy_s = time.monotonic(), time.process_time()
    await asyncio.sleep(_COST_S)
    share = (time.process_time() - busy_s) / (time.monotonic() - started_s)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return share


if __name__ == "__main__":
    main()
