"""Every kind of client and of call: what carries the conversation, and what is left as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import httpx2
import pytest
from openai import AsyncOpenAI, AzureOpenAI, OpenAI
from pydantic import BaseModel

import conserve_sdk as conserve
from conserve_sdk import protocol
from tests.sdk.conftest import GATEWAY, FakeControl, FakeModel

QUESTION: Any = [{"role": "user", "content": "1 + 2?"}]


class Answer(BaseModel):
    total: int


RESPONSE = {
    "id": "r",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "status": "completed",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "output": [
        {
            "id": "o",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": '{"total": 3}', "annotations": []}],
        }
    ],
}
ANSWERS: dict[str, dict[str, Any]] = {
    "responses": RESPONSE,
    "embeddings": {
        "object": "list",
        "model": "m",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    },
    "models": {"object": "list", "data": []},
    "completions": {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "text": "3",
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": '{"total": 3}'},
            }
        ],
    },
}


class Server:
    """Answers every endpoint of OpenAI's that is called here, and keeps them; no way for control calls."""

    def __init__(self) -> None:
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if protocol.CONVERSATIONS_PATH in request.url.path:
            raise httpx2.ConnectError("no control calls here")
        self.requests.append(request)
        name = request.url.path.rpartition("/")[2]
        if request.content and json.loads(request.content).get("stream"):
            event = {"type": "response.completed", "sequence_number": 0, "response": RESPONSE}
            return httpx2.Response(
                200,
                headers={"content-type": "text/event-stream"},
                content=f"event: response.completed\ndata: {json.dumps(event)}\n\n",
            )
        return httpx2.Response(200, json=ANSWERS[name])

    def client(self) -> OpenAI:
        http = httpx2.Client(transport=httpx2.MockTransport(self))
        return conserve.wrap(OpenAI(base_url=GATEWAY, api_key="key", http_client=http))

    def ids(self) -> list[str | None]:
        return [request.headers.get(protocol.CONVERSATION_ID) for request in self.requests]


