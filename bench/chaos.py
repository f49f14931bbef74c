"""Break everything that can break while hundreds of conversations run, and count what they lost.

    python -m bench.chaos [--conversations 200] [--seconds 120] [--seed 1] [--output build/chaos.json]

A real gateway process over emulated engines, each a process of its own: 2 prefillers, 3 decoders.
Every client knows what the emulated engine must answer to its history, and compares. The faults of
`chaos_faults.py` are injected one after another, round after round, until the time is over; what
died is started again after each.

How turns are counted. A turn is one request of a client. It is *answered* when all of the right text
came. It was *interrupted* when its client was told so and could act: a structured error after the
first byte, a 429 or 503 with retry-after, or a connection that broke because the gateway itself was
killed; the client then sends it again, and if that fails six times it is lost. *Lost* is every other
end: a wrong text, a stream that ends without `[DONE]` and without an error, a 5xx in place of an
answer, a connection that breaks while the gateway runs. *Hung* is a turn without an end for 45 s.
*Duplicated* is a turn that the gateway completed and that no client has an answer of. A reservation
is *leaked* if it is there when all conversations were released and no engine runs anything.

Exits with 1 if anything was lost, hung, duplicated or leaked, or if a fault could not be injected.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import shlex
import sys
import tempfile
import time
from typing import Any

import aiohttp

from bench.chaos_clients import Conversation, Tally
from bench.chaos_cluster import Cluster
from bench.chaos_faults import FAULTS, Scene

_SETTLE_S = 30.0
_PACKAGES = ("conserve-sdk", "uvicorn", "starlette", "aiohttp")


def main() -> int:
    options = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(run(options, pathlib.Path(folder)))
    result = {
        "command": shlex.join(["python", "-m", "bench.chaos", *sys.argv[1:]]),
        "machine": f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} logical CPUs",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "seed": options.seed,
        "engines": "emulated",
        **result,
    }
    print(json.dumps(result, indent=2))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    failed = [name for name in ("lost", "hung", "duplicated", "leaked_reservations") if result[name]]
    failed += [f"{name} was never injected" for name, f in result["faults"].items() if not f["injected"]]
    if failed:
        print(f"chaos: not passed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--conversations", type=int, default=200, help="conversations that are live at once")
    parser.add_argument("--seconds", type=float, default=120.0, help="a round of faults begins before it")
    parser.add_argument("--window", type=float, default=3.0, help="seconds in which one fault is met")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/chaos.json"))
    return parser.parse_args(arguments)


async def run(options: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """The figures of one run."""
    dice, tally = random.Random(options.seed), Tally()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=None)
    ) as session:
        cluster = Cluster(folder, session)
        with cluster.running():
            await cluster.ready()
            scene = Scene(cluster, session, tally, dice, options.window)
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as clients:
                for _ in range(options.conversations):
                    seed = dice.randrange(2**32)
                    clients.create_task(keep_talking(scene, stop, seed, options.conversations))
                faults = await inject(scene, options.seconds)
                stop.set()
            leaked, running = await settled(cluster)
            rebinds = cluster.rebinds + await cluster.rebinds_now()
    return {
        "conversations_at_once": options.conversations,
        "faults": faults,
        "turns": tally.turns,
        "outcomes": dict(tally.outcomes),
        "lost": len(tally.lost),
        "hung": tally.hung,
        "duplicated": len(tally.duplicated),
        "rebinds": dict(rebinds),
        "leaked_reservations": leaked,
        "requests_left_on_engines": running,
        "details": [*tally.lost, *tally.duplicated][:20],
    }


async def keep_talking(scene: Scene, stop: asyncio.Event, seed: int, others: int) -> None:
    """One conversation after another, each of a few turns, until told to stop."""
    dice = random.Random(seed)
    await asyncio.sleep(dice.uniform(0, others / 40))
    while not stop.is_set():
        conversation = Conversation(scene.cluster, scene.session, scene.tally, dice.randrange(2**32))
        await conversation.run(dice.randint(2, 6), pause_s=others / 40)


async def inject(scene: Scene, seconds: float) -> dict[str, dict[str, Any]]:
    """Fault after fault, in rounds, until the time is over; every fault at least once."""
    until_s = time.monotonic() + seconds
    found: dict[str, dict[str, Any]] = {}
    while not found or time.monotonic() < until_s:
        for fault in FAULTS:
            before = scene.tally.outcomes.copy()
            injected = await fault(scene)
            await scene.cluster.forget_faults()
            await scene.cluster.revive()
            met = scene.tally.outcomes - before
            entry = found.setdefault(fault.__name__, {"injected": 0})
            entry["injected"] += injected
            for outcome, number in met.items():
                entry[outcome] = entry.get(outcome, 0) + number
            print(f"{fault.__name__}: {injected} injected, {dict(met)}", file=sys.stderr, flush=True)
            if len(found) == len(FAULTS) and time.monotonic() >= until_s:
                break
    return found


async def settled(cluster: Cluster) -> tuple[int, int]:
    """Reserved tokens and running requests once all is released; what is left after a while is a leak."""
    until_s = time.monotonic() + _SETTLE_S
    while True:
        left = await cluster.reserved(), await cluster.running_requests()
        if not any(left) or time.monotonic() >= until_s:
            return left
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
