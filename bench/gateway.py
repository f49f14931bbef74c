"""What the gateway adds to a request, beside vllm-router and a direct connection: `make bench-gateway`.

    python bench/gateway.py --router .venv-router/bin/vllm-router [--seconds 2] [--repeats 3]
                            [--only 4k-c32-whole] [--output build/gateway.json]

One mock engine answers at once; wrk loads it directly, through vllm-router (`consistent_hash`),
and through this gateway: `pass-through` (no identifier, placed where least runs), `pinned`
(conversations of many turns on their decoder), each as `conserve serve` comes, and `untraced`
(pinned, without spans). Every repeat measures all of them in turn, so that a busy machine is
busy for all; ratios are taken repeat by repeat. `cpu_us` is the processor time that the
measured process itself took for a request.

wrk comes with Debian and Ubuntu: apt-get install wrk.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]

PROJECT = pathlib.Path(__file__).resolve().parents[1]
SIZES = {"4k": 4_000, "200k": 200_000}
CONNECTIONS = (1, 32)
CONVERSATIONS = 64
START_TIMEOUT_S = 60.0
ROUTER = "vllm-router"
OURS = ("pass-through", "pinned")
_PACKAGES = ("conserve-sdk", "uvicorn", "uvloop", "httptools", "msgspec", "opentelemetry-sdk")


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of load."""

    size: str
    connections: int
    is_streamed: bool

    @property
    def name(self) -> str:
        return f"{self.size}-c{self.connections}-{'stream' if self.is_streamed else 'whole'}"


@dataclass(frozen=True, slots=True)
class Path:
    """One way to the engine: its URL, its process, and whether its requests name conversations."""

    name: str
    url: str
    process: psutil.Process
    is_named: bool = True


CELLS = tuple(Cell(*each) for each in itertools.product(SIZES, CONNECTIONS, (False, True)))


def main() -> None:
    options = parse(sys.argv[1:])
    if shutil.which("wrk") is None:
        sys.exit("bench-gateway needs the load generator wrk: apt-get install wrk")
    if not options.router.exists():
        sys.exit(f"there is no vllm-router at {options.router}: `make bench-gateway` installs it")
    cells = [cell for cell in CELLS if options.only in (None, cell.name)]
    load = round(os.getloadavg()[0], 2)
    with ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = start_all(stack, folder, options.router)
        rounds = [measure_round(paths, cells, options.seconds) for _ in range(options.repeats)]
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} logical CPUs",
        "load_before": load,
        "versions": versions(options.router),
        "seconds": options.seconds,
        "repeats": options.repeats,
        "cells": {cell.name: figures(rounds, cell.name) for cell in cells},
        "ratios": ratios(rounds),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--router", type=pathlib.Path, default=PROJECT / ".venv-router/bin/vllm-router")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=[cell.name for cell in CELLS], help="one kind of load alone")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/gateway.json"))
    return parser.parse_args(arguments)


# -- what is measured -----------------------------------------------------------------------------


def start_all(stack: ExitStack, folder: pathlib.Path, router: pathlib.Path) -> list[Path]:
    """The engine, and everything that stands before it."""
    engine_port, router_port, prometheus_port, *ports = free_ports(6)
    engine = [sys.executable, str(PROJECT / "bench/mock_engine.py"), str(engine_port)]
    engine_url = f"http://127.0.0.1:{engine_port}"
    paths = [start(stack, folder, "direct", engine, engine_port)]
    command = [str(router), "--worker-urls", engine_url, "--policy", "consistent_hash", "--host", "127.0.0.1"]
    command += ["--port", str(router_port), "--prometheus-port", str(prometheus_port), "--log-level", "error"]
    paths.append(start(stack, folder, ROUTER, command, router_port))
    for (name, policy), port in zip(
        (("pass-through", "collocated"), ("pinned", "conserve"), ("untraced", "conserve")), ports, strict=True
    ):
        config = folder / f"{name}.toml"
        config.write_text(
            f'model = "mock"\n[gateway]\nport = {port}\n[scheduler]\npolicy = "{policy}"\n'
            f'[pools.decode]\nengines = ["{engine_url}"]\n'
        )
        serve = [sys.executable, "-m", "conserve_server.cli.main", "serve", str(config)]
        traces = {"OTEL_TRACES_EXPORTER": "none"} if name == "untraced" else {}
        path = start(stack, folder, name, serve, port, is_named=name != "pass-through", **traces)
        paths.append(path)
    return paths


def start(
    stack: ExitStack,
    folder: pathlib.Path,
    name: str,
    command: list[str],
    port: int,
    *,
    is_named: bool = True,
    **env: str,
) -> Path:
    """Run the program until the stack is left; returns once it answers."""
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "CONSERVE_TRACE_DIR": str(folder / name), **env}
    log = stack.enter_context((folder / f"{name}.log").open("w+"))
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    stack.callback(stop, process)
    until_s = time.monotonic() + START_TIMEOUT_S
    while not answers(url):
        if process.poll() is not None or time.monotonic() > until_s:
            log.seek(0)
            sys.exit(f"{name} did not start:\n{log.read()[-2000:]}")
        time.sleep(0.1)
    return Path(name, url, psutil.Process(process.pid), is_named)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as response:  # noqa: S310 - our own address
            return bool(response.status == 200)
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


