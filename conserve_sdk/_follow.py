"""A conversation as it happens: what the gateway tells of it as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from conserve_sdk import protocol
from conserve_sdk._carrier import CONNECT_TIMEOUT_S, CannotCarry, http_errors
from conserve_sdk._control import Gateway
from conserve_sdk._errors import GatewayRefused, GatewayUnreachable

if TYPE_CHECKING:
    import httpx2

_SILENCE_S: Final = 20.0
"""The gateway breaks its silence every 15 s: a longer one means that it is gone."""
_DATA: Final = "data: "
_OVER: Final = frozenset({"ended", "expired"})


def follow(gateway: Gateway, conversation_id: str) -> Iterator[protocol.ConversationUpdate]:
    """Each change, until the conversation has ended. Raises GatewayUnreachable or GatewayRefused."""
    request = _request(gateway, conversation_id)
    with (
        _translated(gateway),
        _client(gateway) as client,
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
    request = _request(gateway, conversation_id)
    with _translated(gateway):
        async with _async_client(gateway) as client, client.stream(**request) as answer:
            _check(gateway, answer)
            async for line in answer.aiter_lines():
                for change in _changes(line):
                    yield change
                    if change.report.state in _OVER:
                        return


def _request(gateway: Gateway, conversation_id: str) -> dict[str, Any]:
    url = gateway.url(protocol.LIVE_PATH, conversation=conversation_id)
    silence = (CONNECT_TIMEOUT_S, _SILENCE_S, _SILENCE_S, CONNECT_TIMEOUT_S)
    return {"method": "GET", "url": url, "headers": gateway.headers(), "timeout": silence}


def _client(gateway: Gateway) -> AbstractContextManager[httpx2.Client]:
    """The client that made the model call, which stays open, or one of the SDK's own."""
    import httpx2

    try:
        if gateway.carrier is not None:
            return nullcontext(gateway.carrier.sync_client())
    except CannotCarry:
        pass
    return httpx2.Client()


def _async_client(gateway: Gateway) -> AbstractAsyncContextManager[httpx2.AsyncClient]:
    """`_client` for asyncio."""
    import httpx2

    try:
        if gateway.carrier is not None:
            return nullcontext(gateway.carrier.async_client())
    except CannotCarry:
        pass
    return httpx2.AsyncClient()


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
    try:
        yield
    except http_errors() as error:
        raise GatewayUnreachable(
            f"the gateway at {gateway.root} stopped telling events: {error!r}"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise GatewayRefused(
            f"{gateway.root} told something else than events: {error!r}", status=200
        ) from error
