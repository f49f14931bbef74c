"""Control calls go where model calls went, past whatever stands before the gateway."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import httpx2
import pytest
from openai import OpenAI

import conserve_sdk as conserve
from conserve_sdk._control import Gateway
from conserve_sdk._delivery import Delivery, Release

if TYPE_CHECKING:
    from tests.sdk.conftest import FakeControl, FakeModel


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
