"""A conversation as it happens: what the gateway tells of it as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from conserve_sdk import protocol
from conserve_sdk._carrier import CONNECT_TIMEOUT_S, http_errors
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
    with _translated(gateway), ExitStack() as stack:
        for line in _opened(stack, gateway, request).iter_lines():
            for change in _changes(line):
                yield change
                if change.report.state in _OVER:
                    return


async def afollow(gateway: Gateway, conversation_id: str) -> AsyncIterator[protocol.ConversationUpdate]:
    """`follow` for asyncio."""
    request = _request(gateway, conversation_id)
    with _translated(gateway):
        async with AsyncExitStack() as stack:
            answer = await _aopened(stack, gateway, request)
            async for line in answer.aiter_lines():
                for change in _changes(line):
                    yield change
                    if change.report.state in _OVER:
                        return


def _opened(stack: ExitStack, gateway: Gateway, request: dict[str, Any]) -> httpx2.Response:
    """The stream, by a client of the SDK's own, which outlives the user's, or else by that one."""
    import httpx2

    own = stack.enter_context(httpx2.Client())
    try:
        return _checked(gateway, stack.enter_context(own.stream(**request)))
    except (httpx2.HTTPError, GatewayRefused):
        borrowed = None if gateway.carrier is None else gateway.carrier.sync_client()
        if borrowed is None:
            raise
    return _checked(gateway, stack.enter_context(borrowed.stream(**request)))


async def _aopened(stack: AsyncExitStack, gateway: Gateway, request: dict[str, Any]) -> httpx2.Response:
    """`_opened` for asyncio."""
    import httpx2

    own = await stack.enter_async_context(httpx2.AsyncClient())
    try:
        return _checked(gateway, await stack.enter_async_context(own.stream(**request)))
    except (httpx2.HTTPError, GatewayRefused):
        borrowed = None if gateway.carrier is None else gateway.carrier.async_client()
        if borrowed is None:
            raise
    return _checked(gateway, await stack.enter_async_context(borrowed.stream(**request)))


def _request(gateway: Gateway, conversation_id: str) -> dict[str, Any]:
    url = gateway.url(protocol.LIVE_PATH, conversation=conversation_id)
    silence = (CONNECT_TIMEOUT_S, _SILENCE_S, _SILENCE_S, CONNECT_TIMEOUT_S)
    return {"method": "GET", "url": url, "headers": gateway.headers(), "timeout": silence}


def _changes(line: str) -> tuple[protocol.ConversationUpdate, ...]:
    """What one line of the stream tells; nothing for what is no data."""
    if not line.startswith(_DATA):
        return ()
    return protocol.Update.from_json(json.loads(line.removeprefix(_DATA))).conversations


def _checked(gateway: Gateway, answer: httpx2.Response) -> httpx2.Response:
    if not answer.is_success:
        raise GatewayRefused(
            f"{gateway.root}{protocol.LIVE_PATH} answered {answer.status_code} instead of events",
            status=answer.status_code,
        )
    return answer


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
