"""Do to a running gateway what attackers, broken engines and hasty operators do, and see whether it holds.

    python -m bench.attack [--only NAME …] [--vllm PYTHON] [--output build/attack.json]

A real gateway process over emulated engines and engines that answer what they are told to, all on
loopback. Each case says in its first line what it does; it *held* if the gateway did what is right,
kept its memory within the case's bound, and served an honest conversation afterwards. It *fell* on
anything else. Every loop is bounded in bytes, requests and seconds.

With `--vllm` the cases that no engine of ours decides run over real vLLM engines (tiny-random, on
the CPU), started by that Python.

Exits with 1 if any fell.
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
import sys
import tempfile
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import replace

import aiohttp

from bench.attack import agents, clients, connections, engines, operators, tenants
from bench.attack.case import Case, Fell, expect
from bench.attack.ground import Ground, Setup
from bench.attack.invariants import check

CASES: tuple[Case, ...] = (
    *connections.CASES,
    *clients.CASES,
    *tenants.CASES,
    *engines.CASES,
    *operators.CASES,
    *agents.CASES,
)
CASE_S = 150.0
"""A case that takes longer has fallen: nothing that a gateway should do takes so long."""
_PACKAGES = ("conserve-sdk", "uvicorn", "httptools", "msgspec")


def main() -> int:
    options = parse(sys.argv[1:])
    chosen = [case for case in CASES if not options.only or case.name in options.only]
    if missing := set(options.only) - {case.name for case in CASES}:
        print(f"no such case: {', '.join(sorted(missing))}", file=sys.stderr)
        return 2
    if options.vllm is not None:
        chosen = [on_real(case, options.vllm) for case in chosen if case.on_real]
    found = asyncio.run(run(chosen))
    fell = {name: reason for name, reason in found.items() if reason is not None}
    result = {
        "command": shlex.join(["python", "-m", "bench.attack", *sys.argv[1:]]),
        "machine": f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} logical CPUs",
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "engines": "emulated" if options.vllm is None else "vllm",
        "cases": [case.name for case in chosen],
        "held": [case.name for case in chosen if case.name not in fell],
        "fell": fell,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{len(chosen)} cases, {len(chosen) - len(fell)} held, {len(fell)} fell; {options.output}")
    return 1 if fell else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these cases alone")
    parser.add_argument("--vllm", metavar="PYTHON", help="over real vLLM engines, started by this Python")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/attack.json"))
    return parser.parse_args(arguments)


def on_real(case: Case, python: str) -> Case:
    """The case over real engines that the gateway starts itself."""
    setup = case.setup.but(
        vllm_python=str(pathlib.Path(python).absolute()), is_local=True, prefill=1, decode=1
    )
    return replace(case, setup=setup)


async def run(chosen: Iterable[Case]) -> dict[str, str | None]:
    """Each case by name: None if it held, or why it fell."""
    found: dict[str, str | None] = {}
    by_setup: list[tuple[Setup, list[Case]]] = []
    for case in chosen:
        if not by_setup or by_setup[-1][0] != case.setup:
            by_setup.append((case.setup, []))
        by_setup[-1][1].append(case)
    async with aiohttp.ClientSession() as session:
        for setup, group in by_setup:
            await _on_one_ground(setup, group, session, found)
    return found


async def _on_one_ground(
    setup: Setup, group: list[Case], session: aiohttp.ClientSession, found: dict[str, str | None]
) -> None:
    """The cases one after another; after one that fell the next gets a new ground."""
    left = list(group)
    while left:
        async with AsyncExitStack() as stack:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            ground = await stack.enter_async_context(Ground(setup, folder, session).running())
            while left:
                case = left.pop(0)
                found[case.name] = reason = await attack(case, ground)
                print(f"{'held' if reason is None else 'FELL'}  {case.name}: {case.what}", flush=True)
                if reason is not None:
                    print(f"      {reason}", flush=True)
                    break


async def attack(case: Case, ground: Ground) -> str | None:
    """Why the gateway fell, or None."""
    for rogue in ground.rogues:
        rogue.behave()
    before = ground.rss_bytes
    try:
        async with asyncio.timeout(CASE_S):
            await case.attack(ground)
            _check_memory(case, ground, before)
            for rogue in ground.rogues:
                rogue.behave()
            await check(ground)
    except Fell as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the case has not held
        return f"{type(error).__name__}: {error}"
    return None


def _check_memory(case: Case, ground: Ground, before: int) -> None:
    grown = ground.rss_bytes - before
    expect(grown <= case.growth_bytes, f"its memory grew by {grown:,} bytes (bound {case.growth_bytes:,})")


if __name__ == "__main__":
    sys.exit(main())
