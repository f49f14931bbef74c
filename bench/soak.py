"""A gateway under a light load of every awkward kind for minutes: what it keeps and should not. `make soak`.

    python bench/soak.py [--seconds 600] [--agents 12] [--seed 1] [--output build/soak.json]

A real gateway process and three emulated engine processes. Agents hold conversations that begin
and end in every way: new identifiers all the time or none at all, released, ended by a header, or
left alone; streamed or not; read at once, slowly, or not to the end. Then the load stops, idle
conversations expire, and the gateway is told to stop.

Fails (exit 1) unless: its memory after the load is at most 5 % above what it was after warming
up; no conversation, reservation, waiting turn or open socket is left; nothing runs on the
engines; every turn ended as its client saw it; and it stops well before the end of its drain time,
as it can't with a turn left.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pathlib
import platform
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import psutil  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from conserve_server.engines.ports import hold_port

MODEL: Final = "tiny"
ENGINES: Final = ("prefill", "decode", "decode")
MAX_GROWTH: Final = 0.05
SPARE_SOCKETS: Final = 6
"""Keep-alive connections of the probes to the engines, and of the last scrape."""
IDLE_S: Final = 3.0
SETTLE_S: Final = 20.0
DRAIN_S: Final = 30.0
"""How long the gateway would wait for a turn that is still there; without one it stops long before."""
STOP_S: Final = DRAIN_S / 2
PAUSE_S: Final = 0.25
_CONFIG: Final = """
model = "{model}"
[gateway]
port = {port}
max_wait_s = 10
idle_timeout_s = {idle_s}
synthetic_idle_timeout_s = {idle_s}
ended_kept = 100
recognised_kept = 100
max_conversations = 500
probe_interval_s = 0.5
drain_timeout_s = {drain_s}
[pools.prefill]
engines = ["{prefill}"]
[pools.decode]
engines = {decode}
"""


@dataclass
class Seen:
    """What the agents saw of their turns."""

    outcomes: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    rss_mib: list[float] = field(default_factory=list)


def main() -> None:
    options = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        result = asyncio.run(soak(options, pathlib.Path(folder), stack))
    result |= {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} logical CPUs",
        "python": platform.python_version(),
        "seed": options.seed,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if result["problems"]:
        sys.exit(1)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="of load")
    parser.add_argument("--agents", type=int, default=12, help="that talk at once")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/soak.json"))
    return parser.parse_args(arguments)


async def soak(options: argparse.Namespace, folder: pathlib.Path, stack: ExitStack) -> dict[str, Any]:
    """Load, settle, stop; the findings, `problems` among them."""
    engines = [start_engine(stack, folder, n, role) for n, role in enumerate(ENGINES)]
    gateway, url = start_gateway(stack, folder, engines)
    process = psutil.Process(gateway.pid)
    seen = Seen()
    async with client() as session:
        for address in (*engines, url):
            await until_up(session, address)
        sockets_before = len(process.net_connections())
        async with sampling(process, seen, options.seconds):
            agents = (
                agent(session, url, seen, random.Random(options.seed + n), options.seconds)
                for n in range(options.agents)
            )
            await asyncio.gather(*agents)
        left = await settle(session, url, engines)
    left["sockets"] = max(0, len(process.net_connections()) - sockets_before - SPARE_SOCKETS)
    stop_s, status = stopped(gateway)
    growth = memory_growth(seen.rss_mib)
    return {
        "seconds": options.seconds,
        "agents": options.agents,
        "turns": sum(seen.outcomes.values()),
        "outcomes": dict(seen.outcomes),
        "ways": dict(seen.ways),
        "rss_mib": {"warm": growth[0], "end": growth[1], "growth": growth[2]},
        "left": left,
        "stop_s": round(stop_s, 2),
        "exit_status": status,
        "problems": problems(seen, growth[2], left, stop_s, status),
    }


def problems(seen: Seen, growth: float, left: dict[str, float], stop_s: float, status: int) -> list[str]:
    """What must not be, in words."""
    found = [f"{name}: {count:g} left" for name, count in left.items() if count]
    if growth > MAX_GROWTH:
        found.append(f"memory grew by {growth:.1%}")
    if status != 0 or stop_s > STOP_S:
        found.append(f"it took {stop_s:.1f} s to stop, exit status {status}")
    wrong = {name: count for name, count in seen.outcomes.items() if name not in ("completed", "cancelled")}
    if wrong:
        found.append(f"turns ended otherwise: {wrong}")
    return found


# -- processes ------------------------------------------------------------------------------------


def start_engine(stack: ExitStack, folder: pathlib.Path, number: int, role: str) -> str:
    port = hold_port(stack, "127.0.0.1")
    command = ["-m", "conserve_server.engines.emulated", "--role", role, "--model", MODEL]
    command += ["--name", f"{role}-{number}", "--port", str(port), "--speed", "4"]
    start(stack, folder / f"engine-{number}.log", command)
    return f"http://127.0.0.1:{port}"


def start_gateway(
    stack: ExitStack, folder: pathlib.Path, engines: list[str]
) -> tuple[subprocess.Popen[bytes], str]:
    port = hold_port(stack, "127.0.0.1")
    config = folder / "gateway.toml"
    config.write_text(
        _CONFIG.format(
            model=MODEL,
            port=port,
            idle_s=IDLE_S,
            drain_s=DRAIN_S,
            prefill=engines[0],
            decode=json.dumps(engines[1:]),
        )
    )
    command = ["-m", "conserve_server.cli.main", "serve", str(config)]
    return start(stack, folder / "gateway.log", command), f"http://127.0.0.1:{port}"


def start(stack: ExitStack, log: pathlib.Path, command: list[str]) -> subprocess.Popen[bytes]:
    output = stack.enter_context(log.open("w"))
    env = {**os.environ, "CONSERVE_TRACE_DIR": str(log.parent / "traces")}
    process = subprocess.Popen([sys.executable, *command], env=env, stdout=output, stderr=output)
    stack.enter_context(ended(process))
    return process


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


def stopped(gateway: subprocess.Popen[bytes]) -> tuple[float, int]:
    """Tell the gateway to stop: the seconds it took, and its exit status."""
    started_s = time.monotonic()
    gateway.send_signal(signal.SIGTERM)
    try:
        status = gateway.wait(2 * DRAIN_S)
    except subprocess.TimeoutExpired:
        status = -1
    return time.monotonic() - started_s, status


# -- the load -------------------------------------------------------------------------------------


@asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=60)
    # Small buffers, so that a slow reader is felt on the other side.
    async with aiohttp.ClientSession(timeout=timeout, read_bufsize=512) as session:
        yield session


async def until_up(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def agent(
    session: aiohttp.ClientSession, url: str, seen: Seen, dice: random.Random, seconds: float
) -> None:
    """One conversation after the other, each another."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        await converse(session, url, seen, dice)


