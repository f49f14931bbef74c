"""Control calls go where model calls went, past whatever stands before the gateway."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import pytest
import uvloop
from openai import AsyncOpenAI, OpenAI

import conserve_sdk as conserve
from conserve_sdk import protocol
from conserve_sdk._control import Gateway
from conserve_sdk._delivery import Delivery, Release

if TYPE_CHECKING:
    from tests.sdk.conftest import FakeControl, FakeModel, LoopbackGateway


def test_a_control_call_carries_the_clients_own_headers_and_nothing_of_one_request(
    model: FakeModel, control: FakeControl
) -> None:
    door = {"x-door": "open", "cookie": "session=1"}
    client = conserve.wrap(
        OpenAI(base_url="http://gate/a/v1", api_key="key", default_headers=door, http_client=model.http())
    )
    with conserve.conversation("c"):
        client.chat.completions.create(model="m", messages=[])
    (release,) = control.requests
    assert release.url == "http://gate/a/v1/conversations/c"
    carried = {name: release.headers.get(name) for name in ("x-door", "cookie", "authorization")}
    assert carried == {**door, "authorization": "Bearer key"}
    assert not [name for name in release.headers if name.startswith(("x-stainless", "x-conserve"))]
    assert release.headers.get("content-length") in (None, "0")


@pytest.mark.parametrize("status", [401, 403, 302])
def test_the_first_refusal_of_each_gateway_is_a_warning(
    make_delivery: Callable[..., Delivery], caplog: pytest.LogCaptureFixture, status: int
) -> None:
    transport = httpx2.MockTransport(lambda _: httpx2.Response(status))
    delivery = make_delivery(open_client=lambda: httpx2.Client(transport=transport))
    for root in ("http://one", "http://one", "http://two"):
        delivery.put(Release(Gateway(root), "c"))
    delivery.marker().result(5.0)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.split()[:3] for text in warned] == [
        ["http://one", "answered", str(status)],
        ["http://two", "answered", str(status)],
    ]


class Signing(httpx2.Auth):
    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response]:
        request.headers["x-signed"] = "by auth"
        yield request


def test_a_control_call_carries_what_the_http_clients_auth_and_earlier_hooks_add(
    model: FakeModel, control: FakeControl
) -> None:
    def hook(request: httpx2.Request) -> None:
        request.headers["x-hooked"] = "yes"

    http = httpx2.Client(
        transport=httpx2.MockTransport(model), auth=Signing(), event_hooks={"request": [hook]}
    )
    client = conserve.wrap(OpenAI(base_url="http://gate/v1", api_key="key", http_client=http))
    with conserve.conversation("c"):
        client.chat.completions.create(model="m", messages=[])
    (release,) = control.requests
    assert (release.headers["x-signed"], release.headers["x-hooked"]) == ("by auth", "yes")


class Door:
    """Model, events, release and report behind one transport: there is no other way to this gateway."""

    def __init__(self) -> None:
        self.passed: list[str] = []

    def __call__(self, request: Any) -> httpx2.Response:
        call = f"{request.method} {request.url.path}"
        if call not in self.passed:
            self.passed.append(call)
        if request.url.path.endswith("/c/events") or request.method == "DELETE":
            return httpx2.Response(204)
        if request.url.path == protocol.LIVE_PATH:
            change = protocol.ConversationUpdate(0.0, protocol.ConversationReport("c", "ended"))
            document = protocol.Update(0.0, conversations=(change,)).to_json()
            return httpx2.Response(200, content=f"data: {json.dumps(document)}\n\n")
        if request.url.path.startswith(protocol.CONVERSATIONS_PATH):
            return httpx2.Response(200, json=protocol.ConversationReport("c", "active").to_json())
        return httpx2.Response(200, json={"choices": [], "id": "x", "object": "chat.completion"})

    def of_httpx(self, request: httpx.Request) -> httpx.Response:
        """The same for the package before httpx2."""
        answer = self(request)
        return httpx.Response(answer.status_code, content=answer.content)

    def openai(self) -> OpenAI:
        http = httpx2.Client(transport=httpx2.MockTransport(self))
        return conserve.wrap(OpenAI(base_url="http://gate/v1", api_key="key", http_client=http))

    def async_openai(self) -> AsyncOpenAI:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(self))
        return conserve.wrap(AsyncOpenAI(base_url="http://gate/v1", api_key="key", http_client=http))


ALL = [
    "POST /v1/chat/completions",
    "POST /v1/conversations/c/events",
    "GET /v1/conversations/c",
    "DELETE /v1/conversations/c",
]


def test_control_calls_go_by_the_client_that_made_the_model_call(control: FakeControl) -> None:
    door = Door()
    client = door.openai()
    with conserve.conversation("c") as conversation:
        client.chat.completions.create(model="m", messages=[])
        with conversation.tool("add"):
            pass
        assert conversation.report().id == "c"
    assert (door.passed, control.requests) == (ALL, [])


def test_a_client_of_httpx_carries_them_too(control: FakeControl) -> None:
    door = Door()
    http = conserve.wrap(httpx.Client(transport=httpx.MockTransport(door.of_httpx)), base_url="http://gate")
    with conserve.conversation("c") as conversation:
        http.post("http://gate/v1/chat/completions", json={})
        with conversation.tool("add"):
            pass
        assert conversation.report().id == "c"
    assert (door.passed, control.requests) == (ALL, [])


def test_a_loop_of_uvloop_carries_them_too(control: FakeControl) -> None:
    door = Door()
    client = door.async_openai()

    async def agent() -> None:
        async with conserve.conversation("c"):
            await client.chat.completions.create(model="m", messages=[])

    uvloop.run(agent())
    assert (door.passed, control.requests) == ([ALL[0], ALL[-1]], [])


async def test_an_asynchronous_client_carries_them_on_its_own_loop(control: FakeControl) -> None:
    door = Door()
    client = door.async_openai()
    async with conserve.conversation("c") as conversation:
        await client.chat.completions.create(model="m", messages=[])
        with conversation.tool("add"):
            pass
        assert (await conversation.areport()).id == "c"
    assert (door.passed, control.requests) == (ALL, [])


def test_following_goes_by_that_client_too(control: FakeControl) -> None:
    door = Door()
    with conserve.conversation("c") as conversation:
        door.openai().chat.completions.create(model="m", messages=[])  # and gone
        client = door.openai()
        client.chat.completions.create(model="m", messages=[])
        assert [update.report.state for update in conversation.follow()] == ["ended"]
    assert (f"GET {protocol.LIVE_PATH}" in door.passed, control.requests) == (True, [])


async def test_following_on_the_clients_loop_goes_by_it_too() -> None:
    door = Door()
    client = door.async_openai()
    async with conserve.conversation("c") as conversation:
        await client.chat.completions.create(model="m", messages=[])
        assert [update.report.state async for update in conversation.afollow()] == ["ended"]
    assert f"GET {protocol.LIVE_PATH}" in door.passed


def test_what_a_hook_of_a_later_day_adds_is_on_control_calls(control: FakeControl) -> None:
    door, seen = Door(), []
    client = door.openai()
    client._client.event_hooks["request"].append(lambda request: seen.append(request.url.path))
    with conserve.conversation("c"):
        client.chat.completions.create(model="m", messages=[])
    assert seen == ["/v1/chat/completions", "/v1/conversations/c"]
    assert control.requests == []


def test_the_query_of_the_model_call_goes_with_control_calls(control: FakeControl, model: FakeModel) -> None:
    query = {"door-key": "a b", "model": "m"}
    client = conserve.wrap(
        OpenAI(base_url="http://gate/v1", api_key="k", default_query=query, http_client=model.http())
    )
    with conserve.conversation("c"):
        client.chat.completions.create(model="m", messages=[])
    assert [request.url.query for request in control.requests] == [b"door-key=a+b"]


@pytest.mark.parametrize("leave", ["closed", "collected", "another thread's"])
def test_where_the_client_cannot_be_used_they_go_by_the_sdks_own(leave: str, control: FakeControl) -> None:
    door = Door()
    client: OpenAI | None = door.openai()
    with conserve.conversation("c"):
        assert client is not None
        client.chat.completions.create(model="m", messages=[])
        if leave == "closed":
            client.close()
        elif leave == "collected":
            client = None
            gc.collect()
        else:
            client._client._transport = httpx2.MockTransport(_of_another_thread)
    assert [request.url.path for request in control.requests] == ["/v1/conversations/c"]


def _of_another_thread(request: httpx2.Request) -> httpx2.Response:
    raise RuntimeError("this client is used by one thread alone")


def test_where_the_clients_loop_has_ended_they_go_by_the_sdks_own(control: FakeControl) -> None:
    door = Door()
    client = door.async_openai()

    async def agent(conversation: conserve.Conversation) -> None:
        await client.chat.completions.create(model="m", messages=[])

    with conserve.conversation("c") as conversation:
        asyncio.run(agent(conversation))
    assert [request.url.path for request in control.requests] == ["/v1/conversations/c"]


def test_a_loop_that_is_held_up_costs_no_more_than_the_time_of_one_call(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = Door()
    client = door.async_openai()
    monkeypatch.setattr("conserve_sdk._carrier.REQUEST_TIMEOUT_S", 0.05)

    async def agent() -> None:
        with conserve.conversation("c") as conversation:
            await client.chat.completions.create(model="m", messages=[])
        conversation._link.flushed().result(5.0)  # a synchronous wait, on the loop that is to carry it

    asyncio.run(agent())
    assert [request.url.path for request in control.requests] == ["/v1/conversations/c"]


def test_a_key_in_a_query_is_in_no_message(model: FakeModel, loopback: LoopbackGateway) -> None:
    loopback.statuses.append(500)
    client = conserve.wrap(
        OpenAI(
            base_url=f"{loopback.root}/v1",
            api_key="k",
            default_query={"key": "secret"},
            http_client=model.http(),
        )
    )
    with conserve.conversation("c") as conversation:
        client.chat.completions.create(model="m", messages=[])
        with pytest.raises(conserve.GatewayRefused) as refused:
            conversation.report()
    assert ("secret" in str(refused.value), "/v1/conversations/c" in str(refused.value)) == (False, True)
    assert any("key=secret" in path for _, path, _ in loopback.calls)
