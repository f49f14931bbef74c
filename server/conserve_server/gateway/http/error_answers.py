"""What the application answers where a route raises."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from conserve_server.core.errors import InvalidRequest, TurnError, internal_error
from conserve_server.gateway.http.errors import NOSNIFF, api_of, error_document, error_headers
from conserve_server.gateway.http.refusals import Refusals
from conserve_server.gateway.http.request_id import request_id_of
from conserve_server.gateway.routes.openapi import OPENAPI_PATH
from conserve_server.serving.client import REQUEST_ID

log = logging.getLogger(__name__)


async def _answer_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, TurnError):
        raise error
    refusals: Refusals = request.app.state.refusals
    refusals.note(error)
    document = error_document(error, api_of(request.url.path))
    return JSONResponse(document, error.status, error_headers(error))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message = (
        f"{request.method} {request.url.path}: {error.detail}; {OPENAPI_PATH} lists what this gateway serves"
    )
    wrong = InvalidRequest(message, code="no_such_route", status=error.status_code)
    return JSONResponse(error_document(wrong, api_of(request.url.path)), error.status_code, error.headers)


async def _answer_bug(request: Request, error: Exception) -> Response:
    request_id = request_id_of(request.scope, request.headers)
    log.error("request %s: the gateway failed: %s", request_id, type(error).__name__)
    document = error_document(internal_error(error), api_of(request.url.path))
    return JSONResponse(document, 500, {REQUEST_ID: request_id, **NOSNIFF})


EXCEPTION_HANDLERS: Final[Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]] = {
    TurnError: _answer_error,
    HTTPException: _answer_http_error,
    Exception: _answer_bug,
}
"""By what was raised."""
