"""Which requests carry a conversation, and where to."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from openai import OpenAI

import conserve_sdk as conserve
from conserve_sdk import protocol

if TYPE_CHECKING:
    from tests.sdk.conftest import FakeControl, FakeModel

PUBLIC = "https://api.openai.com/v1"


def ask(client: OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], **options)


def test_requests_carry_the_conversation_and_its_agent(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    with conserve.conversation("c-1", agent="researcher"):
        ask(client)
    headers = model.requests[0].headers
    assert headers[protocol.CONVERSATION_ID] == "c-1"
    assert headers[protocol.AGENT] == "researcher"
    assert protocol.PARENT_ID not in headers


def test_requests_outside_of_a_conversation_carry_nothing(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    with conserve.conversation("c-1"):
        pass
    ask(client)
    assert model.ids() == [None]


def test_streams_carry_the_conversation(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    with conserve.conversation("c-1"):
        assert len(list(ask(client, stream=True))) == 2
    assert model.ids() == ["c-1"]


async def test_async_requests_and_streams_carry_the_conversation(model: FakeModel) -> None:
    client = conserve.wrap(model.async_client())
    async with conserve.conversation("c-1"):
        await client.chat.completions.create(model="m", messages=[])
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        assert len([chunk async for chunk in stream]) == 2
    assert model.ids() == ["c-1", "c-1"]


def test_every_retry_carries_the_conversation(model: FakeModel) -> None:
    model.failures = [httpx2.Response(503, headers={"retry-after-ms": "1"}) for _ in range(2)]
    client = conserve.wrap(model.client())
    with conserve.conversation("c-1"):
        ask(client)
    assert model.ids() == ["c-1"] * 3


def test_copies_by_with_options_are_wrapped_too(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    with conserve.conversation("c-1"):
        ask(client.with_options(timeout=5.0))
    assert model.ids() == ["c-1"]


def test_a_copy_that_points_elsewhere_carries_nothing(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    with conserve.conversation("c-1"):
        ask(client.with_options(base_url=PUBLIC))
        ask(client.with_options(base_url="http://127.0.0.1:10/v1"))
        ask(client.with_options(base_url="https://127.0.0.1:9/v1"))
    assert model.ids() == [None] * 3


def test_wrapping_returns_the_same_client_and_hooks_it_once(model: FakeModel) -> None:
    client = model.client()
    assert conserve.wrap(client) is client
    assert conserve.wrap(conserve.wrap(client)) is client
    assert len(client._client.event_hooks["request"]) == 1


def test_two_clients_on_one_transport_are_both_allowed(model: FakeModel) -> None:
    http = model.http()
    first = conserve.wrap(OpenAI(base_url="http://127.0.0.1:9/v1", api_key="k", http_client=http))
    second = conserve.wrap(OpenAI(base_url="http://127.0.0.1:10/v1", api_key="k", http_client=http))
    with conserve.conversation("c-1"):
        ask(first)
        ask(second)
    assert model.ids() == ["c-1", "c-1"]


def test_a_server_that_is_allowed_later_gets_identifiers_from_then_on(model: FakeModel) -> None:
    http = model.http()
    later = OpenAI(base_url="http://127.0.0.1:10/v1", api_key="k", http_client=http)
    with conserve.conversation("c-1"):
        conserve.wrap(OpenAI(base_url="http://127.0.0.1:9/v1", api_key="k", http_client=http))
        ask(later)
        conserve.wrap(later)
        ask(later)
    assert model.ids() == [None, "c-1"]


def test_a_model_vendor_gets_no_identifier_and_the_user_is_told(model: FakeModel) -> None:
    with pytest.warns(UserWarning, match=r"api\.openai\.com is a model vendor's server"):
        client = conserve.wrap(model.client(PUBLIC))
    with conserve.conversation("c-1", agent="a"):
        ask(client)
    assert not [name for name in model.requests[0].headers if name.startswith("x-conserve")]


def test_a_listed_vendor_gets_the_identifier(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSERVE_ALLOWED_HOSTS", "api.openai.com")
    client = conserve.wrap(model.client(PUBLIC))
    with conserve.conversation("c-1"):
        ask(client)
    assert model.ids() == ["c-1"]


@pytest.mark.parametrize("url", ["https://API.OpenAI.com/v1", "https://api.openai.com./v1"])
def test_a_vendor_is_known_however_it_is_spelt(model: FakeModel, url: str) -> None:
    with pytest.warns(UserWarning, match="model vendor"):
        client = conserve.wrap(model.client(url))
    with conserve.conversation("c-1"):
        ask(client)
    assert model.ids() == [None]


@pytest.mark.parametrize(
    ("entry", "is_allowed"),
    [
        ("other.test", True),
        ("other.test:8000", True),
        ("http://other.test:8000", True),
        ("https://other.test:8000", False),
        ("other.test:8001", False),
        ("test", False),
    ],
)
def test_an_entry_allows_what_it_names(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch, entry: str, is_allowed: bool
) -> None:
    monkeypatch.setenv("CONSERVE_ALLOWED_HOSTS", f"elsewhere.test, {entry}")
    http = conserve.wrap(model.http())
    with conserve.conversation("c-1"):
        http.post("http://other.test:8000/v1/chat/completions", json={"messages": []})
    assert model.ids() == ["c-1" if is_allowed else None]


def test_a_redirect_to_another_host_sheds_the_identifiers(model: FakeModel) -> None:
    model.failures = [httpx2.Response(307, headers={"location": "http://elsewhere.test/v1/chat/completions"})]
    client = conserve.wrap(model.client())
    client._client.follow_redirects = True
    with conserve.conversation("c-1", agent="a"):
        ask(client)
    assert model.ids() == ["c-1", None]
    assert protocol.AGENT not in model.requests[1].headers


def test_a_header_that_the_user_set_is_kept(model: FakeModel, control: FakeControl) -> None:
    client = conserve.wrap(model.client())
    with conserve.conversation("c-1"):
        ask(client, extra_headers={protocol.CONVERSATION_ID: "mine"})
    assert model.ids() == ["mine"]
    assert control.calls == []  # the gateway never saw c-1, so nothing is released


def test_an_agent_name_that_no_header_can_carry_is_left_out(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    with conserve.conversation("c-1", agent="研究"):
        ask(client)
    assert model.ids() == ["c-1"]
    assert protocol.AGENT not in model.requests[0].headers


def test_a_nested_conversation_names_its_parent(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    with conserve.conversation("outer"):
        with conserve.conversation("inner"):
            ask(client)
        ask(client)
    assert model.ids() == ["inner", "outer"]
    assert model.requests[0].headers[protocol.PARENT_ID] == "outer"
    assert protocol.PARENT_ID not in model.requests[1].headers


async def test_parallel_tasks_each_keep_their_conversation(model: FakeModel) -> None:
    client = conserve.wrap(model.async_client())
    entered = asyncio.Barrier(8)

    async def run(name: str) -> None:
        async with conserve.conversation(name):
            await entered.wait()
            await client.chat.completions.create(model="m", messages=[], user=name)

    await asyncio.gather(*(run(f"c-{n}") for n in range(8)))
    said = {request.read().decode().partition('"user":"')[2][:3] for request in model.requests}
    assert sorted(name or "" for name in model.ids()) == sorted(said) == [f"c-{n}" for n in range(8)]


def test_bound_pool_threads_keep_the_conversation_and_leave_nothing_behind(model: FakeModel) -> None:
    client = conserve.wrap(model.client())
    with ThreadPoolExecutor(1) as pool:
        with conserve.conversation("c-1"):
            pool.submit(conserve.bind_context(ask), client).result(5)
            list(pool.map(conserve.bind_context(ask), [client] * 2))
        pool.submit(ask, client).result(5)
    assert model.ids() == ["c-1", "c-1", "c-1", None]


def test_httpx2_clients_are_taken(model: FakeModel) -> None:
    http = conserve.wrap(model.http(), base_url="http://gateway.test")
    with conserve.conversation("c-1"):
        http.post("http://gateway.test/v1/completions", json={"messages": []})
    assert model.ids() == ["c-1"]


def test_a_client_that_points_nowhere_needs_a_base_url(model: FakeModel) -> None:
    with pytest.raises(ValueError, match="base_url="):
        conserve.wrap(model.http())


def test_an_unsupported_object_is_named_with_what_is_accepted() -> None:
    with pytest.raises(conserve.UnsupportedClient, match=r"builtins\.dict.*openai\.OpenAI"):
        conserve.wrap({})
    with pytest.raises(TypeError):
        conserve.wrap(None)


def test_a_failing_tagger_leaves_the_users_call_alone(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("conserve_sdk._tagging.resolve_caller", fail)
    client = conserve.wrap(model.client())
    with conserve.conversation("c-1"):
        assert ask(client).choices[0].message.content == "3"


def test_switched_off_nothing_is_touched(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSERVE_DISABLED", "1")
    client = conserve.wrap(model.client())
    assert client._client.event_hooks["request"] == []
    with conserve.conversation("c-1") as conversation, conversation.tool("search") as call:
        ask(client)
    assert call.outcome is conserve.Outcome.COMPLETED
    assert model.ids() == [None]
    with pytest.raises(conserve.ReportUnavailable, match="CONSERVE_DISABLED"):
        conversation.report()
