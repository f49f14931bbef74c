"""`conserve serve` as a process of its own, with its configuration, for tests."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from conserve_server.engines.emulated import (
    EmulatedConfig,
    EmulatedEngineServer,
    Fault,
)
from conserve_server.engines.engine import Role
from conserve_server.telemetry.spans_file import Span, read_spans
from tests.processes import LIMIT_S

MODEL = "tiny"
NOBODY = "http://127.0.0.1:9"


def write_config(folder: Path, text: str) -> Path:
    path = folder / "conserve.toml"
    path.write_text(text)
    return path


def listed(folder: Path, *decode: str, gateway: str = "") -> Path:
    """A configuration over running engines."""
    return write_config(folder, f"[pools.decode]\nengines = {json.dumps(decode)}\n[gateway]\n{gateway}")


def local(folder: Path) -> Path:
    return write_config(
        folder,
        f"""
model = "{MODEL}"
[pools.prefill]
count = 1
[pools.decode]
count = 1
[launcher]
engine = "emulated"
run_dir = "{folder}/run"
""",
    )


@dataclass
class Gateway:
    """A running `conserve serve`."""

    process: asyncio.subprocess.Process
    url: str
    announced: str
    traces: Path

    async def stop(self, number: signal.Signals) -> str:
        """Send the signal and wait for the end; what it said on standard error."""
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> str:
        async with asyncio.timeout(LIMIT_S):
            _, errors = await self.process.communicate()
        return errors.decode()

    @property
    def spans(self) -> list[Span]:
        return list(read_spans(self.traces))


@asynccontextmanager
async def serving(
    config: Path, *arguments: str, program: tuple[str, ...] = ("-m", "conserve_server.cli.main")
) -> AsyncIterator[Gateway]:
    """`conserve serve` on a free port, once it has said where; killed if the test leaves it running."""
    traces = config.parent / "traces"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *program, "serve", str(config), "--port", "0", *arguments),
        stdout=PIPE,
        stderr=PIPE,
        env={"CONSERVE_TRACE_DIR": str(traces), "PATH": ""},
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            announced = (await process.stdout.readuntil(b"traces")).decode()
        found = re.search(r"http://[\d.:]+", announced)
        assert found is not None
        yield Gateway(process, found.group(), announced, traces)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@asynccontextmanager
async def engine(*faults: Fault) -> AsyncIterator[EmulatedEngineServer]:
    config = EmulatedConfig(model=MODEL, name="decode-0", role=Role.DECODE, faults=faults)
    async with EmulatedEngineServer(config) as server:
        yield server


def turn(**fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, **fields}


async def ready(client: httpx2.AsyncClient, engines: int = 1) -> None:
    """Until so many engines are up."""
    async with asyncio.timeout(LIMIT_S):
        while sum(e["up"] for e in (await client.get("/health")).json()["engines"]) < engines:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
