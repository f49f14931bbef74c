"""A pool of local engines whose progress the terminal shows."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conserve_server.core.config import Config
    from conserve_server.engines.launcher import LocalPool
    from conserve_server.engines.progress import Progress

_DETAIL_WIDTH = 110


@asynccontextmanager
async def started_pool(config: Config, *, first_port: int | None = None) -> AsyncIterator[LocalPool]:
    """The configuration's local engines, ready inside; progress and addresses go to standard error."""
    from conserve_server.engines.launcher import LocalPool

    pool = LocalPool(config, report=show, first_port=first_port)
    print(f"starting {_engines(config)}; logs in {config.launcher.run_dir}/logs", file=sys.stderr)
    try:
        async with pool:
            try:
                yield pool
            finally:
                print("stopping the engines", file=sys.stderr, flush=True)
    finally:
        print("engines stopped", file=sys.stderr, flush=True)


def show(progress: Progress) -> None:
    """One line of progress: how long, what, in which state, and the end of its log."""
    detail = (
        progress.detail if len(progress.detail) <= _DETAIL_WIDTH else f"{progress.detail[:_DETAIL_WIDTH]}…"
    )
    line = f"[{progress.elapsed_s:4.0f} s] {progress.name:<12} {progress.state:<10} {detail}"
    print(line.rstrip(), file=sys.stderr, flush=True)


def _engines(config: Config) -> str:
    prefill, decode = config.pools.prefill.count, config.pools.decode.count
    kind = "emulated" if config.launcher.engine == "emulated" else "vLLM"
    return f"{prefill} prefill and {decode} decode engine(s), {kind}, model {config.model}"