async def converse(session: aiohttp.ClientSession, url: str, seen: Seen, dice: random.Random) -> None:
    way = dice.choice(("released", "final", "left", "unnamed", "unnamed"))
    seen.ways[way] += 1
    name = f"{way}-{dice.getrandbits(64):x}"
    messages = [{"role": "user", "content": f"{name} " + "word " * dice.randint(1, 400)}]
    turns = dice.randint(1, 4)
    for turn in range(turns):
        headers = {} if way == "unnamed" else {"x-conserve-conversation-id": name}
        if way == "final" and turn == turns - 1:
            headers["x-conserve-final"] = "true"
        said = await take_turn(session, url, seen, dice, headers, messages)
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "and then?"}]
        await asyncio.sleep(dice.uniform(0, 2 * PAUSE_S))
    if way == "released":
        async with session.delete(f"{url}/v1/conversations/{name}") as response:
            await response.read()


async def take_turn(
    session: aiohttp.ClientSession,
    url: str,
    seen: Seen,
    dice: random.Random,
    headers: dict[str, str],
    messages: list[dict[str, str]],
) -> str:
    """One turn, read in one of several ways; what was said, as far as it was read."""
    way = dice.choice(("whole", "stream", "slow", "hangs up", "hangs up at once"))
    seen.ways[way] += 1
    body = {"model": MODEL, "messages": messages, "max_tokens": dice.randint(1, 48), "stream": way != "whole"}
    asking = asyncio.ensure_future(ask(session, url, headers, body, way, dice))
    if way == "hangs up at once":
        await asyncio.wait({asking}, timeout=dice.uniform(0, 0.05))
        asking.cancel()
    try:
        outcome, said = await asking
    except asyncio.CancelledError:
        outcome, said = "cancelled", ""
    except (aiohttp.ClientError, TimeoutError) as error:
        outcome, said = type(error).__name__, ""
    seen.outcomes[outcome] += 1
    return said


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    headers: dict[str, str],
    body: dict[str, object],
    way: str,
    dice: random.Random,
) -> tuple[str, str]:
    """Send the turn and read its answer."""
    async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
        if response.status != 200:
            return f"status {response.status}", ""
        if way == "whole":
            return "completed", (await response.json())["choices"][0]["message"]["content"]
        said: list[str] = []
        hangs_up_after, lines = dice.randint(1, 20), 0
        async for line in response.content:
            lines += 1
            if way == "slow":
                await asyncio.sleep(0.02)
            if way == "hangs up" and lines > hangs_up_after:
                return "cancelled", "".join(said)
            said.append(text_of(line))
        return "completed", "".join(said)


