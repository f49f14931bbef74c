"""Control calls behind the agent's back: bounded, in order, retried, and gone when the gateway is."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx2
import pytest

import conserve_sdk as conserve
from conserve_sdk._control import Gateway
from conserve_sdk._delivery import Boundary, Delivery, Release
from conserve_sdk.protocol import ToolEvent

if TYPE_CHECKING:
    from tests.sdk.conftest import FakeControl, FakeModel, LoopbackGateway

HERE = Gateway("http://127.0.0.1:9")


def boundary(n: int, *, conversation_id: str = "c", at_s: float = 0.0) -> Boundary:
    return Boundary(HERE, conversation_id, ToolEvent("start", str(n), "search"), at_s)


class Stuck:
    """A gateway that holds the first call until told."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.proceed = threading.Event()
        self.paths: list[str] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.paths.append(request.url.path)
        self.reached.set()
        assert self.proceed.wait(10)
        return httpx2.Response(200)

    def client(self) -> httpx2.Client:
        return httpx2.Client(transport=httpx2.MockTransport(self))


def test_a_full_outbox_drops_counts_and_says_so_once(
    make_delivery: Callable[..., Delivery], caplog: pytest.LogCaptureFixture
) -> None:
    stuck = Stuck()
    delivery = make_delivery(capacity=2, open_client=stuck.client)
    delivery.put(boundary(0))
    assert stuck.reached.wait(5)
    assert [delivery.put(boundary(n)) for n in range(5)] == [True, True, False, False, False]
    assert delivery.dropped == 3
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    stuck.proceed.set()
    delivery.marker().result(5)
    assert delivery.put(boundary(9))


def test_what_waits_for_one_conversation_goes_in_one_call(
    make_delivery: Callable[..., Delivery],
) -> None:
    stuck = Stuck()
    delivery = make_delivery(open_client=stuck.client)
    delivery.put(Release(HERE, "first"))
    assert stuck.reached.wait(5)
    for conversation_id in ("a", "a", "a", "b", "a"):
        delivery.put(boundary(0, conversation_id=conversation_id))
    stuck.proceed.set()
    delivery.marker().result(5)
    assert [path.split("/")[3] for path in stuck.paths] == ["first", "a", "b", "a"]


def test_a_boundary_tells_its_age_when_it_is_sent(
    make_delivery: Callable[..., Delivery], control: FakeControl
) -> None:
    delivery = make_delivery(open_client=control.client, clock=lambda: 10.0)
    delivery.put(boundary(0, at_s=7.5))
    delivery.put(boundary(1, at_s=10.5))
    delivery.marker().result(5)
    assert [event["elapsed_s"] for event in control.events()] == [2.5, 0.0]


def test_a_gateway_that_restarts_gets_the_events_late(
    loopback: LoopbackGateway, make_delivery: Callable[..., Delivery]
) -> None:
    loopback.statuses = [503, 502]
    delivery = make_delivery()
    delivery.put(Boundary(Gateway(loopback.root), "c", ToolEvent("start", "1", "search"), 0.0))
    delivery.marker().result(10)
    assert [method for method, _, _ in loopback.calls] == ["POST"] * 3
    assert delivery.dropped == 0


def test_a_refusal_is_not_repeated(loopback: LoopbackGateway, make_delivery: Callable[..., Delivery]) -> None:
    loopback.statuses = [404]
    delivery = make_delivery()
    delivery.put(Release(Gateway(loopback.root), "c"))
    delivery.marker().result(5)
    assert len(loopback.calls) == 1


def test_a_gateway_that_is_gone_costs_items_and_nothing_else(make_delivery: Callable[..., Delivery]) -> None:
    delivery = make_delivery()
    delivery.put(boundary(0))
    delivery.marker().result(10)
    assert delivery.dropped == 1


