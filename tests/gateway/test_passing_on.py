"""What becomes of answers that are broken, late, or read by clients that leave: on a scripted engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest
from opentelemetry.trace import NoOpTracer

from bench.attack.raw import wire
from bench.attack.rogue import (
    MODEL,
    STREAM_END,
    STREAM_HEAD,
    Act,
    Heard,
    Rogue,
    chat_answer,
    chat_events,
    chunk,
    honest,
    saying,
    whole,
)
from conserve_server.core.clock import SystemClock
from conserve_server.core.config import parse_config
from conserve_server.engines.engine import listed_engines
from conserve_server.gateway.app import create_app
from conserve_server.scheduling.policies import policy_of
from conserve_server.serving.answers.stream_heads import COMMENT

from .conftest import WAIT_S, serve_app

PATH = "/v1/chat/completions"
EVENTS = chat_events()
WHOLE = json.dumps(chat_answer()).encode()


class Front:
    """A gateway in front of scripted engines."""

    def __init__(self, url: str, client: httpx2.AsyncClient, rogues: list[Rogue]) -> None:
        self.port = int(url.rpartition(":")[2])
        self.client = client
        self.rogues = rogues

    def act(self, act: Act) -> None:
        for rogue in self.rogues:
            rogue.act = act

    async def ask(self, name: str, *, stream: bool = False) -> httpx2.Response:
        return await self.client.post(PATH, json=body(stream), headers=named(name))

    async def outcome(self, name: str) -> str:
        """The outcome of the conversation's latest turn, once it has ended."""
        async with asyncio.timeout(WAIT_S):
            while not (turns := (await self.report(name)).get("turns")):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return str(turns[-1]["outcome"])

    async def report(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.client.get(f"/v1/conversations/{name}")).json()
        return found


def body(stream: bool) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "When?"}], "stream": stream}


def named(name: str) -> dict[str, str]:
    return {"x-conserve-conversation-id": name}


@asynccontextmanager
async def front(engines: int = 1, **gateway: object) -> AsyncIterator[Front]:
    rogues = [Rogue() for _ in range(engines)]
    async with AsyncExitStack() as stack:
        for rogue in rogues:
            await stack.enter_async_context(rogue.running())
        urls = [f"http://127.0.0.1:{rogue.port}" for rogue in rogues]
        limits = {"probe_interval_s": 0.05, "max_placements": engines, **gateway}
        config = parse_config({"pools": {"decode": {"engines": urls}}, "gateway": limits})
        app = create_app(
            config,
            engines=listed_engines(config),
            policy=policy_of(config.scheduler),
            clock=SystemClock(),
            tracer=NoOpTracer(),
        )
        async with serve_app(app) as url, httpx2.AsyncClient(base_url=url, timeout=WAIT_S) as client:
            found = Front(url, client, rogues)
            async with asyncio.timeout(WAIT_S):
                while not await all_up(client):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            yield found


async def all_up(client: httpx2.AsyncClient) -> bool:
    return all(engine["up"] for engine in (await client.get("/health")).json()["engines"])


def streaming(*events: bytes, end: bytes = STREAM_END) -> Act:
    return saying(STREAM_HEAD + b"".join(map(chunk, events)) + end)


def then_closing(act: Act) -> Act:
    async def acting(heard: Heard, writer: asyncio.StreamWriter) -> None:
        await act(heard, writer)
        writer.close()

    return acting


@pytest.mark.parametrize("end", [STREAM_END, b""])
@pytest.mark.parametrize("count", [2, 3])
async def test_a_stream_that_stops_before_its_end_has_failed(count: int, end: bytes) -> None:
    kept = EVENTS[:2] if count == 2 else [*EVENTS[:2], EVENTS[2][:20]]
    async with front() as gateway:
        gateway.act(then_closing(streaming(*kept, end=end)))
        answer = await gateway.ask("cut", stream=True)
        last = answer.text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] in ("engine_error", "engine_lost")
        assert "[DONE]" not in answer.text
        assert await gateway.outcome("cut") == "failed"


