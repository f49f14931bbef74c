"""What it costs to know whose turn a request is: microseconds a request, against parsing its JSON.

    python bench/identity.py [--rounds 30] [--output build/identity.json]

Three ways, over bodies of 4 kB to 1 MB with 2 to 200 messages: an identifier in a header, one in
a field, and none (recognition by the message history). Every round measures them and
`json.loads` of the same body in turn, and the ratios are taken round by round, so that a busy
machine slows both sides. What every request pays, the scan for top-level fields, is measured
on its own and not part of the three.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from conserve_server.serving.asked.identity import read_identity
from conserve_server.serving.asked.request import TurnRequest, parse_request
from conserve_server.serving.recognition.recognition import Recognition

_PATH = "/v1/chat/completions"
_BODIES = tuple((size, messages) for size in (4_000, 200_000, 1_000_000) for messages in (2, 20, 200))
_ENOUGH_S = 0.002
"""A measurement repeats its call until it has taken this long."""
_PACKAGES = ("conserve-sdk", "msgspec", "xxhash")


def main() -> None:
    options = parse(sys.argv[1:])
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} logical CPUs",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "rounds": options.rounds,
        "bodies": [measure(size, messages, options.rounds) for size, messages in _BODIES],
    }
    print(json.dumps(result, indent=2))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/identity.json"))
    return parser.parse_args(arguments)


def body_of(size_bytes: int, messages: int, **fields: object) -> bytes:
    """A chat of an agent: system, then user and assistant in turn, every second answer a tool call."""
    text = 'The quick brown fox said "jump" and the lazy dog did. '
    each = max(1, size_bytes // messages - 60)
    words = (text * (each // len(text) + 1))[:each]
    history = [message(number, words) for number in range(messages)]
    return json.dumps({"model": "m", **fields, "messages": history}).encode()


def message(number: int, words: str) -> dict[str, Any]:
    if number == 0:
        return {"role": "system", "content": words}
    if number % 2:
        return {"role": "user", "content": words}
    if number % 4 == 2:
        return {"role": "assistant", "content": words}
    arguments = json.dumps({"query": words, "limit": 3})
    function = {"name": "search", "arguments": arguments}
    call = {"id": f"call_{number}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def measure(size_bytes: int, messages: int, rounds: int) -> dict[str, Any]:
    """The figures of one body; the first round warms up and is left out."""
    body = body_of(size_bytes, messages)
    request = parse_request(_PATH, body)
    tagged = parse_request(_PATH, body_of(size_bytes, messages, metadata={"session_id": "c"}))
    recognition = Recognition(kept=10)
    ways: dict[str, Callable[[], object]] = {
        "json": lambda: json.loads(body),
        "top_level_fields": lambda: parse_request(_PATH, body),
        "header": lambda: identify(request, {"x-session-id": "c"}),
        "field": lambda: identify(tagged, {}),
        "history": lambda: recognise(recognition, request),
    }
    seen = [{name: duration_us(way) for name, way in ways.items()} for _ in range(rounds + 1)][1:]
    return {
        "bytes": len(body),
        "messages": messages,
        "us": {name: summary([each[name] for each in seen]) for name in ways},
        "ratio_to_json": {
            name: summary([each[name] / each["json"] for each in seen]) for name in ways if name != "json"
        },
    }


def identify(request: TurnRequest, headers: dict[str, str]) -> object:
    return read_identity(headers, request.fields, tenant="t", model="m")


def recognise(recognition: Recognition, request: TurnRequest) -> object:
    identity = read_identity({}, request.fields, tenant="t", model="m")
    return recognition.recognise(identity, request)


def duration_us(call: Callable[[], object]) -> float:
    """Microseconds of one call, over as many as take long enough to be measured."""
    calls, started_s = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - started_s) < _ENOUGH_S or not calls:
        call()
        calls += 1
    return elapsed_s / calls * 1e6


def summary(values: list[float]) -> dict[str, float]:
    """Median and the middle half."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": round(middle, 4), "p25": round(low, 4), "p75": round(high, 4)}


if __name__ == "__main__":
    main()
