"""What goes on a request: the conversation and the trace context, and only where they belong."""

from __future__ import annotations

import functools
import logging
import sys
import weakref
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from conserve_sdk._carrier import AsyncCarrier, Carrier, SyncCarrier, async_carrier
from conserve_sdk._control import Gateway
from conserve_sdk._hosts import AllowList, Origin
from conserve_sdk._identity import Identity
from conserve_sdk._resolving import resolve_caller
from conserve_sdk.protocol import CONVERSATION_ID

if TYPE_CHECKING:
    import httpx2
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_log = logging.getLogger("conserve_sdk")

_ADDED: Final = "conserve_sdk.added"
"""Key of a request's extensions: the headers that we put there, so that a redirect can shed them."""
_ANSWERED: Final = "conserve_sdk.answered"
"""Key of a request's extensions: what to call once the gateway has answered, if anyone waits for it."""

_CONVERSATION_ID: Final = CONVERSATION_ID.encode()

_OF_ONE_REQUEST: Final = frozenset(
    {"authorization", "host", "connection", "transfer-encoding", "user-agent", "expect", "te", "trailer"}
    | {"traceparent", "tracestate", "baggage", "idempotency-key", "x-request-id"}
)
_OF_ONE_REQUEST_STARTS: Final = ("content-", "accept", "x-conserve-", "x-stainless-", "if-")
"""Headers of a model call that mean nothing, or something else, on a control call."""

_TURNS: Final = ("/chat/completions", "/completions", "/responses", "/messages")
"""How the paths of model calls end that are turns, Azure's included; embeddings and the rest are none."""


@dataclass(frozen=True, slots=True)
class _Destination:
    """What the address of a request tells: whether it may be tagged, and the gateway's root there."""

    is_allowed: bool
    is_turn: bool
    root: str

    @classmethod
    def of(cls, allowed: AllowList, url: str) -> _Destination:
        is_turn = unquote(urlsplit(url).path).endswith(_TURNS)
        return cls(allowed.allows(Origin.of_url(url)), is_turn, Gateway.seen_at(url, None).root)


class RequestTagger:
    """Puts a conversation's headers and the trace context on model calls to allowed servers.

    It never raises: a request goes out untagged rather than not at all. Most requests of a
    process go to one address, so what an address tells is kept.
    """

    def __init__(self, allowed: AllowList) -> None:
        self._allow_only(allowed)
        self._has_warned = False

    def allow(self, more: AllowList) -> None:
        """Tag requests to these servers too."""
        self._allow_only(AllowList(self._allowed.entries | more.entries))

    def _allow_only(self, allowed: AllowList) -> None:
        self._allowed = allowed
        self._destination = functools.lru_cache(maxsize=256)(functools.partial(_Destination.of, allowed))

    def tag(self, request: httpx2.Request, carrier: Carrier | None) -> None:
        """Add what is missing; on a redirect to a server that is not allowed, take it off again."""
        try:
            destination = self._destination(str(request.url))
            if not destination.is_allowed:
                self._remove(request)
            elif destination.is_turn:
                self._add(request, destination.root, carrier)
        except Exception:  # noqa: BLE001 - nothing may reach the user's call
            _log.debug("a request went out without its conversation", exc_info=True)

    def _add(self, request: httpx2.Request, root: str, carrier: Carrier | None) -> None:
        # One pass over the headers: each look-up in them would be one, and `update` is several.
        present = {name.lower(): value for name, value in request.headers.raw}
        identity = resolve_caller()
        wanted = _trace_context(present)
        if identity is not None:
            wanted.update(identity.headers)
        added = [name for name in wanted if name.encode() not in present]
        for name in added:
            request.headers[name] = wanted[name]
        request.extensions[_ADDED] = (*request.extensions.get(_ADDED, ()), *added)
        if identity is not None:
            if identity.other_thread_id is not None:
                self._warn_of_other_thread(identity)
            _note(request, identity, root, present, carrier)

    def _warn_of_other_thread(self, identity: Identity) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "the LangGraph thread %s runs inside conversation %s: requests carry the latter; "
                "pass conversation.langgraph_config() to the graph, so that both agree",
                identity.other_thread_id,
                identity.conversation_id,
            )

    def _remove(self, request: httpx2.Request) -> None:
        for name in request.extensions.get(_ADDED, ()):
            request.headers.pop(name, None)


def note_answer(response: httpx2.Response) -> None:
    """The gateway knows the conversation from here on, if it took the request."""
    answered = response.request.extensions.get(_ANSWERED)
    if answered is not None and response.is_success:
        answered()


async def note_answer_async(response: httpx2.Response) -> None:
    """`note_answer` for an asynchronous client."""
    note_answer(response)


class SyncHook:
    """The request hook of an `httpx2.Client`."""

    def __init__(self, tagger: RequestTagger, client: Any) -> None:
        self.tagger = tagger
        self._carrier = SyncCarrier(client)

    def __call__(self, request: httpx2.Request) -> None:
        self.tagger.tag(request, self._carrier)


class AsyncHook:
    """The request hook of an `httpx2.AsyncClient`."""

    def __init__(self, tagger: RequestTagger, client: Any) -> None:
        self.tagger = tagger
        self._client = weakref.ref(client)
        self._carrier: AsyncCarrier | None = None

    async def __call__(self, request: httpx2.Request) -> None:
        try:
            self._carrier = async_carrier(self._client(), self._carrier)
        except Exception:  # noqa: BLE001 - nothing may reach the user's call
            _log.debug("control calls go by a client of their own", exc_info=True)
        self.tagger.tag(request, self._carrier)


def _note(
    request: httpx2.Request,
    identity: Identity,
    root: str,
    present: Mapping[bytes, bytes],
    carrier: Carrier | None,
) -> None:
    """Tell the conversation where it was seen, unless the user's own header names another."""
    own_id = identity.conversation_id.encode()
    if identity.note_gateway is not None and present.get(_CONVERSATION_ID, own_id) == own_id:
        authorization = present.get(b"authorization")
        gateway = Gateway(
            root,
            authorization.decode("latin-1") if authorization is not None else None,
            tuple(_of_the_client(present)),
            request.url.query.decode("ascii"),
            carrier,
        )
        request.extensions[_ANSWERED] = identity.note_gateway(gateway)


def _of_the_client(present: Mapping[bytes, bytes]) -> Iterator[tuple[str, str]]:
    """The headers that are the client's own and not this one request's."""
    for raw, value in present.items():
        name = raw.decode("latin-1")
        if name not in _OF_ONE_REQUEST and not name.startswith(_OF_ONE_REQUEST_STARTS):
            yield name, value.decode("latin-1")


def _trace_context(present: Container[bytes]) -> dict[str, str]:
    """The headers that make the server's spans children of the current one; none where one is present.

    W3C's format whatever `OTEL_PROPAGATORS` says: it is what the gateway reads, and baggage
    is not for it. A process that has not loaded OpenTelemetry has no current span.
    """
    carrier: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules and b"traceparent" not in present:
        _propagator().inject(carrier)
    return carrier


@functools.cache
def _propagator() -> TraceContextTextMapPropagator:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()
