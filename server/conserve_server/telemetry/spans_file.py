"""Spans read back from OTLP JSON lines, one at a time, with only what a timeline needs."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from conserve_server.telemetry import names

Value = str | int | float | bool

_KEPT = frozenset(
    value for key, value in vars(names).items() if key.isupper() and not key.startswith("SPAN_")
)
_ERROR = (2, "STATUS_CODE_ERROR")


@dataclass(frozen=True, slots=True)
class Span:
    """One ended span. Times are Unix nanoseconds; only attributes named in `names` are kept."""

    span_id: str
    parent_id: str | None
    name: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value]
    is_error: bool = False

    @property
    def conversation_id(self) -> str | None:
        return self.text(names.CONVERSATION_ID)

    def text(self, name: str) -> str | None:
        value = self.attributes.get(name)
        return None if value is None else str(value)

    def count(self, name: str) -> int | None:
        value = self.attributes.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def seconds(self, name: str) -> float | None:
        value = self.attributes.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def flag(self, name: str) -> bool:
        return self.attributes.get(name) is True


def read_spans(folder: pathlib.Path, *, conversation_id: str | None = None) -> Iterator[Span]:
    """The spans in all `*.jsonl` files of `folder`: all that name a conversation, or one's alone.

    A line that is no OTLP JSON (the last one, half written) and a file that vanishes are
    passed over.
    """
    for path in sorted(folder.glob("*.jsonl")):
        try:
            with path.open(encoding="utf-8", errors="replace") as lines:
                yield from spans_in(lines, conversation_id)
        except FileNotFoundError:
            continue


def spans_in(lines: Iterable[str], conversation_id: str | None) -> Iterator[Span]:
    """The spans in these lines of OTLP JSON: all that name a conversation, or one's alone."""
    # A line holds a batch of spans: one that lacks the id as it is written in JSON needs no parsing.
    needle = json.dumps(conversation_id)[1:-1] if conversation_id is not None else ""
    for line in lines:
        if needle not in line:
            continue
        for span in _spans_of(_parsed(line)):
            if span.conversation_id is not None and conversation_id in (None, span.conversation_id):
                yield span


def _parsed(line: str) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _spans_of(document: dict[str, Any]) -> Iterator[Span]:
    for resource in _objects(document, "resourceSpans"):
        for scope in _objects(resource, "scopeSpans"):
            for raw in _objects(scope, "spans"):
                span = _span(raw)
                if span is not None:
                    yield span


def _objects(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = document.get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _span(raw: dict[str, Any]) -> Span | None:
    """The span, or None where it lacks what every span has."""
    status = raw.get("status")
    try:
        return Span(
            span_id=str(raw["spanId"]),
            parent_id=str(raw["parentSpanId"]) if raw.get("parentSpanId") else None,
            name=str(raw["name"]),
            start_ns=int(raw["startTimeUnixNano"]),
            end_ns=int(raw["endTimeUnixNano"]),
            attributes=_attributes(_objects(raw, "attributes")),
            is_error=isinstance(status, dict) and status.get("code") in _ERROR,
        )
    except (KeyError, TypeError, ValueError):
        return None


def _attributes(pairs: list[dict[str, Any]]) -> dict[str, Value]:
    kept = ((pair["key"], _value(pair.get("value"))) for pair in pairs if pair.get("key") in _KEPT)
    return {key: value for key, value in kept if value is not None}


def _value(raw: object) -> Value | None:
    """A scalar of OTLP's AnyValue; arrays, objects and bytes are no attribute of ours."""
    if not isinstance(raw, dict):
        return None
    match raw:
        case {"stringValue": str(text)}:
            return text
        case {"boolValue": bool(flag)}:
            return flag
        case {"intValue": str() | int() as count}:
            return int(count)
        case {"doubleValue": int() | float() | str() as number}:
            return float(number)
    return None
