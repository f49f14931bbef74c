"""By which names a gateway can be reached: none that a web page from elsewhere can have."""

from __future__ import annotations

import pytest

from conserve_server.core.config import GatewayConfig, parse_config
from conserve_server.core.errors import ConfigError
from conserve_server.gateway.http.hosts import AllowedHosts
from tests.gateway.conftest import Serve
from tests.gateway.http.test_turn_protocol import BODY, PATH, connected, request

KEYS = {"research": {"api_keys": ["sk-research"]}}
OURS = [
    "localhost",
    "localhost:8000",
    "LOCALHOST.",
    "127.0.0.1:8000",
    "[::1]:8000",
    "192.168.1.5",
    "gateway:80",
]
OURS += ["gateway:80", "app.localhost", "host.docker.internal:8000", ""]
OTHERS = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example:80"]
OTHERS += ["evil.example.", "internal.example", "1.2.3.4.5", "my.local"]


@pytest.mark.parametrize("host", OURS)
def test_names_that_no_page_from_elsewhere_has_are_answered_to(host: str) -> None:
    hosts = AllowedHosts.from_config(GatewayConfig())
    assert hosts is not None
    assert hosts.allows(host)


@pytest.mark.parametrize("host", OTHERS)
def test_other_names_are_not(host: str) -> None:
    hosts = AllowedHosts.from_config(GatewayConfig())
    assert hosts is not None
    assert not hosts.allows(host)


@pytest.mark.parametrize(
    ("settings", "is_checked"),
    [
        ({}, True),
        ({"host": "::1"}, True),
        ({"host": "localhost"}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "10.0.0.5"}, False),
        ({"tenants": KEYS}, False),
        ({"allowed_hosts": ["*"]}, False),
        ({"host": "0.0.0.0", "allowed_hosts": ["gateway.example.org"]}, True),
        ({"tenants": KEYS, "allowed_hosts": ["gateway.example.org"]}, True),
    ],
)
def test_names_are_looked_at_where_nothing_else_protects_or_some_are_listed(
    settings: dict[str, object], is_checked: bool
) -> None:
    gateway = GatewayConfig(**settings)  # type: ignore[arg-type]
    assert (AllowedHosts.from_config(gateway) is not None) == is_checked


def named(asked: bytes, host: str) -> bytes:
    return asked.replace(b"host: gateway", f"host: {host}".encode())


@pytest.mark.parametrize(
    "asked",
    [
        request(),
        request("origin: http://evil.example"),
        request("host: localhost"),
        b"GET /v1/conversations HTTP/1.1\r\nhost: gateway\r\n\r\n",
        b"GET /v1/events HTTP/1.1\r\nhost: gateway\r\n\r\n",
        b"GET /ui HTTP/1.1\r\nhost: gateway\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\nhost: gateway\r\n\r\n",
        b"DELETE /v1/conversations/a HTTP/1.1\r\nhost: gateway\r\n\r\n",
    ],
)
async def test_a_request_for_another_name_is_a_403_on_every_route(serve: Serve, asked: bytes) -> None:
    async with serve() as gateway, connected(gateway.url) as client:
        client.send(named(asked, "evil.example:8000"))
        status, headers, body = await client.answer()
        assert status == 403
        assert b"host_not_allowed" in body
        assert b"gateway.allowed_hosts" in body
        assert headers["x-request-id"]
        assert headers["x-content-type-options"] == "nosniff"


async def test_a_listed_name_is_served(serve: Serve) -> None:
    async with serve(allowed_hosts=("gateway.example.org",)) as gateway, connected(gateway.url) as client:
        client.send(named(request(), "Gateway.example.org:443"))
        assert (await client.answer())[0] == 200


async def test_with_keys_every_name_is_served(serve: Serve) -> None:
    async with serve(tenants=KEYS) as gateway:
        headers = {"host": "evil.example", "authorization": "Bearer sk-research"}
        assert (await gateway.client.post(PATH, content=BODY, headers=headers)).status_code == 200


def test_a_name_with_a_port_cannot_be_listed() -> None:
    document = {
        "pools": {"decode": {"engines": ["http://127.0.0.1:1"]}},
        "gateway": {"allowed_hosts": ["gateway.example.org:8000"]},
    }
    with pytest.raises(ConfigError, match="without a port"):
        parse_config(document)