def test_only_the_first_waits_for_a_gateway_that_is_gone(make_delivery: Callable[..., Delivery]) -> None:
    is_there = threading.Event()

    def answer(request: httpx2.Request) -> httpx2.Response:
        if not is_there.is_set():
            raise httpx2.ConnectError("nobody listens", request=request)
        return httpx2.Response(200)

    delivery = make_delivery(open_client=lambda: httpx2.Client(transport=httpx2.MockTransport(answer)))
    delivery.put(boundary(0))
    delivery.flushed().result(5)
    assert delivery.dropped == 1
    delivery.put(boundary(1))
    assert delivery.flushed().done()
    is_there.set()
    delivery.marker().result(5)
    delivery.put(boundary(2))
    delivery.flushed().result(5)  # waits again
    assert delivery.dropped <= 2


def test_the_users_call_is_untouched_when_the_gateway_takes_no_events(
    model: FakeModel, make_delivery: Callable[..., Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Stuck()
    delivery = make_delivery(open_client=stuck.client)
    monkeypatch.setattr("conserve_sdk._conversation.process_delivery", lambda: delivery)
    client = conserve.wrap(model.client())
    started_s = time.monotonic()
    with conserve.conversation() as conversation:
        for _ in range(100):
            with conversation.tool("search"):
                reply = client.chat.completions.create(model="m", messages=[])
    assert reply.choices[0].message.content == "3"
    assert time.monotonic() - started_s < 5
    stuck.proceed.set()


async def test_a_stuck_gateway_does_not_hold_up_the_event_loop(
    model: FakeModel, make_delivery: Callable[..., Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Stuck()
    delivery = make_delivery(open_client=stuck.client)
    monkeypatch.setattr("conserve_sdk._conversation.process_delivery", lambda: delivery)
    client = conserve.wrap(model.async_client())
    with conserve.conversation():
        await client.chat.completions.create(model="m", messages=[])
        started_s = time.monotonic()
    assert time.monotonic() - started_s < 0.4  # a plain `with` waits for nothing here
    async with conserve.conversation():
        await client.chat.completions.create(model="m", messages=[])
    stuck.proceed.set()


def test_nothing_is_taken_after_the_end(make_delivery: Callable[..., Delivery], control: FakeControl) -> None:
    delivery = make_delivery(open_client=control.client)
    delivery.put(boundary(0))
    delivery.close(5)
    assert not delivery.put(boundary(1))
    assert delivery.marker().result(5) is None
    assert len(control.events()) == 1


_FORKING = """
import os, sys
import conserve_sdk as conserve
import httpx2
url = sys.argv[1]
def model(request):
    if "/conversations/" in request.url.path:
        raise httpx2.ConnectError("no control calls here")
    return httpx2.Response(200)
answer = httpx2.MockTransport(model)
client = conserve.wrap(httpx2.Client(transport=answer), base_url=url)
def turn(name):
    with conserve.conversation(name):
        client.post(f"{url}/chat/completions")
turn("parent-before")
child = os.fork()
turn("parent-after" if child else "child")
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    os._exit(0)
"""


@pytest.mark.slow
def test_a_forked_child_delivers_its_own(loopback: LoopbackGateway) -> None:
    subprocess.run([sys.executable, "-c", _FORKING, f"{loopback.root}/v1"], check=True, timeout=20)
    assert sorted(path.split("/")[-1] for _, path, _ in loopback.calls) == [
        "child",
        "parent-after",
        "parent-before",
    ]


_DYING = """
import socket, sys
import conserve_sdk as conserve
import httpx2
listener = socket.create_server(("127.0.0.1", 0))  # takes connections, never answers
url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
def model(request):
    if "/conversations/" in request.url.path:
        raise httpx2.ConnectError("no control calls here")
    return httpx2.Response(200)
answer = httpx2.MockTransport(model)
client = conserve.wrap(httpx2.Client(transport=answer), base_url=url)
with conserve.conversation() as conversation:
    client.post(f"{url}/chat/completions")
    for _ in range(50):
        with conversation.tool("search"):
            pass
print("done", flush=True)
"""


@pytest.mark.slow
def test_the_process_ends_promptly_when_the_gateway_hangs() -> None:
    with subprocess.Popen([sys.executable, "-c", _DYING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        started_s = time.monotonic()
        assert process.wait(10) == 0
        assert time.monotonic() - started_s < 2.5