def text_of(line: bytes) -> str:
    """The text in a line of a stream."""
    if not line.startswith(b"data: {"):
        return ""
    choices = json.loads(line[6:]).get("choices") or [{}]
    return choices[0].get("delta", {}).get("content") or ""


# -- what is left ---------------------------------------------------------------------------------


@asynccontextmanager
async def sampling(process: psutil.Process, seen: Seen, seconds: float) -> AsyncIterator[None]:
    """Note the gateway's memory a hundred times during the load."""

    async def sample() -> None:
        while True:
            seen.rss_mib.append(process.memory_info().rss / 2**20)
            await asyncio.sleep(seconds / 100)

    sampler = asyncio.create_task(sample())
    try:
        yield
    finally:
        sampler.cancel()


def memory_growth(rss_mib: list[float]) -> tuple[float, float, float]:
    """MiB after warming up (third fifth of the samples), MiB at the end (last fifth), and the rise."""
    fifth = len(rss_mib) // 5
    warm, end = statistics.median(rss_mib[2 * fifth : 3 * fifth]), statistics.median(rss_mib[-fifth:])
    return round(warm, 1), round(end, 1), round(end / warm - 1, 4)


async def settle(session: aiohttp.ClientSession, url: str, engines: list[str]) -> dict[str, float]:
    """What is left once idle conversations had the time to expire and idle connections to close."""
    left: dict[str, float] = {}
    until_s = time.monotonic() + SETTLE_S
    while time.monotonic() < until_s:
        await asyncio.sleep(1)
        left = {
            "conversations": await metric(session, url, "conserve_conversations"),
            "reserved_kv_tokens": await metric(session, url, "conserve_reserved_kv_tokens"),
            "waiting_turns": await metric(session, url, "conserve_waiting_turns"),
        }
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
            left[name] = sum([await metric(session, engine, name) for engine in engines])
        if not any(left.values()):
            break
    await asyncio.sleep(6)  # engines close what is idle for 5 s
    return left


async def metric(session: aiohttp.ClientSession, url: str, name: str) -> float:
    """The sum of a metric's samples."""
    async with session.get(f"{url}/metrics") as response:
        page = await response.text()
    families = text_string_to_metric_families(page)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


if __name__ == "__main__":
    main()