async def test_a_stream_that_stops_before_its_first_token_goes_to_another_engine() -> None:
    async with front(engines=2) as gateway:
        gateway.act(honest)
        first = gateway.rogues[0]
        first.act = streaming(EVENTS[0])
        gateway.rogues[1].act = honest
        names = [f"c-{n}" for n in range(4)]
        answers = [await gateway.ask(name, stream=True) for name in names]
        assert first.heard
        assert all(answer.text.endswith("data: [DONE]\n\n") for answer in answers)


@pytest.mark.parametrize("events", [EVENTS[:-1], EVENTS[:3]])
async def test_a_finish_reason_is_an_end(events: list[bytes]) -> None:
    async with front() as gateway:
        gateway.act(streaming(*events))
        await gateway.ask("finished", stream=True)
        assert await gateway.outcome("finished") == "completed"


@pytest.mark.parametrize("marker", [b"[DONE]", b'"finish_reason": "stop"'])
async def test_a_client_that_leaves_after_the_end_has_its_answer(marker: bytes) -> None:
    """Its engine ends the stream later: nobody waits for that."""

    async def late_end(_heard: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + b"".join(map(chunk, EVENTS)))
        await writer.drain()
        await asyncio.sleep(WAIT_S)

    async with front() as gateway:
        gateway.act(late_end)
        request = json.dumps(body(stream=True)).encode()
        async with wire(gateway.port) as client:
            head = f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(request)}\r\n"
            await client.say(f"{head}x-conserve-conversation-id: read\r\n\r\n".encode() + request)
            await client.read_until(marker)
            client.hang_up()
        assert await gateway.outcome("read") == "completed"
        (turn,) = (await gateway.report("read"))["turns"]
        assert turn["prompt_tokens"] == 9


async def test_a_client_that_leaves_before_the_end_has_cancelled() -> None:
    async def never_ends(_heard: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + b"".join(map(chunk, EVENTS[:2])))
        await writer.drain()
        await asyncio.sleep(WAIT_S)

    async with front() as gateway:
        gateway.act(never_ends)
        async with gateway.client.stream(
            "POST", PATH, json=body(stream=True), headers=named("left")
        ) as answer:
            await anext(answer.aiter_bytes())
        assert await gateway.outcome("left") == "cancelled"


