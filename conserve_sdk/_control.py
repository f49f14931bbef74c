"""What the SDK asks of a gateway beside model calls: take events, release, report.

Requests and answers are plain values here; the drivers at the end do the I/O.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from conserve_sdk import protocol
from conserve_sdk._carrier import CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S, Carrier
from conserve_sdk._errors import GatewayRefused, GatewayUnreachable

if TYPE_CHECKING:
    import httpx2
    from tenacity import AsyncRetrying, RetryCallState, Retrying
    from tenacity.stop import stop_base

_log = logging.getLogger("conserve_sdk")

_ATTEMPTS: Final = 4
_FIRST_BACKOFF_S: Final = 0.05
_LONGEST_BACKOFF_S: Final = 0.5
_OWN_PARAMS: Final = frozenset({"model", "tenant", "limit", "conversation"})
"""What the gateway's own routes ask for in a query."""
_AZURE: Final = "/openai/deployments/"
_TRANSIENT: Final = frozenset(
    {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway as a conversation's own requests showed it.

    `root` is its URL up to and without `/v1`; `authorization` is the header that the user's
    client sent, so that control calls are let in where the model calls were.
    """

    root: str
    authorization: str | None = field(default=None, repr=False)
    others: tuple[tuple[str, str], ...] = field(default=(), repr=False, compare=False)
    """What else of the model call's headers a front door may ask for."""
    query: str = field(default="", repr=False, compare=False)
    """The model call's query, as it was in its URL."""
    carrier: Carrier | None = field(default=None, repr=False, compare=False)
    """The client that made the model call."""

    @classmethod
    def seen_at(cls, url: str, authorization: str | None) -> Gateway:
        """The gateway that serves `url`, the address of one of its `/v1/...` endpoints (or Azure's alike)."""
        parts = urlsplit(url)
        prefix, found, _ = parts.path.partition("/v1/")
        if not found:
            prefix, found, _ = parts.path.partition(_AZURE)
        return cls(f"{parts.scheme}://{parts.netloc}{prefix if found else ''}", authorization)

    def headers(self) -> dict[str, str]:
        """What every control call carries."""
        own = {} if self.authorization is None else {"authorization": self.authorization}
        return {**dict(self.others), **own}

    def url(self, path: str, **params: str) -> str:
        """A control call's URL: `params`, and what of the model call's query means nothing else here."""
        of_model_call = parse_qsl(self.query, keep_blank_values=True)
        kept = [(name, value) for name, value in of_model_call if name not in _OWN_PARAMS]
        query = urlencode([*kept, *params.items()])
        return self.root + path + (f"?{query}" if query else "")


@dataclass(frozen=True, slots=True)
class ControlCall:
    """One request to a gateway."""

    gateway: Gateway
    method: str
    path: str
    body: dict[str, Any] | None = None

    @property
    def url(self) -> str:
        return self.gateway.url(self.path)

    @property
    def address(self) -> str:
        """What messages call it: without the query, which may hold a key."""
        return self.gateway.root + self.path

    @property
    def options(self) -> dict[str, Any]:
        """What a client takes beside method and URL."""
        return {"json": self.body, "headers": self.gateway.headers()}


def release_call(gateway: Gateway, conversation_id: str) -> ControlCall:
    """Tell the gateway that the conversation has ended."""
    return ControlCall(gateway, "DELETE", protocol.conversation_path(conversation_id))


def report_call(gateway: Gateway, conversation_id: str) -> ControlCall:
    """Ask what the gateway observed of the conversation."""
    return ControlCall(gateway, "GET", protocol.conversation_path(conversation_id))


def events_call(
    gateway: Gateway, conversation_id: str, events: tuple[protocol.ToolEvent, ...]
) -> ControlCall:
    """Hand over tool boundaries, in the order in which they happened."""
    body = protocol.EventsDocument(events).to_json()
    return ControlCall(gateway, "POST", protocol.events_path(conversation_id), body)


def retrying(stop: stop_base | None = None, **options: Any) -> Retrying:
    """The retry rule of control calls: connection errors and 502, 503, 504, a few times, with jitter."""
    import tenacity

    return tenacity.Retrying(**_retry_rule(stop), **options)


def send(client: httpx2.Client, call: ControlCall) -> httpx2.Response:
    """One attempt: by the client that made the model call, else by this one of the SDK's own."""
    if call.gateway.carrier is not None:
        try:
            return call.gateway.carrier.send(call.method, call.url, **call.options)
        except Exception:  # noqa: BLE001 - it is the user's, and may raise anything
            _log.debug("a control call goes by a client of its own", exc_info=True)
    return client.request(call.method, call.url, **call.options)


async def asend(client: httpx2.AsyncClient, call: ControlCall) -> httpx2.Response:
    """`send` for asyncio."""
    if call.gateway.carrier is not None:
        try:
            return await call.gateway.carrier.asend(call.method, call.url, **call.options)
        except Exception:  # noqa: BLE001 - it is the user's, and may raise anything
            _log.debug("a control call goes by a client of its own", exc_info=True)
    return await client.request(call.method, call.url, **call.options)


def fetch_report(gateway: Gateway, conversation_id: str) -> protocol.ConversationReport:
    """The conversation as the gateway observed it. Raises GatewayUnreachable or GatewayRefused."""
    import httpx2

    call = report_call(gateway, conversation_id)
    try:
        with control_client() as client:
            response = retrying()(send, client, call)
    except httpx2.HTTPError as error:
        raise _unreachable(call, error) from error
    return _read_report(call, response)


async def afetch_report(gateway: Gateway, conversation_id: str) -> protocol.ConversationReport:
    """`fetch_report` for asyncio."""
    import httpx2

    call = report_call(gateway, conversation_id)
    try:
        async with httpx2.AsyncClient(timeout=_timeout()) as client:
            response: httpx2.Response = await _async_retrying()(asend, client, call)
    except httpx2.HTTPError as error:
        raise _unreachable(call, error) from error
    return _read_report(call, response)


def control_client() -> httpx2.Client:
    """A client of the SDK's own: the user's may be asynchronous, closed or busy."""
    import httpx2

    return httpx2.Client(timeout=_timeout())


def _timeout() -> httpx2.Timeout:
    """Control calls answer from memory: a gateway that takes longer is not there."""
    import httpx2

    return httpx2.Timeout(REQUEST_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)


def _async_retrying() -> AsyncRetrying:
    import tenacity

    return tenacity.AsyncRetrying(**_retry_rule(None))


def _retry_rule(stop: stop_base | None) -> dict[str, Any]:
    import httpx2
    import tenacity

    attempts = tenacity.stop_after_attempt(_ATTEMPTS)
    return {
        "stop": attempts if stop is None else attempts | stop,
        "wait": tenacity.wait_random_exponential(multiplier=_FIRST_BACKOFF_S, max=_LONGEST_BACKOFF_S),
        "retry": tenacity.retry_if_exception_type((httpx2.ConnectError, httpx2.ConnectTimeout))
        | tenacity.retry_if_result(lambda response: response.status_code in _TRANSIENT),
        "retry_error_callback": _last_result,
    }


def _last_result(state: RetryCallState) -> Any:
    """The last answer, or the last error raised, rather than tenacity's own error."""
    return state.outcome.result() if state.outcome is not None else None


def _unreachable(call: ControlCall, error: Exception) -> GatewayUnreachable:
    return GatewayUnreachable(f"the gateway at {call.gateway.root} did not answer {call.path}: {error!r}")


def _read_report(call: ControlCall, response: httpx2.Response) -> protocol.ConversationReport:
    status = response.status_code
    if status == HTTPStatus.NOT_FOUND:
        raise GatewayRefused(
            f"{call.gateway.root} knows no conversation {call.path.rsplit('/', 1)[-1]}: it is no ConServe "
            "gateway, or it has forgotten a conversation that ended long ago",
            status=status,
        )
    if status != HTTPStatus.OK:
        raise GatewayRefused(f"{call.address} answered {status} instead of a report", status=status)
    try:
        return protocol.ConversationReport.from_json(response.json())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GatewayRefused(
            f"{call.address} answered something else than a report: {error!r}", status=status
        ) from error
