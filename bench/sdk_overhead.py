"""What the SDK costs an agent: seconds to import, microseconds per model call and per tool call.

    python bench/sdk_overhead.py [--calls 200] [--rounds 15] [--imports 7] [--output build/sdk-overhead.json]

The same kind of OpenAI client calls an in-process mock transport without the SDK and wrapped
inside a conversation, call by call in turn, so that both see the same machine; each round
gives the median of its calls, and the differences are taken round by round. No gateway and no
network take part, so the figures are the SDK's own work on the caller's thread.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx2
from openai import OpenAI

import conserve_sdk as conserve

_IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
_URL = "http://127.0.0.1:9/v1"
_PACKAGES = ("conserve-sdk", "openai", "httpx2", "opentelemetry-api")


def main() -> None:
    options = parse(sys.argv[1:])
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine(),
        "versions": versions(),
        "import_s": summary([import_s("conserve_sdk") for _ in range(options.imports)]),
        **measure_calls(options.calls, options.rounds),
    }
    print(json.dumps(result, indent=2))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=200, help="calls per round and side")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--imports", type=int, default=7, help="fresh processes that import the SDK")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/sdk-overhead.json"))
    return parser.parse_args(arguments)


def machine() -> str:
    return f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} logical CPUs"


def versions() -> dict[str, str]:
    installed = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **installed}


def import_s(module: str) -> float:
    """Seconds that a fresh process needs for the import alone, the interpreter's start left out."""
    program = [sys.executable, "-c", _IMPORT.format(module)]
    return float(subprocess.run(program, capture_output=True, check=True, text=True, timeout=60).stdout)


def measure_calls(calls: int, rounds: int) -> dict[str, Any]:
    """The three figures of each round, summed up; the first round warms up and is left out."""
    plain, wrapped = client(), conserve.wrap(client())
    measured = [measure_round(plain, wrapped, calls) for _ in range(rounds + 1)][1:]
    plain_us, wrapped_us, tool_us = ([figures[n] for figures in measured] for n in range(3))
    pairs = list(zip(plain_us, wrapped_us, strict=True))
    return {
        "calls_per_round": calls,
        "rounds": rounds,
        "unwrapped_us": summary(plain_us),
        "wrapped_us": summary(wrapped_us),
        "added_us": summary([with_sdk - without for without, with_sdk in pairs]),
        "ratio": summary([with_sdk / without for without, with_sdk in pairs]),
        "tool_call_us": summary(tool_us),
    }


def measure_round(plain: OpenAI, wrapped: OpenAI, calls: int) -> tuple[float, float, float]:
    """Median microseconds of an unwrapped call, a wrapped one and a tool call."""
    plain_us, wrapped_us, tool_us = [], [], []
    for _ in range(calls):
        plain_us.append(duration_us(lambda: ask(plain)))
        with conserve.conversation(agent="bench", keep_open=True):
            wrapped_us.append(duration_us(lambda: ask(wrapped)))
        conversation = conserve.conversation(agent="bench")
        tool_us.append(duration_us(functools.partial(call_tool, conversation)))
    return statistics.median(plain_us), statistics.median(wrapped_us), statistics.median(tool_us)


def client() -> OpenAI:
    """A client whose server answers at once, in process."""
    body = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "3"}, "finish_reason": "stop"}],
    }
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, json=body))
    return OpenAI(base_url=_URL, api_key="-", http_client=httpx2.Client(transport=transport))


def ask(openai: OpenAI) -> None:
    openai.chat.completions.create(model="m", messages=[{"role": "user", "content": "1 + 2?"}])


def call_tool(conversation: conserve.Conversation) -> None:
    with conversation.tool("search"):
        pass


def duration_us(call: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    call()
    return (time.perf_counter() - started_s) * 1e6


def summary(values: list[float]) -> dict[str, float]:
    """Median and spread: the middle half, and the extremes."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median": round(middle, 4),
        "p25": round(low, 4),
        "p75": round(high, 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


if __name__ == "__main__":
    main()