BROKEN: dict[str, bytes] = {
    "a redirect": whole(b"", "302 Found\r\nlocation: http://127.0.0.1:1/"),
    "status 599": whole(b"{}", "599 Odd"),
    "nothing": whole(b""),
    "no json": whole(b"noon"),
    "a list": whole(b"[]"),
    "deep": whole(b"[" * 100_000),
    "deep inside": whole(WHOLE.replace(b"9,", b"[" * 50_000 + b",", 1)),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_an_answer_that_is_none_is_its_engines_failure(name: str) -> None:
    async with front() as gateway:
        gateway.act(then_closing(saying(BROKEN[name])))
        answer = await gateway.ask("broken")
        assert answer.status_code == 502
        assert answer.json()["error"]["type"] == "engine_error"
        assert await gateway.outcome("broken") == "failed"


@pytest.mark.parametrize(
    ("status", "told"), [("299 Odd", 200), ("499 Odd", 400), ("429 Too Many Requests", 429)]
)
async def test_a_status_without_a_name_is_told_as_one_that_has_one(status: str, told: int) -> None:
    async with front() as gateway:
        gateway.act(saying(whole(WHOLE, status)))
        assert (await gateway.ask("odd")).status_code == told


async def test_counts_that_are_absurd_are_not_booked() -> None:
    async with front() as gateway:
        gateway.act(saying(whole(WHOLE.replace(b'"prompt_tokens": 9', b'"prompt_tokens": -9'))))
        assert (await gateway.ask("absurd")).status_code == 200
        (turn,) = (await gateway.report("absurd"))["turns"]
        assert turn["prompt_tokens"] is None


@pytest.mark.parametrize("path", [PATH, "/v1/completions"])
async def test_bytes_after_an_answer_are_nobodys(path: str) -> None:
    secret = whole(json.dumps(chat_answer("secret")).encode())
    async with front() as gateway:
        for first in (whole(WHOLE), STREAM_HEAD + b"".join(map(chunk, EVENTS)) + STREAM_END):
            gateway.act(saying(first + secret))
            await gateway.ask("first", stream=first.startswith(STREAM_HEAD))
            gateway.act(honest)
            assert "secret" not in (await gateway.ask("second")).text


# -- heads before the first token ------------------------------------------------------------------


def opening(after: asyncio.Event, *rest: bytes) -> Act:
    async def act(_heard: Heard, writer: asyncio.StreamWriter) -> None:
        await asyncio.wait_for(after.wait(), WAIT_S)
        for piece in rest:
            writer.write(piece)
        await writer.drain()

    return act


async def test_a_stream_that_is_long_in_coming_gets_its_head_and_comments() -> None:
    go_on = asyncio.Event()
    async with front(stream_head_after_s=0.05) as gateway:
        gateway.act(opening(go_on, STREAM_HEAD, *map(chunk, EVENTS), STREAM_END))
        async with gateway.client.stream(
            "POST", PATH, json=body(stream=True), headers=named("slow")
        ) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-conserve-conversation-id"] == "slow"
            pieces = answer.aiter_bytes()
            seen = b""
            while seen.count(COMMENT) < 2:
                seen += await anext(pieces)
            go_on.set()
            seen += b"".join([piece async for piece in pieces])
        assert seen.replace(COMMENT, b"").endswith(b"data: [DONE]\n\n")
        assert await gateway.outcome("slow") == "completed"


async def test_a_refusal_after_the_head_is_the_streams_last_event() -> None:
    go_on = asyncio.Event()
    refusal = whole(json.dumps({"error": {"message": "too long"}}).encode(), "400 Bad Request")
    async with front(stream_head_after_s=0.05) as gateway:
        gateway.act(opening(go_on, refusal))
        async with gateway.client.stream(
            "POST", PATH, json=body(stream=True), headers=named("refused")
        ) as answer:
            pieces = answer.aiter_bytes()
            seen = await anext(pieces)
            go_on.set()
            seen += b"".join([piece async for piece in pieces])
        last = seen.strip().split(b"\n\n")[-1]
        assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == "too long"
        assert await gateway.outcome("refused") == "failed"


async def test_an_engine_that_fails_after_the_head_is_still_replaced() -> None:
    go_on = asyncio.Event()
    failures: list[Heard] = []

    async def fails_once(heard: Heard, writer: asyncio.StreamWriter) -> None:
        if failures:
            await honest(heard, writer)
            return
        failures.append(heard)
        await asyncio.wait_for(go_on.wait(), WAIT_S)
        writer.write(whole(b"{}", "503 Service Unavailable"))

    async with front(engines=2, stream_head_after_s=0.05) as gateway:
        gateway.act(fails_once)
        async with gateway.client.stream(
            "POST", PATH, json=body(stream=True), headers=named("moved")
        ) as answer:
            pieces = answer.aiter_bytes()
            seen = await anext(pieces)
            go_on.set()
            seen += b"".join([piece async for piece in pieces])
        assert seen.endswith(b"data: [DONE]\n\n")
        assert await gateway.outcome("moved") == "completed"


async def test_an_answer_that_is_not_streamed_has_no_head_before_it_is_there() -> None:
    go_on = asyncio.Event()
    async with front(stream_head_after_s=0.05) as gateway:
        gateway.act(opening(go_on, whole(b"{}", "400 Bad Request")))
        asking = asyncio.create_task(gateway.ask("whole"))
        await asyncio.wait({asking}, timeout=0.3)
        assert not asking.done()
        go_on.set()
        assert (await asking).status_code == 400


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
async def test_an_answer_without_end_is_its_engines_failure(
    status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held is what a whole answer may have, and no more."""
    monkeypatch.setattr("conserve_server.engines.document.read_whole.__defaults__", (100_000,))
    async with front() as gateway:
        gateway.act(then_closing(saying(whole(b'{"a":"' + b"x" * 200_000 + b'"}', status))))
        answer = await gateway.ask("endless")
        assert answer.status_code == 502
        assert "more than 100000 bytes" in answer.json()["error"]["message"]
