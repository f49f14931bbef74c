"""Engines are warmed pair by pair, in bounded time, and none is worse off where that fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from conserve_server.engines.document import MAX_LOOK_BYTES
from conserve_server.engines.emulated import EmulatedConfig, EmulatedEngineServer, Fault
from conserve_server.engines.engine import EngineSpec, Role
from conserve_server.engines.warm_up import warm_up
from tests.gateway.conftest import serve_app

MODEL = "tiny"
TRANSFERS = "vllm:nixl_xfer_time_seconds_count"
ANSWERS = "vllm:request_success_total"


@asynccontextmanager
async def engines(
    *, prefill: int, decode: int, fault: Fault | None = None
) -> AsyncIterator[list[EngineSpec]]:
    """So many of each role; the first decoder has the fault."""
    names = [(Role.PREFILL, i) for i in range(prefill)] + [(Role.DECODE, i) for i in range(decode)]
    async with AsyncExitStack() as stack:
        specs = []
        for role, index in names:
            faults = (fault,) if fault is not None and (role, index) == (Role.DECODE, 0) else ()
            config = EmulatedConfig(model=MODEL, name=f"{role}-{index}", role=role, faults=faults)
            server = await stack.enter_async_context(EmulatedEngineServer(config))
            specs.append(EngineSpec(config.name, role, server.url))
        yield specs


async def counted(engine: EngineSpec, line: str) -> float:
    async with httpx2.AsyncClient() as client:
        page = (await client.get(f"{engine.url}/metrics")).text
    return sum(float(row.rsplit(" ", 1)[1]) for row in page.splitlines() if row.startswith(line))


async def test_each_pair_moves_kv_once() -> None:
    async with engines(prefill=2, decode=2) as pool:
        assert await warm_up(pool, model=MODEL) == []
        assert [await counted(each, TRANSFERS) for each in pool] == [0, 0, 2, 2]
        assert [await counted(each, ANSWERS) for each in pool] == [2, 2, 2, 2]


async def test_without_prefillers_each_decoder_answers_once() -> None:
    async with engines(prefill=0, decode=2) as pool:
        assert await warm_up(pool, model=MODEL) == []
        assert [await counted(each, ANSWERS) for each in pool] == [1, 1]


async def test_an_engine_that_refuses_is_named_and_the_others_are_warm() -> None:
    async with engines(prefill=1, decode=2, fault=Fault("status", status=500)) as pool:
        (problem,) = await warm_up(pool, model=MODEL)
        assert problem.startswith("decode-0 answered 500: ")
        assert [await counted(each, TRANSFERS) for each in pool] == [0, 0, 1]


async def test_an_engine_that_is_gone_or_silent_ends_the_wait() -> None:
    async with engines(prefill=0, decode=1, fault=Fault("hang")) as pool:
        assert await warm_up(pool, model=MODEL, timeout_s=0.2) == ["decode-0 was not warm after 0.2 s"]
    (problem,) = await warm_up(pool, model=MODEL)
    assert problem.startswith("decode-0 can't be reached or broke off: ")


async def test_an_engine_that_answers_without_end_is_named() -> None:
    async def flood(_request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(MAX_LOOK_BYTES // 65_536 + 2):
                yield bytes(65_536)

        return StreamingResponse(pieces())

    app = Starlette(routes=[Route("/v1/completions", flood, methods=["POST"])])
    async with serve_app(app) as url:
        (problem,) = await warm_up([EngineSpec("decode-0", Role.DECODE, url)], model=MODEL)
    assert problem == f"decode-0 answered with more than {MAX_LOOK_BYTES} bytes"
