"""Everything that ConServe's server side raises on purpose.

ConserveError                 message names the thing and the fix
├── ConfigError               the configuration can't be used               exit 2
│   └── TraceError            a trace or another input file can't be read   exit 2
├── EngineStartError          a local engine did not come up                exit 1
└── TurnError                 a turn can't be served: `status`, `code`      HTTP
    ├── InvalidRequest        400, 404, 409, 413: the client must change something
    │   ├── EngineRefused     4xx of an engine, in its own words: `body`
    │   └── DeadlyRequest     400: engines end at it; it is not to be sent again
    ├── Unauthorized          401, 403: the API key is missing, unknown or not enough
    ├── LimitReached          429: the tenant has too much at once; `retry_after_s`
    ├── NoCapacity            503: no room now; `retry_after_s`
    └── EngineFailed          502, 504: an engine refused, died or hung
"""

from __future__ import annotations

from conserve_server.core.texts import cut


class ConserveError(Exception):
    """Base of the tree above."""


class ConfigError(ConserveError):
    """The configuration can't be used; the message names the key and the fix."""


class TraceError(ConfigError):
    """A trace or another input file can't be read; the message names the file, the line and the field."""


class EngineStartError(ConserveError):
    """A local engine did not come up; the message ends with the last lines of its log."""


class TurnError(ConserveError):
    """A turn that can't be served. `status` is the HTTP status, `code` is stable for programs."""

    status = 500
    kind = "server_error"

    def __init__(
        self, message: str, *, code: str, param: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(cut(message))  # it may repeat what a client or an engine wrote
        self.code = code
        self.param = param
        if status is not None:
            self.status = status


class InvalidRequest(TurnError):
    """The client must change something: 400, 404, 409 or 413."""

    status = 400
    kind = "invalid_request_error"


class EngineRefused(InvalidRequest):
    """An engine refused the request; `body` is what it answered, which the client gets as it came."""

    def __init__(self, message: str, body: bytes, *, status: int) -> None:
        super().__init__(message, code="engine_rejected_request", status=status)
        self.body = body


class DeadlyRequest(InvalidRequest):
    """Engines ended at this request; no client should send it again."""


class Unauthorized(TurnError):
    """The API key is missing, unknown (401) or not enough (403). No message repeats a key."""

    status = 401
    kind = "invalid_request_error"


class LimitReached(TurnError):
    """The tenant has as much at once as it may have; try again after `retry_after_s` seconds."""

    status = 429
    kind = "rate_limit_error"

    def __init__(self, message: str, *, code: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class NoCapacity(TurnError):
    """No room now; the client may try again after `retry_after_s` seconds."""

    status = 503
    kind = "service_unavailable"

    def __init__(self, message: str, *, code: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class EngineFailed(TurnError):
    """An engine refused, died or hung; `engine` is its name. `was_asked`: the request had reached it."""

    status = 502
    kind = "engine_error"

    def __init__(
        self, message: str, *, code: str, engine: str, status: int | None = None, was_asked: bool = True
    ) -> None:
        super().__init__(message, code=code, status=status)
        self.engine = engine
        self.was_asked = was_asked


def internal_error(bug: Exception) -> TurnError:
    """A bug in the gateway, as its client is told of it."""
    return TurnError(f"the gateway failed: {type(bug).__name__}", code="internal_error")
