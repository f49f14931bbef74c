"""Tagging the requests of a client that the user already has."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeGuard, TypeVar

from conserve_sdk._control import Gateway
from conserve_sdk._errors import UnsupportedClient
from conserve_sdk._hosts import AllowList, Origin
from conserve_sdk._identity import Identity, resolve_identity
from conserve_sdk._settings import ALLOWED_HOSTS_VARIABLE, extra_allowed_hosts, is_disabled
from conserve_sdk.protocol import CONVERSATION_ID

if TYPE_CHECKING:
    import httpx2

ClientT = TypeVar("ClientT")

_log = logging.getLogger("conserve_sdk")

_ADDED: Final = "conserve_sdk.added"
"""Key of a request's extensions: the headers that we put there, so that a redirect can shed them."""
_ANSWERED: Final = "conserve_sdk.answered"
"""Key of a request's extensions: what to call once the gateway has answered."""

_ACCEPTED: Final = (
    "openai.OpenAI, openai.AsyncOpenAI, langchain_openai.ChatOpenAI, httpx2.Client or httpx2.AsyncClient"
)


class RequestTagger:
    """Puts a conversation's headers and the trace context on requests to allowed servers.

    It never raises: a request goes out untagged rather than not at all.
    """

    def __init__(self, allowed: AllowList) -> None:
        self.allowed = allowed
        self._has_warned = False

    def tag(self, request: httpx2.Request) -> None:
        """Add what is missing; on a redirect to a server that is not allowed, take it off again."""
        try:
            if self.allowed.allows(Origin.of_url(str(request.url))):
                self._add(request)
            else:
                self._remove(request)
        except Exception:  # noqa: BLE001 - nothing may reach the user's call
            _log.debug("a request went out without its conversation", exc_info=True)

    def _add(self, request: httpx2.Request) -> None:
        identity = resolve_identity()
        wanted = {} if identity is None else identity.headers()
        added = [name for name in wanted if name not in request.headers]
        request.headers.update({name: wanted[name] for name in added})
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
            gateway = Gateway.seen_at(str(request.url), authorization)
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
    """`note_answer` for an `httpx2.AsyncClient`."""
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
    request.headers.update(carrier)
    return list(carrier)


@dataclass(frozen=True, slots=True)
class _Hookable:
    """An httpx2 client, and where the client around it points."""

    http: httpx2.Client | httpx2.AsyncClient
    base_url: str


def wrap(client: ClientT, *, base_url: str | None = None) -> ClientT:
    """The same client, whose requests now carry the conversation of the block that makes them.

    Takes OpenAI, AsyncOpenAI, LangChain's ChatOpenAI, or an httpx2 client; wrapping twice
    changes nothing, and copies made by `with_options()` are wrapped too. Identifiers go to
    the server that the client points at (`base_url` says which where the client does not)
    and to those in `CONSERVE_ALLOWED_HOSTS`, never to a model vendor's own server unless
    listed there. Raises UnsupportedClient for anything else, and ValueError where no server
    is known. With `CONSERVE_DISABLED` set, the client comes back untouched.
    """
    if not is_disabled():
        for hookable in list(_hookables(client, base_url)):
            _hook(hookable)
    return client


def _hookables(client: object, base_url: str | None) -> Iterator[_Hookable]:
    roots = [getattr(client, name, None) for name in ("root_client", "root_async_client")]
    if any(root is not None for root in roots):
        for root in roots:
            if root is not None:
                yield from _hookables(root, base_url)
        return
    http: object = client if _is_httpx2(client) else getattr(client, "_client", None)
    if not _is_httpx2(http):
        raise _unsupported(client, http)
    yield _Hookable(http, base_url or str(getattr(client, "base_url", "")))


def _is_httpx2(candidate: object) -> TypeGuard[httpx2.Client | httpx2.AsyncClient]:
    """Whether this is an httpx2 client; nobody holds one without having imported httpx2."""
    httpx2 = sys.modules.get("httpx2")
    return httpx2 is not None and isinstance(candidate, (httpx2.Client, httpx2.AsyncClient))


def _unsupported(client: object, http: object) -> UnsupportedClient:
    name = f"{type(client).__module__}.{type(client).__qualname__}"
    if "httpx" in (_package(client), _package(http)):
        return UnsupportedClient(
            f"wrap() cannot hook {name}: it sends with httpx, and only httpx2 clients are supported; "
            "update openai to 3.50 or later and give it an httpx2 client, or none"
        )
    return UnsupportedClient(f"wrap() cannot hook {name}: give it {_ACCEPTED}")


def _package(candidate: object) -> str:
    return type(candidate).__module__.partition(".")[0]


def _hook(hookable: _Hookable) -> None:
    """Install the hook, or teach the one that is there another server."""
    allowed = _allow_list(hookable.base_url)
    hooks = hookable.http.event_hooks["request"]
    for hook in hooks:
        if isinstance(hook, (SyncHook, AsyncHook)):
            hook.tagger.allowed = AllowList(hook.tagger.allowed.entries | allowed.entries)
            return
    tagger = RequestTagger(allowed)
    is_sync = _is_sync(hookable.http)
    hooks.append(SyncHook(tagger) if is_sync else AsyncHook(tagger))
    hookable.http.event_hooks["response"].append(note_answer if is_sync else note_answer_async)


def _is_sync(http: httpx2.Client | httpx2.AsyncClient) -> bool:
    import httpx2

    return isinstance(http, httpx2.Client)


def _allow_list(base_url: str) -> AllowList:
    listed = AllowList.of(extra_allowed_hosts())
    if not base_url:
        if listed.entries:
            return listed
        raise ValueError(f"wrap() needs base_url= for a client without one, or {ALLOWED_HOSTS_VARIABLE}")
    origin = Origin.of_url(base_url)
    if not origin.is_public():
        return listed.with_origin(origin)
    if not listed.allows(origin):
        warnings.warn(
            f"{origin.host} is a model vendor's server, which gets no conversation identifiers: point the "
            f"client's base_url at a ConServe gateway (or list the host in {ALLOWED_HOSTS_VARIABLE})",
            stacklevel=4,
        )
    return listed
