"""Requests that are no turns and are an engine's to answer: stored responses, and counting tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs, quote, urlencode

import msgspec
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from conserve_server.core.errors import EngineFailed, InvalidRequest, NoCapacity, TurnError
from conserve_server.engines.engine import Engine, Role
from conserve_server.engines.fields import COUNT_TOKENS_PATH, DETOKENIZE_PATH, TOKENIZE_PATH
from conserve_server.engines.wire import RESPONSES_PATH, Fields
from conserve_server.gateway.http.body import BodyMemory, read_body
from conserve_server.gateway.http.errors import api_of
from conserve_server.gateway.http.refusals import Refusals
from conserve_server.gateway.http.reply import ClientGone, Reply, while_connected
from conserve_server.gateway.http.request_id import request_id_of
from conserve_server.serving.asked.engine_fields import EngineFields
from conserve_server.serving.asked.limits import BodyLimits, TurnLimits
from conserve_server.serving.asked.request import check_model, parse_fields, read_model
from conserve_server.serving.asked.tenants import Tenants, authorization_of
from conserve_server.serving.client import REQUEST_ID, ClientStalled
from conserve_server.serving.cluster.cluster import Cluster
from conserve_server.serving.records.stored_responses import StoredResponses

RESPONSE_PATH: Final = RESPONSES_PATH + "/{response_id}"
CANCEL_PATH: Final = RESPONSE_PATH + "/cancel"
_READING: Final = (COUNT_TOKENS_PATH, TOKENIZE_PATH, DETOKENIZE_PATH)
"""What any engine with the model can answer, without a turn."""
_PASSED_ON: Final = ("stream", "starting_after")
"""Query parameters of a stored response that vLLM reads."""


class PassThrough:
    """Finds the engine of such a request and passes both ways what is said."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        tenants: Tenants,
        limits: TurnLimits,
        body_limits: BodyLimits,
        body_memory: BodyMemory,
        stored_responses: StoredResponses,
        rules: EngineFields,
        write_timeout_s: float,
        refusals: Refusals,
    ) -> None:
        self._cluster = cluster
        self._tenants = tenants
        self._limits = limits
        self._body_limits = body_limits
        self._body_memory = body_memory
        self._stored_responses = stored_responses
        self._rules = rules
        self.write_timeout_s = write_timeout_s
        self.refusals = refusals

    def table(self) -> list[Route]:
        """The routes, for the application."""
        return [
            Route(RESPONSE_PATH, _Endpoint(self), methods=["GET"]),
            Route(CANCEL_PATH, _Endpoint(self), methods=["POST"]),
            *(Route(path, _Endpoint(self), methods=["POST"]) for path in _READING),
        ]

    async def answer(self, scope: Scope, headers: Headers, receive: Receive, reply: Reply) -> None:
        """Answer one request. Raises TurnError where it can't be passed on."""
        tenant = self._tenants.caller(authorization_of(headers)).turn_tenant()
        with self._limits.turn(tenant), self._body_memory.hold() as held:
            body = await read_body(receive, headers, self._body_limits, held)
            if scope["path"] in _READING:
                path = scope["path"]
                fields = parse_fields(body)
                engine, sent = self._reading(fields), self._rules.of(path, fields, tenant)
                body = body if sent is fields else msgspec.json.encode(sent)
            else:
                engine, path = self._storing(scope, tenant)
                body = b""
            to_engine = {REQUEST_ID: request_id_of(scope, headers)}
            passing = _pass(engine, scope["method"], path, body, to_engine, reply)
            await while_connected(passing, receive)

    def _reading(self, fields: Fields) -> Engine:
        """The least busy decoder with the request's model."""
        model = read_model(fields, self._cluster.models)
        check_model(model, self._cluster.models)
        load = {
            name: status.running + status.waiting
            for name, status in self._cluster.statuses.items()
            if model in status.models and self._cluster.engine(name).spec.role is Role.DECODE
        }
        if not load:
            raise NoCapacity(
                f"no decode engine is up: {self._cluster.why_no_decoder()}", code="no_decode_engine"
            )
        return self._cluster.engine(min(load, key=lambda name: load[name]))

    def _storing(self, scope: Scope, tenant: str) -> tuple[Engine, str]:
        """The engine that made this answer, and its path there."""
        response_id: str = scope["path_params"]["response_id"]
        stored = self._stored_responses.find(tenant, response_id)
        if stored is None or not self._cluster.knows(stored.engine):
            raise InvalidRequest(
                f"response with id {response_id!r} not found: this gateway has not made it, or has "
                "forgotten it (gateway.responses_kept)",
                code="response_not_found",
                param="response_id",
                status=404,
            )
        path = f"{RESPONSES_PATH}/{quote(response_id, safe='')}"
        if scope["method"] == "POST":
            return self._cluster.engine(stored.engine), path + "/cancel"
        asked = parse_qs(scope["query_string"].decode("latin-1"))
        query = urlencode({name: asked[name][0] for name in _PASSED_ON if name in asked})
        return self._cluster.engine(stored.engine), f"{path}?{query}" if query else path


class _Endpoint:
    """The ASGI end of such a request."""

    def __init__(self, pass_through: PassThrough) -> None:
        self._pass_through = pass_through

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        reply = Reply(
            send,
            api=api_of(scope["path"]),
            request_id=request_id_of(scope, headers),
            write_timeout_s=self._pass_through.write_timeout_s,
            refusals=self._pass_through.refusals,
        )
        try:
            await self._pass_through.answer(scope, headers, receive, reply)
        except (ClientGone, ClientStalled):
            return
        except TurnError as error:
            await reply.fail(error, {})


async def _pass(
    engine: Engine, method: str, path: str, body: bytes, headers: Mapping[str, str], reply: Reply
) -> None:
    async with engine.send(path, body, headers, method=method) as answer:
        if not 200 <= answer.status < 500:
            name = engine.spec.name
            raise EngineFailed(
                f"engine {name} answered with status {answer.status}", code="engine_error", engine=name
            )
        content_type = answer.headers.get("content-type", "application/json")
        await reply.start(answer.status, {"content-type": content_type, "cache-control": "no-store"})
        async for chunk in answer.chunks():
            await reply.write(chunk)
        await reply.finish()
