"""The ASGI end of a turn: read the body, serve, and cancel all of it when the client hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from conserve_server.core.errors import TurnError
from conserve_server.gateway.cluster import Cluster
from conserve_server.gateway.identity import Identity, read_identity
from conserve_server.gateway.limits import TurnLimits
from conserve_server.gateway.recognition import Recognition, Watch
from conserve_server.gateway.reply import ClientGone, Reply, read_body, wait_disconnect
from conserve_server.gateway.request import TurnRequest, check_model, parse_request
from conserve_server.gateway.tenants import Tenants
from conserve_server.gateway.turn import Turns


class TurnEndpoint:
    """`POST` of a completion, as a plain ASGI application: nothing lies between engine and client."""

    def __init__(
        self,
        *,
        turns: Turns,
        cluster: Cluster,
        tenants: Tenants,
        limits: TurnLimits,
        recognition: Recognition,
        max_body_bytes: int,
    ) -> None:
        self._turns = turns
        self._cluster = cluster
        self._tenants = tenants
        self._limits = limits
        self._recognition = recognition
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(send)
        headers = Headers(scope=scope)
        try:
            tenant = self._tenants.caller(headers.get("authorization")).turn_tenant()
            with self._limits.turn(tenant):
                body = await read_body(
                    receive, self._max_body_bytes, fix="shorten it, or raise gateway.max_body_bytes"
                )
                await _while_connected(self._serve(scope["path"], headers, tenant, body, reply), receive)
        except ClientGone:
            return
        except TurnError as error:
            await reply.fail(error, {})

    async def _serve(self, path: str, headers: Headers, tenant: str, body: bytes, reply: Reply) -> None:
        """Raises TurnError where the turn could not even begin."""
        request = parse_request(path, body)
        check_model(request.model, self._cluster.models)
        identity, watch = self._identify(headers, request, tenant)
        await self._turns.serve(request, identity, headers, reply, watch)

    def _identify(self, headers: Headers, request: TurnRequest, tenant: str) -> tuple[Identity, Watch | None]:
        identity = read_identity(headers, request.fields, tenant=tenant, model=request.model)
        if not identity.is_synthetic:
            return identity, None
        return self._recognition.recognise(identity, request)


async def _while_connected(serve: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Run `serve` to its end, or cancel it as soon as the client has gone."""
    turn = asyncio.ensure_future(serve)
    gone = asyncio.ensure_future(wait_disconnect(receive))
    try:
        await asyncio.wait({turn, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        turn.cancel()  # nothing, if it is done
        await asyncio.gather(turn, gone, return_exceptions=True)
    if not turn.cancelled():
        turn.result()  # an error that is not a turn's belongs to the application
