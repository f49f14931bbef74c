"""The gateway's routes over conversations: list, report, release, tool boundaries.

A tenant sees its own alone, as if there were no others; the admin key sees all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_sdk.protocol import CONVERSATIONS_PATH, Outcome, ToolEvent, clean_id
from conserve_server.core.errors import InvalidRequest
from conserve_server.energy.accounts import Factors
from conserve_server.gateway.http.body import BodyMemory, read_body
from conserve_server.scheduling.scheduler import Scheduler
from conserve_server.serving.asked.json_text import check_text, what_is_wrong
from conserve_server.serving.asked.limits import BodyLimits
from conserve_server.serving.asked.tenants import Tenants, authorization_of
from conserve_server.serving.conversations import Conversations
from conserve_server.serving.records.branch_totals import with_branches
from conserve_server.serving.records.record import ConversationRecord

MAX_EVENTS_BYTES: Final = 1024 * 1024
MAX_EVENTS: Final = 1_000
"""At once; the SDK sends 64 at most."""
LISTED: Final = 20
MAX_LISTED: Final = 1000
_DETAILS: Final = ("turns", "tools")


_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class _Event(msgspec.Struct):
    kind: Literal["start", "end"]
    call_id: str
    name: str
    elapsed_s: _Seconds = 0.0
    duration_s: _Seconds | None = None
    outcome: str | None = None


class _Events(msgspec.Struct):
    events: list[_Event]


class ConversationRoutes:
    """What was observed of conversations, and what their clients may say about them."""

    def __init__(
        self,
        conversations: Conversations,
        scheduler: Scheduler,
        tenants: Tenants,
        factors: Factors,
        body_memory: BodyMemory,
        *,
        body_timeout_s: float,
    ) -> None:
        self._conversations = conversations
        self._scheduler = scheduler
        self._tenants = tenants
        self._body_limits = BodyLimits(MAX_EVENTS_BYTES, body_timeout_s, fix="send fewer events at once")
        self._body_memory = body_memory
        self._factors = factors

    def table(self) -> list[Route]:
        """The routes, for the application."""
        one = CONVERSATIONS_PATH + "/{conversation_id:path}"
        return [
            Route(CONVERSATIONS_PATH, self.recent, methods=["GET"]),
            Route(one + "/events", self.take_events, methods=["POST"]),
            Route(one, self.report, methods=["GET"]),
            Route(one, self.release, methods=["DELETE"]),
        ]

    async def recent(self, request: Request) -> Response:
        """The conversations with the latest turns, without the turns themselves."""
        tenants = self._tenants_of(request)
        limit = _limit(request.query_params.get("limit", str(LISTED)))
        documents = [self._summary(record) for record in self._conversations.log.recent(tenants, limit)]
        return JSONResponse({"object": "list", "data": documents})

    async def report(self, request: Request) -> Response:
        """What was observed of one conversation: with the model of its latest turn, unless one is named."""
        found = self._find(request)
        return JSONResponse(self._document(found[0]))

    async def release(self, request: Request) -> Response:
        """End a conversation and its branches: reservations are freed once the running turns have ended."""
        found = self._find(request)
        for record in found:
            self._conversations.release(record)
        return JSONResponse(self._document(found[0]))

    async def take_events(self, request: Request) -> Response:
        """Note tool boundaries that the SDK saw."""
        found = self._find(request)
        with self._body_memory.hold() as held:
            body = await read_body(request.receive, request.headers, self._body_limits, held)
            events = _read_events(body)
        for event in events:
            self._conversations.log.note_tool(found[0], event)
            self._conversations.signals.tool(found[0], event)
        return Response(status_code=204)

    def _tenants_of(self, request: Request) -> Sequence[str]:
        """The tenants that are the caller's to see."""
        caller = self._tenants.caller(authorization_of(request.headers))
        if caller.tenant is not None:
            return (caller.tenant,)
        asked = request.query_params.get("tenant")
        return self._tenants.names if asked is None else (asked,)

    def _find(self, request: Request) -> list[ConversationRecord]:
        """The records of the conversation in the path, one a model, latest first. Raises a 404 or 409."""
        tenants = self._tenants_of(request)
        asked: str = request.path_params["conversation_id"]
        model = request.query_params.get("model")
        found = self._conversations.log.find(tenants, clean_id(asked) or "", model)
        if not found:
            raise InvalidRequest(
                f"no conversation {asked!r} is known here: it never sent a turn to this gateway, "
                "or it ended long ago",
                code="conversation_not_found",
                param="conversation_id",
                status=404,
            )
        owners = sorted({record.identity.tenant for record in found})
        if len(owners) > 1:
            raise InvalidRequest(
                f"several tenants have a conversation {asked!r}: add ?tenant=, one of {', '.join(owners)}",
                code="ambiguous_conversation",
                param="tenant",
                status=409,
            )
        return found

    def _document(self, record: ConversationRecord) -> dict[str, Any]:
        live = self._scheduler.find(record.identity.key)
        branches = self._conversations.log.branches(record)
        reserved = [self._scheduler.reserved_tokens(each.identity.key) for each in (record, *branches)]
        report = record.report(
            state=live.state if live else "new",
            reserved_kv_tokens=reserved[0],
            children=tuple(branch.identity.conversation_id for branch in branches),
            with_branches=with_branches(
                record, branches, reserved_kv_tokens=sum(reserved), factors=self._factors
            ),
            factors=self._factors,
        )
        return report.to_json()

    def _summary(self, record: ConversationRecord) -> dict[str, Any]:
        document = self._document(record)
        counts = {f"{name.removesuffix('s')}_count": len(document[name]) for name in _DETAILS}
        counts["turn_count"] += document["turns_forgotten"]
        return {name: value for name, value in document.items() if name not in _DETAILS} | counts


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_LISTED or len(text) > 9:
        raise InvalidRequest(
            f"limit must be a whole number from 1 to {MAX_LISTED}", code="invalid_limit", param="limit"
        )
    return int(text)


def _read_events(body: bytes) -> list[ToolEvent]:
    check_text(body)
    try:
        found = msgspec.json.decode(body, type=_Events).events
        events = [_event(each) for each in found]
    except (ValueError, RecursionError) as error:
        why = what_is_wrong(body, error)
        raise InvalidRequest(f"the events are wrong: {why}", code="invalid_events") from error
    if len(events) > MAX_EVENTS:
        raise InvalidRequest(f"more than {MAX_EVENTS} events: send fewer at once", code="invalid_events")
    return events


def _event(given: _Event) -> ToolEvent:
    """The event with names that can be kept and shown. Raises ValueError where nothing of one is left."""
    call_id, name = clean_id(given.call_id), clean_id(given.name)
    if call_id is None or name is None:
        raise ValueError("a call_id or a name has nothing that can be printed")
    return ToolEvent(
        kind=given.kind,
        call_id=call_id,
        name=name,
        elapsed_s=given.elapsed_s,
        duration_s=given.duration_s,
        outcome=Outcome(given.outcome) if given.outcome is not None else None,
    )
