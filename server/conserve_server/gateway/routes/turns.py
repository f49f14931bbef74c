"""The ASGI end of a turn: read the body, serve, and cancel all of it when the client hangs up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from starlette.types import Receive, Scope, Send

from conserve_server.core.errors import InvalidRequest, TurnError
from conserve_server.engines.wire import API_OF, Api
from conserve_server.gateway.http.body import BodyMemory, read_body
from conserve_server.gateway.http.refusals import Refusals
from conserve_server.gateway.http.reply import (
    CONNECTION,
    ClientGone,
    Connection,
    Reply,
    read_headers,
    while_connected,
)
from conserve_server.gateway.http.request_id import request_id_of
from conserve_server.serving.asked.engine_fields import EngineFields
from conserve_server.serving.asked.identity import Identity, read_identity, read_previous_response
from conserve_server.serving.asked.limits import BodyLimits, TurnLimits
from conserve_server.serving.asked.request import TurnRequest, check_model, parse_request
from conserve_server.serving.asked.tenants import Tenants, authorization_of
from conserve_server.serving.client import ClientStalled
from conserve_server.serving.cluster.cluster import Cluster
from conserve_server.serving.recognition.recognition import Recognition, Watch
from conserve_server.serving.records.stored_responses import StoredResponse, StoredResponses
from conserve_server.serving.turns.turns import Turns


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
        stored_responses: StoredResponses,
        rules: EngineFields,
        body_limits: BodyLimits,
        body_memory: BodyMemory,
        write_timeout_s: float,
        refusals: Refusals,
    ) -> None:
        self._turns = turns
        self._cluster = cluster
        self._tenants = tenants
        self._limits = limits
        self._recognition = recognition
        self._stored_responses = stored_responses
        self._rules = rules
        self._body_limits = body_limits
        self._body_memory = body_memory
        self._write_timeout_s = write_timeout_s
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = read_headers(scope["headers"])
        request_id = request_id_of(scope, headers)
        connection: Connection | None = scope.get("extensions", {}).get(CONNECTION)
        reply = Reply(
            send,
            api=API_OF[scope["path"]],
            request_id=request_id,
            write_timeout_s=self._write_timeout_s,
            connection=connection,
            refusals=self._refusals,
        )
        try:
            tenant = self._tenants.caller(authorization_of(headers)).turn_tenant()
            with self._limits.turn(tenant), self._body_memory.hold() as held:
                body = await read_body(receive, headers, self._body_limits, held, connection)
                request = parse_request(
                    scope["path"],
                    body,
                    request_id,
                    rules=self._rules,
                    tenant=tenant,
                    served=self._cluster.models,
                )
                serve = self._serve(request, headers, tenant, reply)
                if connection is None:
                    await while_connected(serve, receive)
                else:
                    await serve
        except (ClientGone, ClientStalled):
            return
        except TurnError as error:
            await reply.fail(error, {})

    async def _serve(
        self, request: TurnRequest, headers: Mapping[str, str], tenant: str, reply: Reply
    ) -> None:
        """Raises TurnError where the turn could not even begin."""
        check_model(request.model, self._cluster.models)
        identity, watch = self._identify(headers, request, tenant)
        await self._turns.serve(request, identity, headers, reply, watch)

    def _identify(
        self, headers: Mapping[str, str], request: TurnRequest, tenant: str
    ) -> tuple[Identity, Watch | None]:
        identity = read_identity(headers, request.fields, tenant=tenant, model=request.model)
        previous = read_previous_response(request.fields) if request.api is Api.RESPONSES else None
        stored = self._stored(identity, previous) if previous is not None else None
        if not identity.is_synthetic:
            return identity, None
        if stored is None:
            return self._recognition.recognise(identity, request)
        known = replace(identity, conversation_id=stored.conversation_id, is_synthetic=stored.is_synthetic)
        return self._recognition.recognise(known, request) if stored.is_synthetic else (known, None)

    def _stored(self, identity: Identity, previous: str) -> StoredResponse:
        """The tenant's own answer that its request goes on from. Raises a 404 for any other.

        Whatever names the conversation: an engine knows ids alone, and would go on from anybody's.
        """
        stored = self._stored_responses.find(identity.tenant, previous)
        if stored is None or stored.model != identity.model:
            raise InvalidRequest(
                f"previous response with id {previous!r} not found: this gateway has not made it with this "
                "model, or has forgotten it (gateway.responses_kept); send the whole input instead",
                code="previous_response_not_found",
                param="previous_response_id",
                status=404,
            )
        return stored
