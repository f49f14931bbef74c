"""This project's own trace format: one conversation a line, token counts and times, no content.

    {"format": "conserve-trace-v1", "id": "c1", "at_s": 0.0, "turns": [
        {"appended_tokens": 1200, "output_tokens": 80},
        {"appended_tokens": 64, "output_tokens": 20, "gap_s": 3.5}]}

`prefix` and `shared_prefix_tokens` name what conversations begin with in common; a turn's
`rewrites_from_tokens` says that only so much of its history was kept. `conserve record` writes it.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable

import msgspec

from conserve_server.core.errors import TraceError

from ..workload import Arrival, ConversationShape, TurnShape, Workload
from .reading import Seconds, Tokens, json_lines

FORMAT = "conserve-trace-v1"


class _Turn(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    appended_tokens: Tokens
    output_tokens: Tokens
    gap_s: Seconds = 0.0
    rewrites_from_tokens: Tokens | None = None


class _Conversation(
    msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, tag_field="format", tag=FORMAT
):
    id: str
    at_s: Seconds
    turns: list[_Turn]
    prefix: str | None = None
    shared_prefix_tokens: Tokens = 0


def read_own(path: pathlib.Path) -> Workload:
    """The workload as recorded. Raises TraceError for a line that doesn't follow the format."""
    arrivals = []
    for number, line in json_lines(path, _Conversation):
        if not line.turns:
            raise TraceError(f"{path}:{number}: turns must have at least 1 entry, got 0")
        arrivals.append(Arrival(line.at_s, _shape(line)))
    return Workload(path.name, tuple(sorted(arrivals, key=lambda each: each.at_s)))


def _shape(line: _Conversation) -> ConversationShape:
    turns = tuple(
        TurnShape(each.appended_tokens, each.output_tokens, each.gap_s, each.rewrites_from_tokens)
        for each in line.turns
    )
    return ConversationShape(line.id, turns, line.prefix, line.shared_prefix_tokens)


def write_own(path: pathlib.Path, arrivals: Iterable[Arrival]) -> int:
    """Write the arrivals in order of time, whole or not at all; the number of conversations written."""
    encoder = msgspec.json.Encoder()
    lines = [encoder.encode(_line(each)) for each in sorted(arrivals, key=lambda each: each.at_s)]
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_bytes(b"".join(line + b"\n" for line in lines))
        os.replace(beside, path)
    except OSError as error:
        raise TraceError(f"can't write {path}: {error.strerror}; name another file") from error
    return len(lines)


def _line(arrival: Arrival) -> _Conversation:
    shape = arrival.conversation
    turns = [
        _Turn(each.appended_tokens, each.output_tokens, round(each.gap_s, 6), each.rewrites_from_tokens)
        for each in shape.turns
    ]
    return _Conversation(shape.id, round(arrival.at_s, 6), turns, shape.prefix, shape.shared_prefix_tokens)
