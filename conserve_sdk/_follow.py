"""A conversation as it happens: what the gateway tells of it as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from conserve_sdk import protocol
from conserve_sdk._control import CONNECT_TIMEOUT_S, Gateway
from conserve_sdk._errors import GatewayRefused, GatewayUnreachable

if TYPE_CHECKING:
    import httpx2

_SILENCE_S: Final = 20.0
"""The gateway breaks its silence every 15 s: a longer one means that it is gone."""
_DATA: Final = "data: "
_OVER: Final = frozenset({"ended", "expired"})


def follow(gateway: Gateway, conversation_id: str) -> Iterator[protocol.ConversationUpdate]:
    """Each change, until the conversation has ended. Raises GatewayUnreachable or GatewayRefused."""
    import httpx2

    request = _request(gateway, conversation_id)
    with (
        _translated(gateway),
        httpx2.Client(timeout=_timeout()) as client,
        client.stream(**request) as answer,
    ):
        _check(gateway, answer)
        for line in answer.iter_lines():
            for change in _changes(line):
                yield change
                if change.report.state in _OVER:
                    return


async def afollow(gateway: Gateway, conversation_id: str) -> AsyncIterator[protocol.ConversationUpdate]:
    """`follow` for asyncio."""
    import httpx2

    request = _request(gateway, conversation_id)
    with _translated(gateway):
        async with httpx2.AsyncClient(timeout=_timeout()) as client, client.stream(**request) as answer:
            _check(gateway, answer)
            async for line in answer.aiter_lines():
                for change in _changes(line):
                    yield change
                    if change.report.state in _OVER:
                        return


def _request(gateway: Gateway, conversation_id: str) -> dict[str, Any]:
    params = {"conversation": conversation_id}
    url = gateway.root + protocol.LIVE_PATH
    return {"method": "GET", "url": url, "params": params, "headers": gateway.headers()}


def _changes(line: str) -> tuple[protocol.ConversationUpdate, ...]:
    """What one line of the stream tells; nothing for what is no data."""
    if not line.startswith(_DATA):
        return ()
    return protocol.Update.from_json(json.loads(line.removeprefix(_DATA))).conversations


def _check(gateway: Gateway, answer: httpx2.Response) -> None:
    if not answer.is_success:
        raise GatewayRefused(
            f"{gateway.root}{protocol.LIVE_PATH} answered {answer.status_code} instead of events",
            status=answer.status_code,
        )


@contextmanager
def _translated(gateway: Gateway) -> Iterator[None]:
    import httpx2

    try:
        yield
    except httpx2.HTTPError as error:
        raise GatewayUnreachable(
            f"the gateway at {gateway.root} stopped telling events: {error!r}"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise GatewayRefused(
            f"{gateway.root} told something else than events: {error!r}", status=200
        ) from error


def _timeout() -> httpx2.Timeout:
    import httpx2

    return httpx2.Timeout(_SILENCE_S, connect=CONNECT_TIMEOUT_S)
