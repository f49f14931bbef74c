"""The traces of WEKA's kv-cache-tester (github.com/callanjfox/kv-cache-tester): a JSON file a conversation.

Its requests have `in` and `out` tokens, `t` (seconds since the conversation's start), `hash_ids` for
blocks of `block_size` tokens, and where known `think_time` (the client's) and `api_time` (the
server's). A `subagent` entry holds a conversation of its own, that runs beside its parent.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import msgspec

from conserve_server.core.errors import TraceError

from ..workload import Arrival, ConversationShape, Workload
from .reading import Seconds, Tokens, json_document
from .recorded import RecordedRequest, common_blocks, turns_of


class _Entry(msgspec.Struct):
    """A request, or a subagent with requests of its own."""

    type: str
    t: Seconds = 0.0
    input_tokens: Tokens = msgspec.field(default=0, name="in")
    output_tokens: Tokens = msgspec.field(default=0, name="out")
    hash_ids: list[int] = []
    think_time: Seconds | None = None
    api_time: Seconds | None = None
    agent_id: str | None = None
    requests: list[_Entry] = []


class _Trace(msgspec.Struct):
    id: str
    block_size: int
    requests: list[_Entry]
    hash_id_scope: str = "local"
    tool_tokens: Tokens = 0
    system_tokens: Tokens = 0


def read_weka(path: pathlib.Path) -> Workload:
    """One trace file, or all `*.json` of a folder, each conversation arriving at its own start.

    Traces have no common clock: a folder's conversations all start at 0, so give them an arrival
    process. Subagents are conversations of their own that arrive when their parent calls them.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise TraceError(f"{path}: there is no *.json file in this folder")
    arrivals = [arrival for file in files for arrival in _arrivals(file)]
    return Workload(path.name, tuple(sorted(arrivals, key=lambda each: each.at_s)))


def _arrivals(file: pathlib.Path) -> Iterator[Arrival]:
    trace = json_document(file, _Trace)
    if trace.block_size < 1:
        raise TraceError(f"{file}: block_size must be at least 1, got {trace.block_size}")
    for name, at_s, requests in _conversations(trace.id, 0.0, trace.requests):
        yield Arrival(at_s, _shape(trace, name, requests))


def _conversations(
    name: str, at_s: float, entries: list[_Entry]
) -> Iterator[tuple[str, float, list[_Entry]]]:
    requests = [entry for entry in entries if entry.type != "subagent"]
    if requests:
        yield name, at_s, requests
    for number, entry in enumerate((each for each in entries if each.type == "subagent"), 1):
        # Some writers count a subagent's times from its own start, others from the trace's.
        start_s = entry.t if entry.t >= at_s else at_s + entry.t
        yield from _conversations(f"{name}/{entry.agent_id or number}", start_s, entry.requests)


def _shape(trace: _Trace, name: str, entries: list[_Entry]) -> ConversationShape:
    turns = turns_of(_requests(trace, entries), rewritten_from=0)
    shared = min(trace.tool_tokens + trace.system_tokens, turns[0].appended_tokens)
    # Tools and system prompt of one size are taken as the same ones; another size is another prefix.
    prefix = f"tools-{trace.tool_tokens}-system-{trace.system_tokens}" if shared else None
    return ConversationShape(name, turns, prefix, shared)


def _requests(trace: _Trace, entries: list[_Entry]) -> Iterator[RecordedRequest]:
    before: _Entry | None = None
    for entry in entries:
        gap_s, kept = 0.0, None
        if before is not None:
            gap_s = _gap_s(before, entry)
            if before.hash_ids and entry.hash_ids:
                kept = common_blocks(before.hash_ids, entry.hash_ids) * trace.block_size
        yield RecordedRequest(entry.input_tokens, entry.output_tokens, gap_s, kept)
        before = entry


def _gap_s(before: _Entry, entry: _Entry) -> float:
    """The client's own time where it is known, else the time between the two less the server's."""
    if entry.think_time is not None:
        return entry.think_time
    return max(entry.t - before.t - (before.api_time or 0.0), 0.0)
