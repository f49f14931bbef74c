"""`GET /v1/events`: what happens now, as server-sent events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec
from starlette.datastructures import State
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from conserve_sdk.protocol import LIVE_PATH, clean_id
from conserve_server.core.errors import InvalidRequest, LimitReached, TurnError
from conserve_server.engines.wire import Api
from conserve_server.gateway.http.refusals import Refusals
from conserve_server.gateway.http.reply import Reply, while_connected
from conserve_server.gateway.http.request_id import request_id_of
from conserve_server.serving.asked.tenants import Caller, Tenants, authorization_of
from conserve_server.serving.client import ClientStalled
from conserve_server.serving.records.live_view import LiveView, Watcher
from conserve_server.serving.records.live_view import Scope as Sight

INTERVAL_S: Final = 0.25
"""Time between two looks: as smooth as an eye needs, and a bounded cost for any number of turns."""
HEARTBEAT_S: Final = 15.0
"""Longest silence: shorter than the idle time-outs of common proxies (60 s)."""
MAX_WATCHERS: Final = 32
"""Watchers at once. A look at 100 conversations takes half a millisecond, the first one 3 ms."""
MAX_TENANT_WATCHERS: Final = 8
"""Of them one tenant's, where there are several: none can keep the others from watching."""
WATCHED: Final = 100
MAX_WATCHED: Final = 500
_HEADERS: Final = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store"}


class LiveRoutes:
    """Streams updates to those who watch."""

    def __init__(
        self, view: LiveView, tenants: Tenants, refusals: Refusals, *, write_timeout_s: float
    ) -> None:
        self._view = view
        self.refusals = refusals
        self.write_timeout_s = write_timeout_s
        self._tenants = tenants
        self._watchers: Counter[str | None] = Counter()

    def table(self) -> list[Route]:
        """The routes, for the application."""
        return [Route(LIVE_PATH, _Endpoint(self), methods=["GET"])]

    async def watch(self, request: Request, reply: Reply) -> None:
        """Send updates until the client has gone. Raises TurnError before the first one."""
        sight = self._sight(request)
        with self._place(self._tenants.caller(authorization_of(request.headers))):
            watcher = Watcher(self._view, sight)
            await reply.start(200, _HEADERS)
            await while_connected(self._stream(watcher, reply, request.app.state), request.receive)

    @contextmanager
    def _place(self, caller: Caller) -> Iterator[None]:
        """A watcher's place while the block runs. Raises LimitReached (429) where there is none."""
        is_of_many = self._tenants.needs_key and not caller.is_admin
        limit = MAX_TENANT_WATCHERS if is_of_many else MAX_WATCHERS
        if self._watchers.total() >= MAX_WATCHERS or self._watchers[caller.tenant] >= limit:
            raise LimitReached(
                f"{MAX_WATCHERS} watch already, or {limit} of yours: try again later",
                code="too_many_watchers",
            )
        self._watchers[caller.tenant] += 1
        try:
            yield
        finally:
            self._watchers[caller.tenant] -= 1

    async def _stream(self, watcher: Watcher, reply: Reply, state: State) -> None:
        """Until the gateway is told to stop: a watcher must not hold up its end."""
        clock = self._view.clock
        last_s = clock.now_s()
        while not getattr(state, "is_stopping", _never)():
            update = watcher.look()
            if update is not None:
                await reply.write(b"event: update\ndata: " + msgspec.json.encode(update.to_json()) + b"\n\n")
            elif clock.now_s() - last_s >= HEARTBEAT_S:
                await reply.write(b": still here\n\n")
            else:
                await clock.sleep(INTERVAL_S)
                continue
            last_s = clock.now_s()
            await clock.sleep(INTERVAL_S)
        await reply.finish()

    def _sight(self, request: Request) -> Sight:
        """What the caller may see. Raises Unauthorized; with an admin key, all at once is for it alone."""
        authorization = authorization_of(request.headers)
        caller = self._tenants.caller(authorization)
        asked = request.query_params.get("conversation")
        sees_engines = caller.is_admin or not (self._tenants.has_admin or self._tenants.needs_key)
        if self._tenants.has_admin and not self._tenants.needs_key and asked is None:
            self._tenants.check_admin(authorization)
        tenant = caller.tenant or request.query_params.get("tenant")
        return Sight(
            tenants=self._tenants.names if tenant is None else (tenant,),
            limit=_limit(request.query_params.get("limit", str(WATCHED))),
            sees_engines=sees_engines,
            conversation_id=None if asked is None else clean_id(asked) or "",
        )


class _Endpoint:
    """The ASGI end: a stream is written as it comes."""

    def __init__(self, routes: LiveRoutes) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        reply = Reply(
            send,
            api=Api.COMPLETIONS,
            request_id=request_id_of(scope, request.headers),
            write_timeout_s=self._routes.write_timeout_s,
            refusals=self._routes.refusals,
        )
        try:
            await self._routes.watch(request, reply)
        except ClientStalled:
            return
        except TurnError as error:
            await reply.fail(error, {})


def _never() -> bool:
    return False


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= MAX_WATCHED:
        raise InvalidRequest(
            f"limit must be a whole number from 1 to {MAX_WATCHED}", code="invalid_limit", param="limit"
        )
    return int(text)
