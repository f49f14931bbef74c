"""What the SDK costs an agent: seconds to import, microseconds a model call, bytes after very many.

    python bench/sdk_overhead.py [--calls 5] [--rounds 600] [--memory-calls 100000]

Four processes make the same OpenAI calls against an in-process mock: without the SDK (`off`),
tagged by it (`tagged`), with OpenTelemetry's OpenAI instrumentation alone (`official`), and
tagged and traced by the SDK (`traced`); the last two export their spans to a file, in batches.
They take turns, a few calls each, in an order that changes with each round, so that all see the
same machine. Each turn gives the shortest of its calls, since a longer one was held up by other
programs; differences are taken round by round, and the median is over the rounds.
No gateway and no network take part: the figures are the work on the caller's thread.

The times are printed and written before the memory is looked at, and the memory after each step
of 5,000 calls, so that a run that is cut keeps what it has. The two sides whose memory is looked
at make their calls at once: no time is taken there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIDES = ("off", "tagged", "official", "traced")
SEED = 1
_IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
_WORKER = pathlib.Path(__file__).with_name("sdk_worker.py")
_PACKAGES = (
    "conserve-sdk",
    "openai",
    "httpx2",
    "opentelemetry-sdk",
    "opentelemetry-instrumentation-genai-openai",
)
ADDED = (
    ("tagging", "tagged", "off"),
    ("official", "official", "off"),
    ("spans", "traced", "tagged"),
    ("tagging_and_spans", "traced", "off"),
)
"""What is told as the difference of which two sides."""
MEMORY_SIDES = ("off", "traced")
MEMORY_STEP = 5_000
"""Calls between two looks at the memory. Those of the first step come before the first look: by
then every bounded queue has been full once, of spans to be exported and of events to be sent."""
TARGETS = {"tagging_us": 50.0, "spans_of_official": 1.2}


def main() -> None:
    options = parse(sys.argv[1:])
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine(),
        "load_average": os.getloadavg(),
        "versions": versions(),
        "seed": SEED,
        "targets": TARGETS,
        "import_s": summary([import_s("conserve_sdk") for _ in range(options.imports)]),
    }
    with workers() as found:
        result |= measure(found, options.calls, options.rounds)
        print(json.dumps(result, indent=2), flush=True)
        write(options.output, result)
        for grown in memory(found, options.memory_calls):
            result["memory"] = grown
            write(options.output, result)
    print(json.dumps({"memory": result.get("memory")}, indent=2))


def write(output: pathlib.Path, result: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=5, help="calls per round and side")
    parser.add_argument("--rounds", type=int, default=600)
    parser.add_argument("--imports", type=int, default=7, help="fresh processes that import the SDK")
    parser.add_argument("--memory-calls", type=int, default=100_000)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/sdk.json"))
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


Worker = subprocess.Popen[str]


@contextmanager
def workers() -> Iterator[dict[str, Worker]]:
    """A process for each side; all have ended when the block has."""
    found = {
        side: subprocess.Popen(
            [sys.executable, str(_WORKER), side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for side in SIDES
    }
    try:
        yield found
    finally:
        for worker in found.values():
            worker.communicate(timeout=60)


def ask(worker: Worker, command: str, count: int) -> list[float]:
    """What the worker answers; the others are idle meanwhile."""
    tell(worker, command, count)
    return answer(worker)


def tell(worker: Worker, command: str, count: int) -> None:
    if worker.stdin is None:
        raise RuntimeError("a worker is spoken to through pipes")
    worker.stdin.write(f"{command} {count}\n")
    worker.stdin.flush()


def answer(worker: Worker) -> list[float]:
    if worker.stdout is None:
        raise RuntimeError("a worker is spoken to through pipes")
    figures: list[float] = json.loads(worker.stdout.readline())
    return figures


def measure(found: dict[str, Worker], calls: int, rounds: int) -> dict[str, Any]:
    """What calls take and what is added to them; the first round warms up."""
    order = random.Random(SEED)
    measured = [measure_round(found, calls, order) for _ in range(rounds + 1)][1:]
    return {"calls_per_round": calls, "rounds": rounds, **compare(measured)}


def measure_round(found: dict[str, Worker], calls: int, order: random.Random) -> dict[str, float]:
    """The microseconds of the shortest call of each side, and of the tagged one's shortest tool call."""
    sides = list(SIDES)
    order.shuffle(sides)
    figures = {side: min(ask(found[side], "calls", calls)) for side in sides}
    return {**figures, "tool": min(ask(found["tagged"], "tools", calls))}


def compare(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Each side's calls, what is added to them, and that as multiples of the official spans alone."""
    added = {name: [figures[side] - figures[base] for figures in rounds] for name, side, base in ADDED}
    median = {name: statistics.median(values) for name, values in added.items()}
    return {
        "call_us": {side: summary([figures[side] for figures in rounds]) for side in SIDES},
        "added_us": {name: summary(values) for name, values in added.items()},
        "of_official": {
            name: round(median[name] / median["official"], 4) for name in ("spans", "tagging_and_spans")
        },
        "tool_call_us": summary([figures["tool"] for figures in rounds]),
    }


def memory(found: dict[str, Worker], calls: int) -> Iterator[dict[str, dict[str, float]]]:
    """What each side's memory has grown by so far, step by step, until it has made this many calls."""
    print(f"memory: warming up for {calls} calls", file=sys.stderr)
    started_s = time.monotonic()
    before = peaks(found, MEMORY_STEP)
    made = 0
    while made < calls:
        step = min(MEMORY_STEP, calls - made)
        made += step
        grown = {side: growth(made, before[side], after) for side, after in peaks(found, step).items()}
        yield grown
        elapsed_s = time.monotonic() - started_s
        left_s = elapsed_s / (MEMORY_STEP + made) * (calls - made)
        grown_mib = ", ".join(f"{side} +{figures['grown_mib']} MiB" for side, figures in grown.items())
        print(f"memory: {made} of {calls} calls, {grown_mib}, {left_s:.0f} s left", file=sys.stderr)


def peaks(found: dict[str, Worker], calls: int) -> dict[str, float]:
    """Bytes that each side has had resident at most, once it has made this many more calls."""
    for side in MEMORY_SIDES:
        tell(found[side], "memory", calls)
    return {side: answer(found[side])[0] for side in MEMORY_SIDES}


def growth(calls: int, before: float, after: float) -> dict[str, float]:
    """Resident memory at most, in MiB, before and after this many calls."""
    return {
        "calls": calls,
        "before_mib": round(before / 2**20, 1),
        "after_mib": round(after / 2**20, 1),
        "grown_mib": round((after - before) / 2**20, 1),
    }


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