# -- measuring ------------------------------------------------------------------------------------

Round = dict[str, dict[str, dict[str, float]]]
"""By cell and path: what one run of wrk saw."""


def measure_round(paths: list[Path], cells: list[Cell], seconds: float) -> Round:
    """Every cell on every path, one after the other."""
    found: Round = {}
    for cell in cells:
        found[cell.name] = {path.name: measure(path, cell, seconds) for path in paths}
        print(cell.name, {n: round(f["requests_per_s"]) for n, f in found[cell.name].items()}, flush=True)
    return found


def measure(path: Path, cell: Cell, seconds: float) -> dict[str, float]:
    """One run of wrk, after a short one that binds the conversations and fills the pools."""
    run_wrk(path, cell, 0.5)
    with cpu_seconds(path.process) as spent_s:
        seen = run_wrk(path, cell, seconds)
    if seen["errors"] or not seen["requests"]:
        sys.exit(f"{path.name} failed under {cell.name}: {seen}")
    return {
        "requests_per_s": seen["requests"] / seen["seconds"],
        "p50_ms": seen["p50_ms"],
        "p99_ms": seen["p99_ms"],
        "cpu_us": spent_s() / seen["requests"] * 1e6,
    }


def run_wrk(path: Path, cell: Cell, seconds: float) -> dict[str, float]:
    length = f"{max(1, round(seconds))}s"
    command = ["wrk", "-t1", f"-c{cell.connections}", f"-d{length}", "--timeout", "10s"]
    command += ["-s", str(PROJECT / "bench/gateway_load.lua"), path.url, "--"]
    command += [str(SIZES[cell.size]), str(CONVERSATIONS)]
    command += ["stream" if cell.is_streamed else "whole", "named" if path.is_named else "unnamed"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60)
    found: dict[str, float] = json.loads(done.stdout.rpartition("RESULT ")[2])
    return found


@contextmanager
def cpu_seconds(process: psutil.Process) -> Iterator[Callable[[], float]]:
    """What the process and its children have used of a processor since the block began."""

    def used_s() -> float:
        times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
        return sum((t.user + t.system for t in times), 0.0)

    before_s = used_s()
    yield lambda: used_s() - before_s


# -- figures --------------------------------------------------------------------------------------


def figures(rounds: list[Round], cell: str) -> dict[str, dict[str, dict[str, float]]]:
    """By path and figure: median and extremes over the rounds."""
    paths = rounds[0][cell]
    return {
        path: {name: summary([each[cell][path][name] for each in rounds]) for name in paths[path]}
        for path in paths
    }


def ratios(rounds: list[Round]) -> dict[str, Any]:
    """Medians over the rounds: requests a second against vllm-router's, and milliseconds added to a request.

    The figure without a suffix is the worse of pass-through and pinned.
    """
    found: dict[str, Any] = {}
    for size in SIZES:
        cell = f"{size}-c32-whole"
        if cell not in rounds[0]:
            continue
        for path in (*OURS, "untraced"):
            found[f"throughput_{size}_c32_{path}"] = median(
                each[cell][path]["requests_per_s"] / each[cell][ROUTER]["requests_per_s"] for each in rounds
            )
        found[f"throughput_{size}_c32"] = min(found[f"throughput_{size}_c32_{path}"] for path in OURS)
    cell = "4k-c1-whole"
    if cell in rounds[0]:
        added = {
            path: median(each[cell][path]["p50_ms"] - each[cell]["direct"]["p50_ms"] for each in rounds)
            for path in (*OURS, "untraced", ROUTER)
        }
        found["added_p50_ms_4k_c1"] = {"ours": max(added[path] for path in OURS), **added}
    return found


def median(values: Iterator[float]) -> float:
    return round(statistics.median(values), 4)


def summary(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def versions(router: pathlib.Path) -> dict[str, str]:
    ask = "import importlib.metadata as m; print(m.version('vllm-router'))"
    python = router.with_name("python")
    found = subprocess.run([str(python), "-c", ask], check=True, capture_output=True, text=True, timeout=60)
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, timeout=10, check=False)
    return {
        "python": platform.python_version(),
        "wrk": (wrk.stdout or wrk.stderr).split(" [")[0].removeprefix("wrk "),
        "vllm-router": found.stdout.strip(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def show(result: dict[str, Any]) -> None:
    for cell, paths in result["cells"].items():
        for path, seen in paths.items():
            figure = {name: values["median"] for name, values in seen.items()}
            print(
                f"{cell:16} {path:13} {figure['requests_per_s']:9.0f} requests/s"
                f"  p50 {figure['p50_ms']:8.3f} ms  p99 {figure['p99_ms']:8.3f} ms"
                f"  {figure['cpu_us']:7.0f} µs of a core"
            )
    print(json.dumps(result["ratios"], indent=2))


if __name__ == "__main__":
    main()
