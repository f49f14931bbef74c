"""The page of limits says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from conserve_sdk.protocol import headers
from conserve_server.cli.serve import KEEP_ALIVE_S
from conserve_server.core import texts
from conserve_server.core.config import GatewayConfig
from conserve_server.engines import connection
from conserve_server.gateway.http import connections, request_id, waits
from conserve_server.gateway.http.refusals import LIMIT_CODES
from conserve_server.gateway.routes import conversations as conversation_routes
from conserve_server.gateway.routes import live as live_routes
from conserve_server.serving.asked import identity, json_text, request
from conserve_server.serving.recognition import recognition
from conserve_server.serving.records import conversation_log, record, tool_times
from conserve_server.serving.turns import retries

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
FIXED: dict[str, tuple[str, ...]] = {
    "a request's line and headers": (f"{connections.MAX_HEAD_BYTES} B",),
    "their arrival": (f"{connections.HEAD_TIMEOUT_S:g} s",),
    "chunk extensions and trailers of a body": (
        f"{connections.MAX_FRAMING_BYTES} B",
        f"{connections.CHUNK_BYTES} B",
    ),
    "requests sent ahead of an answer": (f"{connections.MAX_PIPELINED}",),
    "the rest of a body after its answer": (
        f"{connections.DRAIN_TIMEOUT_S:g} s",
        f"{waits.MAX_DRAINED_BYTES} B",
    ),
    "a connection on which no request has begun": (f"{KEEP_ALIVE_S} s",),
    "the body of tool events": (f"{conversation_routes.MAX_EVENTS_BYTES} B",),
    "strings, objects and lists of a body": (f"{json_text.MAX_ITEMS}",),
    "an engine's heads and framing, without a byte of a body": (f"{connection.MAX_FRAMING_BYTES} B",),
    "engines that one request may end": (f"{retries.MAX_LOSSES}", f"{retries.REMEMBERED_S:g} s"),
    "fields of a body": (f"{request.MAX_FIELDS}",),
    "those, and commas, of a history that is recognised": (f"{recognition.MAX_RECOGNISED_ITEMS}",),
    "the name of a model": (f"{request.MAX_MODEL_LENGTH}",),
    "an identifier in a body field": (f"{identity.MAX_FIELD_BYTES} B",),
    "tool calls of a conversation": (f"{record.MAX_TOOLS}",),
    "tool calls of all remembered conversations of a tenant": (f"{conversation_log.MAX_TOOLS_OF_A_TENANT}",),
    "reports of a conversation's turns": (f"{record.MAX_TURNS}",),
    "those who watch /v1/events": (f"{live_routes.MAX_WATCHERS}",),
    "those of one tenant, where several are configured": (f"{live_routes.MAX_TENANT_WATCHERS}",),
    "tool events at once": (f"{conversation_routes.MAX_EVENTS}",),
    "durations of one tool": (f"{tool_times.SAMPLES}",),
    "tools whose durations are known": (f"{tool_times.TOOLS}",),
    "an identifier: conversation, branch, parent, agent, tool call, tool, response": (
        f"{headers.MAX_ID_LENGTH} B",
    ),
    "a request's id": (f"{request_id.MAX_LENGTH}",),
    "an error's message": (f"{texts.MAX_TEXT_LENGTH}",),
}
"""The values in the order in which a row names them."""


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def values(cell: str) -> tuple[str, ...]:
    """Every number of a cell with its unit, sizes in bytes."""
    units = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "bytes": 1}
    found = re.findall(r"(\d[\d.]*) ?(KiB|MiB|GiB|bytes|s\b)?", cell)
    return tuple(
        f"{int(number) * units[unit]} B" if unit in units else f"{number} {unit}".strip()
        for number, unit in found
    )


def test_each_limit_has_its_value_in_the_page() -> None:
    defaults = GatewayConfig()
    for name, set_by, default, *_ in rows():
        if set_by == "fixed":
            assert values(default) == FIXED[name.strip("`")], name
        else:
            setting = quoted(set_by)[0].removeprefix("gateway.")
            value = getattr(defaults, setting)
            unit = " s" if setting.endswith("_s") else " B" if setting.endswith("_bytes") else ""
            assert values(default) == (f"{value:g}{unit}" if unit == " s" else f"{value}{unit}",), name


def test_the_page_lists_every_fixed_limit_once() -> None:
    assert sorted(row[0].strip("`") for row in rows() if row[1] == "fixed") == sorted(FIXED)


def test_the_page_lists_exactly_the_reasons_that_are_counted() -> None:
    assert {reason for row in rows() for reason in quoted(row[4])} == LIMIT_CODES
