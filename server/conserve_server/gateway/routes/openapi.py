"""The gateway's OpenAPI document: every route, what it takes, what it answers.

Requests for text are an engine's to judge, so only what the gateway itself reads of them is
described. The documents of the gateway's own routes come from `conserve_sdk.protocol`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from conserve_sdk.protocol import (
    AGENT,
    BRANCH,
    CONVERSATION_ID,
    CONVERSATIONS_PATH,
    FINAL,
    LIVE_PATH,
    PARENT_ID,
    ConversationReport,
    EventsDocument,
    Update,
)
from conserve_server.engines.fields import COUNT_TOKENS_PATH, DETOKENIZE_PATH, TOKENIZE_PATH
from conserve_server.engines.wire import CHAT_PATH, COMPLETIONS_PATH, MESSAGES_PATH, RESPONSES_PATH
from conserve_server.gateway.routes.admin import DRAIN_PATH, ENGINES_PATH, RELOAD_PATH, UNDRAIN_PATH
from conserve_server.gateway.routes.page import PAGE_PATH
from conserve_server.gateway.routes.pass_through import CANCEL_PATH, RESPONSE_PATH
from conserve_server.serving.client import REQUEST_ID

OPENAPI_PATH: Final = "/openapi.json"
Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 1}
_MESSAGES: Final[Schema] = {"type": "array", "minItems": 1, "items": {"type": "object"}}
_TURN_HEADERS: Final = (CONVERSATION_ID, BRANCH, PARENT_ID, AGENT, FINAL)


@dataclass(frozen=True, slots=True)
class _Operation:
    """One method of one path. `answer` names a schema of the document; None is a 204."""

    method: str
    path: str
    summary: str
    body: str | None = None
    answer: str | None = "Object"
    content_type: str = "application/json"
    query: dict[str, Schema] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    errors: tuple[int, ...] = (400, 401)


_TURN_ERRORS: Final = (400, 401, 403, 404, 408, 413, 415, 429, 502, 503, 504)
_ONE: Final = CONVERSATIONS_PATH + "/{conversation_id}"
_WHOSE: Final[dict[str, Schema]] = {"model": _TEXT, "tenant": _TEXT}


def _turn(path: str, summary: str, body: str) -> _Operation:
    return _Operation("post", path, summary, body, headers=_TURN_HEADERS, errors=_TURN_ERRORS)


_OPERATIONS: Final = (
    _turn(CHAT_PATH, "One turn of a conversation", "ChatRequest"),
    _turn(COMPLETIONS_PATH, "One turn, as a text completion", "CompletionRequest"),
    _turn(RESPONSES_PATH, "One turn, as OpenAI's Responses API has it", "ResponsesRequest"),
    _turn(MESSAGES_PATH, "One turn, as Anthropic's Messages API has it", "MessagesRequest"),
    _Operation(
        "get",
        RESPONSE_PATH,
        "A stored response, from the engine that has it",
        query={"stream": {"type": "boolean"}, "starting_after": {"type": "integer"}},
        errors=(400, 401, 403, 404, 408, 413, 415, 429, 502, 504),
    ),
    _Operation("post", CANCEL_PATH, "Cancel a response that runs in the background", errors=_TURN_ERRORS),
    _Operation(
        "post", COUNT_TOKENS_PATH, "Count a prompt's tokens", "CountTokensRequest", errors=_TURN_ERRORS
    ),
    _Operation("post", TOKENIZE_PATH, "A prompt's tokens", "TokenizeRequest", errors=_TURN_ERRORS),
    _Operation("post", DETOKENIZE_PATH, "The text of tokens", "DetokenizeRequest", errors=_TURN_ERRORS),
    _Operation("get", "/v1/models", "The models that the decode engines serve", errors=(401,)),
    _Operation("get", "/v1/models/{model}", "One of them", errors=(401, 404, 503)),
    _Operation(
        "get", "/v1/energy", "Joules charged since the start, by tenant, model, pool and tier", errors=(401,)
    ),
    _Operation(
        "get",
        CONVERSATIONS_PATH,
        "The conversations with the latest turns, without the turns",
        query={"limit": {"type": "integer", "minimum": 1, "maximum": 1000}, "tenant": _TEXT},
    ),
    _Operation(
        "get",
        _ONE,
        "The report of a conversation",
        answer="ConversationReport",
        query=_WHOSE,
        errors=(401, 404, 409),
    ),
    _Operation(
        "delete",
        _ONE,
        "End a conversation and its branches",
        answer="ConversationReport",
        query=_WHOSE,
        errors=(401, 404, 409),
    ),
    _Operation(
        "post",
        _ONE + "/events",
        "Note tool boundaries",
        "EventsDocument",
        answer=None,
        query=_WHOSE,
        errors=(400, 401, 404, 408, 409, 413, 415),
    ),
    _Operation("get", ENGINES_PATH, "The engines, and which are draining", errors=(401,)),
    _Operation("post", DRAIN_PATH, "Send nothing new to an engine", errors=(401, 404)),
    _Operation("post", UNDRAIN_PATH, "Let an engine take conversations again", errors=(401, 404, 409)),
    _Operation("post", RELOAD_PATH, "Read the configuration again", errors=(401, 409)),
    _Operation(
        "get",
        LIVE_PATH,
        "What happens now, as server-sent events; each is an Update",
        answer="Update",
        content_type="text/event-stream",
        query={
            "conversation": _TEXT,
            "limit": {"type": "integer", "minimum": 1, "maximum": 500},
            "tenant": _TEXT,
        },
        errors=(400, 401, 429),
    ),
    _Operation("get", PAGE_PATH, "A page that shows it", content_type="text/html", errors=()),
    _Operation("get", PAGE_PATH + "/page.css", "Its style", content_type="text/css", errors=()),
    _Operation("get", PAGE_PATH + "/page.js", "Its program", content_type="text/javascript", errors=()),
    _Operation("get", "/health", "200 while a decode engine is up, else 503", errors=(503,)),
    _Operation("get", "/metrics", "Prometheus", content_type="text/plain", errors=(401,)),
    _Operation("get", OPENAPI_PATH, "This document", errors=()),
)


def openapi_document() -> Schema:
    """The document, for OpenAPI 3.1."""
    paths: dict[str, Schema] = {}
    for operation in _OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ConServe gateway",
            "version": metadata.version("conserve-sdk"),
            "summary": "LLM agents served by the conversation",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def openapi_route() -> Route:
    """The document as a route, encoded once."""
    body = msgspec.json.encode(openapi_document())

    async def document(_request: Request) -> Response:
        return Response(body, media_type="application/json")

    return Route(OPENAPI_PATH, document)


def _described(operation: _Operation) -> Schema:
    found: Schema = {"summary": operation.summary, "parameters": _parameters(operation)}
    if operation.body is not None:
        found["requestBody"] = {"required": True, "content": _content("application/json", operation.body)}
    found["responses"] = {**_answered(operation), **_refused(operation)}
    return found


def _parameters(operation: _Operation) -> list[Schema]:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    in_path: list[Schema] = [{"name": n, "in": "path", "required": True, "schema": _TEXT} for n in names]
    in_query = [{"name": n, "in": "query", "schema": schema} for n, schema in operation.query.items()]
    in_header = [{"name": n, "in": "header", "schema": _TEXT} for n in (*operation.headers, REQUEST_ID)]
    return [*in_path, *in_query, *in_header]


def _answered(operation: _Operation) -> Schema:
    if operation.answer is None:
        return {"204": {"description": "Done"}}
    content = _content(operation.content_type, operation.answer)
    if operation.content_type != "application/json":
        content = {operation.content_type: {} if "event" in operation.content_type else {"schema": _TEXT}}
    if operation.headers:
        content["text/event-stream"] = {}  # the engine's own events
    return {"200": {"description": operation.summary, "content": content}}


def _refused(operation: _Operation) -> Schema:
    schema = "AnthropicError" if operation.path.startswith(MESSAGES_PATH) else "Error"
    if operation.path == "/health":
        schema = "Object"
    content = _content("application/json", schema)
    return {str(status): {"description": _REASONS[status], "content": content} for status in operation.errors}


_REASONS: Final = {
    400: "The client must change something",
    401: "The API key is missing or unknown",
    403: "The API key is not enough",
    404: "No such model, conversation or response",
    408: "The body came too slowly",
    409: "Several have this id",
    413: "The body is too large",
    415: "The body is packed",
    429: "The tenant has as much at once as it may have; see retry-after",
    502: "An engine failed",
    503: "No room now; see retry-after",
    504: "An engine was silent for too long",
}


def _content(content_type: str, schema: str) -> Schema:
    return {content_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _schemas() -> dict[str, Schema]:
    own = msgspec.json.schema_components(
        [ConversationReport, EventsDocument, Update], ref_template="#/components/schemas/{name}"
    )[1]
    return {**own, **_request_schemas(), "Object": {"type": "object"}, **_error_schemas()}


def _request_schemas() -> dict[str, Schema]:
    return {
        "ChatRequest": _request({"messages": _MESSAGES, "max_tokens": _COUNT}, "messages"),
        "CompletionRequest": _request(
            {"prompt": {"type": "string", "minLength": 1}, "max_tokens": _COUNT}, "prompt"
        ),
        "ResponsesRequest": _request(
            {
                "input": {"anyOf": [{"type": "string", "minLength": 1}, _MESSAGES]},
                "max_output_tokens": _COUNT,
                "previous_response_id": _TEXT,
                "conversation": {"anyOf": [_TEXT, {"type": "object", "properties": {"id": _TEXT}}]},
            },
            "input",
        ),
        "MessagesRequest": _request({"messages": _MESSAGES, "max_tokens": _COUNT}, "messages", "max_tokens"),
        "CountTokensRequest": _request({"messages": _MESSAGES}, "messages"),
        "TokenizeRequest": _request({"prompt": _TEXT, "messages": _MESSAGES}),
        "DetokenizeRequest": _request({"tokens": {"type": "array", "items": {"type": "integer"}}}, "tokens"),
    }


def _request(properties: dict[str, Schema], *required: str) -> Schema:
    common = {"model": {"type": "string", "minLength": 1}, "stream": {"type": ["boolean", "null"]}}
    return {"type": "object", "properties": {**common, **properties}, "required": ["model", *required]}


def _error_schemas() -> dict[str, Schema]:
    maybe = {"type": ["string", "null"]}
    # An engine's own refusal goes through as it came; its code is a number.
    code = {"type": ["string", "integer", "null"]}
    error = {"message": _TEXT, "type": _TEXT, "param": maybe, "code": code}
    inner = {"type": "object", "properties": error, "required": ["message", "type"]}
    shape = {"type": "object", "properties": {"error": inner}, "required": ["error"]}
    anthropic = {"type": "object", "properties": {"type": {"const": "error"}, "error": inner}}
    return {"Error": shape, "AnthropicError": {**anthropic, "required": ["type", "error"]}}