CALLS: dict[str, Callable[[OpenAI], object]] = {
    "chat": lambda c: c.chat.completions.create(model="m", messages=QUESTION),
    "completion": lambda c: c.completions.create(model="m", prompt="1 + 2?"),
    "response": lambda c: c.responses.create(model="m", input="1 + 2?"),
    "streamed response": lambda c: list(c.responses.create(model="m", input="1 + 2?", stream=True)),
    "parsed response": lambda c: c.responses.parse(model="m", input="1 + 2?", text_format=Answer),
    "parsed chat": lambda c: c.chat.completions.parse(model="m", messages=QUESTION, response_format=Answer),
    "raw": lambda c: c.chat.completions.with_raw_response.create(model="m", messages=QUESTION).parse(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_every_kind_of_model_call_carries_the_conversation(call: Callable[[OpenAI], object]) -> None:
    server = Server()
    with conserve.conversation("c-1"):
        assert call(server.client())
    assert server.ids() == ["c-1"]


def test_a_response_that_is_streamed_by_hand_carries_it_too() -> None:
    server = Server()
    create = server.client().chat.completions.with_streaming_response.create
    with conserve.conversation("c-1"), create(model="m", messages=QUESTION) as response:
        assert json.loads(response.read())["id"] == "c"
    assert server.ids() == ["c-1"]


def test_helpers_that_parse_give_what_they_give_without_the_sdk() -> None:
    with conserve.conversation():
        parsed = (
            Server().client().chat.completions.parse(model="m", messages=QUESTION, response_format=Answer)
        )
    assert parsed.choices[0].message.parsed == Answer(total=3)


def test_what_is_no_turn_is_left_as_it_is(control: FakeControl) -> None:
    server = Server()
    client = server.client()
    with conserve.conversation("c-1"):
        client.embeddings.create(model="m", input="ferry")
        client.models.list()
    assert server.ids() == [None, None]
    assert not any(name.startswith("x-conserve") for r in server.requests for name in r.headers)
    assert control.calls == []  # a gateway that served no turn has nothing to release


@pytest.mark.parametrize(
    ("options", "root"),
    [
        ({"azure_endpoint": "http://gateway.test"}, "http://gateway.test"),
        ({"base_url": "http://gateway.test/v1"}, "http://gateway.test"),
        ({"base_url": "http://gateway.test/below/openai/deployments/m"}, "http://gateway.test/below"),
    ],
)
def test_azure_clients_carry_it_and_their_gateway_is_found(
    options: dict[str, Any], root: str, control: FakeControl
) -> None:
    server = Server()
    http = httpx2.Client(transport=httpx2.MockTransport(server))
    azure = AzureOpenAI(api_key="key", api_version="2026-01-01", http_client=http, **options)
    client = conserve.wrap(azure)
    with conserve.conversation("c-1"):
        client.chat.completions.create(model="m", messages=QUESTION)
    assert server.ids() == ["c-1"]
    released = f"{root}/v1/conversations/c-1?api-version=2026-01-01"
    assert [str(request.url) for request in control.requests] == [released]


def test_azures_own_servers_get_no_identifier() -> None:
    for host in ("x.openai.azure.com", "x.cognitiveservices.azure.com", "x.services.ai.azure.com"):
        http = httpx2.Client(transport=httpx2.MockTransport(Server()))
        with pytest.warns(UserWarning, match=host):
            conserve.wrap(OpenAI(base_url=f"https://{host}/openai/v1", api_key="key", http_client=http))


def test_a_ready_client_may_be_given_to_openai(model: FakeModel) -> None:
    with conserve.http_client(GATEWAY, transport=httpx2.MockTransport(model)) as http:
        client = OpenAI(base_url=GATEWAY, api_key="key", http_client=http)
        with conserve.conversation("c-1"):
            client.chat.completions.create(model="m", messages=QUESTION)
        assert client.timeout == OpenAI(api_key="key").timeout
    assert model.ids() == ["c-1"]


async def test_a_ready_async_client_may_be_given_to_openai(model: FakeModel) -> None:
    transport = httpx2.MockTransport(model)
    async with conserve.async_http_client(GATEWAY, timeout=7.0, transport=transport) as http:
        client = AsyncOpenAI(base_url=GATEWAY, api_key="key", http_client=http)
        async with conserve.conversation("c-1"):
            await client.chat.completions.create(model="m", messages=QUESTION)
        assert http.timeout == httpx2.Timeout(7.0)
    assert model.ids() == ["c-1"]


def test_clients_of_the_old_httpx_are_hooked_alike() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=ANSWERS["completions"])

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        conserve.wrap(http, base_url=GATEWAY)
        with conserve.conversation("c-1"):
            http.post(f"{GATEWAY}/chat/completions", json={})
    assert seen[0].headers[protocol.CONVERSATION_ID] == "c-1"


async def test_an_openai_client_over_the_old_httpx_is_hooked_too() -> None:
    seen: list[httpx.Request] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=ANSWERS["completions"])

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        client = AsyncOpenAI(base_url=GATEWAY, api_key="key", http_client=http)  # type: ignore[arg-type]
        async with conserve.wrap(client), conserve.conversation("c-1"):
            await client.chat.completions.create(model="m", messages=QUESTION)
    assert seen[0].headers[protocol.CONVERSATION_ID] == "c-1"


def test_a_model_that_holds_a_client_is_hooked_through_it(model: FakeModel) -> None:
    class FrameworksModel:
        def __init__(self, client: OpenAI) -> None:
            self.client = client

    held = conserve.wrap(FrameworksModel(model.client())).client
    with conserve.conversation("c-1"):
        held.chat.completions.create(model="m", messages=QUESTION)
    assert model.ids() == ["c-1"]
