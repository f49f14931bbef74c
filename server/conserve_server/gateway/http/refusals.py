"""Which refusals are counted: those for a limit of the gateway, by the code that the client reads."""

from __future__ import annotations

from typing import Final

from conserve_server.core.errors import TurnError
from conserve_server.telemetry.metrics import GatewayMetrics

LIMIT_CODES: Final = frozenset(
    {
        "body_timeout",
        "body_too_large",
        "deadly_request",
        "gateway_draining",
        "headers_timeout",
        "headers_too_large",
        "no_kv_capacity",
        "retry_budget_spent",
        "too_many_body_bytes",
        "too_many_connections",
        "too_many_conversations",
        "too_many_items",
        "too_many_pipelined",
        "too_many_tools",
        "too_many_turns",
        "too_many_waiting",
        "too_many_watchers",
        "trailers_too_large",
    }
)
"""No other code is a label: what an engine names must not make the metrics grow."""


class Refusals:
    """Counts in `conserve_refused_total`."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics

    def note(self, error: TurnError) -> None:
        """A request was answered with this error."""
        if error.code in LIMIT_CODES:
            self._metrics.refused(error.code)
