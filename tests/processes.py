"""Looks at real processes, each wait with a limit. Polling is what a process can be waited for with."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

LIMIT_S = 30.0
"""No wait of a test is longer; nothing comes near it."""
POLL_S = 0.02


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_for(fact: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    """Return once `fact` holds; fail if that takes long."""
    until_s = time.monotonic() + limit_s
    while not fact():
        if time.monotonic() >= until_s:
            pytest.fail(f"waited {limit_s:.0f} s for {what}")
        time.sleep(POLL_S)


async def eventually(fact: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    """Return once `fact` holds, letting tasks run meanwhile; fail if that takes long."""
    try:
        async with asyncio.timeout(limit_s):
            while not fact():  # noqa: ASYNC110  a process sets no event
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        pytest.fail(f"waited {limit_s:.0f} s for {what}")


def wait_gone(pids: Iterable[int]) -> None:
    """Return once none of them runs; if that takes long, fail and end them."""
    watched = list(pids)
    try:
        wait_for(lambda: not any(map(is_running, watched)), f"processes {watched} to end")
    finally:
        for pid in filter(is_running, watched):
            os.kill(pid, signal.SIGKILL)


def pids_in(record: Path) -> list[int]:
    """The pids that a fake engine's children were recorded with, one a line."""
    return [int(line) for line in record.read_text().split()] if record.exists() else []
