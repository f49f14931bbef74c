"""Hooking a client that the user already has, or one made for the purpose."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from conserve_sdk._carrier import HTTP_PACKAGES
from conserve_sdk._errors import UnsupportedClient
from conserve_sdk._hosts import AllowList, Origin
from conserve_sdk._settings import ALLOWED_HOSTS_VARIABLE, extra_allowed_hosts, is_disabled
from conserve_sdk._tagging import AsyncHook, RequestTagger, SyncHook, note_answer, note_answer_async

if TYPE_CHECKING:
    import httpx2

ClientT = TypeVar("ClientT")

_ACCEPTED: Final = (
    "openai.OpenAI, openai.AsyncOpenAI, langchain_openai.ChatOpenAI, a model that holds one of these as its "
    "`client` (Pydantic AI, smolagents), or a client of httpx2 or httpx"
)


@dataclass(frozen=True, slots=True)
class _Hookable:
    """An HTTP client, and where the client around it points."""

    http: Any
    is_sync: bool
    base_url: str


def wrap(client: ClientT, *, base_url: str | None = None) -> ClientT:
    """The same client, whose model calls now carry the conversation of the block that makes them.

    Takes OpenAI, AsyncOpenAI and their Azure kinds, LangChain's ChatOpenAI, a framework's
    model that holds such a client as its `client`, or a client of httpx2 or httpx. Wrapping
    twice changes nothing, and copies made by `with_options()` are wrapped too. Identifiers go
    to the server that the client points at (`base_url` says which where the client does not)
    and to those in `CONSERVE_ALLOWED_HOSTS`, never to a model vendor's own server unless
    listed there; embeddings and what else is no turn stay as they are. Raises
    UnsupportedClient for anything else, and ValueError where no server is known. With
    `CONSERVE_DISABLED` set, the client comes back untouched.
    """
    if not is_disabled():
        for hookable in list(_hookables(client, base_url)):
            _hook(hookable)
    return client


def http_client(
    base_url: str,
    *,
    timeout: float | httpx2.Timeout | None = None,
    transport: httpx2.BaseTransport | None = None,
) -> httpx2.Client:
    """A wrapped `httpx2.Client` for the gateway at `base_url`, to be given to `OpenAI(http_client=…)`.

    `timeout` is in seconds; without one, OpenAI's clients use their own. The caller closes it.
    """
    import httpx2

    options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    return wrap(httpx2.Client(transport=transport, follow_redirects=True, **options), base_url=base_url)


def async_http_client(
    base_url: str,
    *,
    timeout: float | httpx2.Timeout | None = None,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> httpx2.AsyncClient:
    """`http_client` for `AsyncOpenAI(http_client=…)`."""
    import httpx2

    options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    return wrap(httpx2.AsyncClient(transport=transport, follow_redirects=True, **options), base_url=base_url)


def _hookables(client: object, base_url: str | None) -> Iterator[_Hookable]:
    roots = [getattr(client, name, None) for name in ("root_client", "root_async_client")]
    if any(root is not None for root in roots):
        for root in roots:
            if root is not None:
                yield from _hookables(root, base_url)
        return
    for owner in (client, getattr(client, "client", None)):
        for http in (owner, getattr(owner, "_client", None)):
            kind = _kind(http)
            if kind is not None:
                yield _Hookable(http, kind == "sync", base_url or str(getattr(owner, "base_url", "")))
                return
    raise _unsupported(client)


def _kind(candidate: object) -> str | None:
    """`sync` or `async` for an HTTP client; nobody holds one without having imported its package."""
    for package in HTTP_PACKAGES:
        module = sys.modules.get(package)
        if module is None:
            continue
        if isinstance(candidate, module.Client):
            return "sync"
        if isinstance(candidate, module.AsyncClient):
            return "async"
    return None


def _unsupported(client: object) -> UnsupportedClient:
    name = f"{type(client).__module__}.{type(client).__qualname__}"
    return UnsupportedClient(f"wrap() cannot hook {name}: give it {_ACCEPTED}")


def _hook(hookable: _Hookable) -> None:
    """Install the hook, or teach the one that is there another server."""
    allowed = _allow_list(hookable.base_url)
    http = hookable.http
    hooks = http.event_hooks["request"]
    for hook in hooks:
        if isinstance(hook, (SyncHook, AsyncHook)):
            hook.tagger.allow(allowed)
            return
    tagger = RequestTagger(allowed)
    hooks.append(SyncHook(tagger, http) if hookable.is_sync else AsyncHook(tagger, http))
    http.event_hooks["response"].append(note_answer if hookable.is_sync else note_answer_async)


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
