"""What goes on a request: the conversation and the trace context, and only where they belong."""

from __future__ import annotations

import functools
import logging
import sys
from typing import TYPE_CHECKING, Final

from conserve_sdk._control import Gateway
from conserve_sdk._hosts import AllowList, Origin
from conserve_sdk._identity import Identity, resolve_identity
from conserve_sdk.protocol import CONVERSATION_ID

if TYPE_CHECKING:
    import httpx2

_log = logging.getLogger("conserve_sdk")

_ADDED: Final = "conserve_sdk.added"
"""Key of a request's extensions: the headers that we put there, so that a redirect can shed them."""
_ANSWERED: Final = "conserve_sdk.answered"
"""Key of a request's extensions: what to call once the gateway has answered."""

_TURNS: Final = ("/chat/completions", "/completions", "/responses", "/messages")
"""How the paths of model calls end that are turns, Azure's included; embeddings and the rest are none."""


@functools.lru_cache(maxsize=256)
def _origin(url: str) -> Origin:
    """Most requests of a process go to one address."""
    return Origin.of_url(url)


@functools.lru_cache(maxsize=256)
def _root(url: str) -> str:
    return Gateway.seen_at(url, None).root


class RequestTagger:
    """Puts a conversation's headers and the trace context on model calls to allowed servers.

    It never raises: a request goes out untagged rather than not at all.
    """

    def __init__(self, allowed: AllowList) -> None:
        self.allowed = allowed
        self._has_warned = False

    def tag(self, request: httpx2.Request) -> None:
        """Add what is missing; on a redirect to a server that is not allowed, take it off again."""
        try:
            if not self.allowed.allows(_origin(str(request.url))):
                self._remove(request)
            elif request.url.path.endswith(_TURNS):
                self._add(request)
        except Exception:  # noqa: BLE001 - nothing may reach the user's call
            _log.debug("a request went out without its conversation", exc_info=True)

    def _add(self, request: httpx2.Request) -> None:
        identity = resolve_identity()
        wanted = {} if identity is None else identity.headers()
        added = [name for name in wanted if name not in request.headers]
        for name in added:  # one by one: `update` takes twice as long
            request.headers[name] = wanted[name]
        added += _inject_trace_context(request)
        request.extensions[_ADDED] = (*request.extensions.get(_ADDED, ()), *added)
        if identity is not None:
            self._note(request, identity)

    def _note(self, request: httpx2.Request, identity: Identity) -> None:
        """Tell the conversation where it was seen, unless the user's own header names another."""
        if identity.other_thread_id is not None and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "the LangGraph thread %s runs inside conversation %s: requests carry the latter; "
                "pass conversation.langgraph_config() to the graph, so that both agree",
                identity.other_thread_id,
                identity.conversation_id,
            )
        is_ours = request.headers[CONVERSATION_ID] == identity.conversation_id
        if is_ours and identity.note_gateway is not None:
            authorization = request.headers.get("authorization")
            gateway = Gateway(_root(str(request.url)), authorization)
            request.extensions[_ANSWERED] = identity.note_gateway(gateway)

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

    def __init__(self, tagger: RequestTagger) -> None:
        self.tagger = tagger

    def __call__(self, request: httpx2.Request) -> None:
        self.tagger.tag(request)


class AsyncHook:
    """The request hook of an `httpx2.AsyncClient`."""

    def __init__(self, tagger: RequestTagger) -> None:
        self.tagger = tagger

    async def __call__(self, request: httpx2.Request) -> None:
        self.tagger.tag(request)


def _inject_trace_context(request: httpx2.Request) -> list[str]:
    """Make the server's spans children of the current one; the names of the headers set.

    W3C's format whatever `OTEL_PROPAGATORS` says: it is what the gateway reads, and baggage
    is not for it. A process that has not loaded OpenTelemetry has no current span.
    """
    if "opentelemetry.trace" not in sys.modules or "traceparent" in request.headers:
        return []
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    for name, value in carrier.items():
        request.headers[name] = value
    return list(carrier)
