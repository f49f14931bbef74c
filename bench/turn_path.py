"""How many of our files a pinned turn passes through, and how often it moves from one to another.

A gateway over emulated engines serves a conversation's first two turns; its third one is watched with
Python's own profiler: each call of a function in `conserve_server` counts once, its file, and a move where
the nearest of our functions on the stack that called it is in another file. Engines run elsewhere.

    python bench/turn_path.py [--streamed]      build/turn_path.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import shlex
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx2
import uvicorn
from opentelemetry.trace import NoOpTracerProvider
from uvicorn.lifespan.on import LifespanOn

import conserve_server
from conserve_server.core.clock import SystemClock
from conserve_server.core.config import parse_config
from conserve_server.engines.emulated import EmulatedConfig, EmulatedEngineServer
from conserve_server.engines.engine import Role, listed_engines
from conserve_server.gateway.app import create_app
from conserve_server.gateway.http.turn_protocol import TurnProtocol
from conserve_server.scheduling.policies import policy_of

OURS = str(Path(conserve_server.__file__).parent)
MODEL = "tiny"
QUIET_S = 600.0
"""Between looks at engines: none falls into the turn."""


class Watch:
    """The calls of one thread while it is on."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.moves: Counter[tuple[str, str]] = Counter()
        # Kept whole: a frame that is gone would lend its place in memory to another.
        self._seen: set[FrameType] = set()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        here = _file(frame)
        if event != "call" or here is None or frame in self._seen:
            return
        self._seen.add(frame)  # a coroutine that goes on is the same call
        self.files[here] += 1
        caller = frame.f_back
        while caller is not None and _file(caller) is None:
            caller = caller.f_back
        there = _file(caller) if caller is not None else None
        if there is not None and there != here:
            self.moves[there, here] += 1


def _file(frame: FrameType) -> str | None:
    """The frame's file within our package; None for anybody else's."""
    name = frame.f_code.co_filename
    return name.removeprefix(OURS + "/") if name.startswith(OURS) else None


async def watched(*, is_streamed: bool) -> Watch:
    """What the third turn of a conversation passed through."""
    watch = Watch()
    with _engines() as urls:
        async with _gateway(urls) as url:
            for turn in range(3):
                sys.setprofile(watch if turn == 2 else None)
                await asyncio.to_thread(_ask, url, turn, is_streamed=is_streamed)
            sys.setprofile(None)
    return watch


def _ask(url: str, turn: int, *, is_streamed: bool) -> None:
    messages = [{"role": "user", "content": "When does the ferry sail? " * 20}] * (2 * turn + 1)
    body = {"model": MODEL, "messages": messages, "max_tokens": 4, "stream": is_streamed}
    headers = {"x-conserve-conversation-id": "watched"}
    answer = httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=30.0)
    answer.raise_for_status()
    expected = "pinned" if turn else "remote-prefill"
    if answer.headers["x-conserve-path"] != expected:
        raise SystemExit(f"turn {turn + 1} was {answer.headers['x-conserve-path']}, not {expected}")


class _engines:  # noqa: N801 - a block
    """A prefill and a decode engine, on a loop and a thread of their own."""

    def __enter__(self) -> dict[Role, str]:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stack = AsyncExitStack()
        return asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30.0)

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stack.aclose(), self._loop).result(30.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30.0)
        self._loop.close()

    async def _start(self) -> dict[Role, str]:
        urls = {}
        for role in Role:
            config = EmulatedConfig(model=MODEL, name=f"{role}-0", role=role)
            urls[role] = (await self._stack.enter_async_context(EmulatedEngineServer(config))).url
        return urls


@asynccontextmanager
async def _gateway(urls: dict[Role, str]) -> AsyncIterator[str]:
    config = parse_config(
        {
            "gateway": {"probe_interval_s": QUIET_S, "idle_timeout_s": QUIET_S},
            "pools": {str(role): {"engines": [url]} for role, url in urls.items()},
        }
    )
    app = create_app(
        config,
        engines=listed_engines(config),
        policy=policy_of(config.scheduler),
        clock=SystemClock(),
        tracer=NoOpTracerProvider().get_tracer("turn_path"),
    )
    serving = uvicorn.Config(app, http=TurnProtocol, port=0, log_config=None, lifespan="on")
    serving.load()
    server = uvicorn.Server(serving)
    server.lifespan = LifespanOn(serving)
    await server.startup()
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx2.AsyncClient() as client, asyncio.timeout(30):
            while (await client.get(f"http://127.0.0.1:{port}/health")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streamed", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("build/turn_path.json"))
    options = parser.parse_args()
    watch = asyncio.run(watched(is_streamed=options.streamed))
    result: dict[str, Any] = {
        "command": shlex.join(["python", "bench/turn_path.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        "files": len(watch.files),
        "calls": sum(watch.files.values()),
        "moves": sum(watch.moves.values()),
        "calls_by_file": dict(watch.files.most_common()),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['files']} files, {result['calls']} calls, {result['moves']} moves; {options.output}")
    for name, calls in watch.files.most_common():
        print(f"{calls:5d}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
