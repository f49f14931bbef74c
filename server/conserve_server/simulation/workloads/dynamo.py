"""NVIDIA Dynamo's request traces: `dynamo.agent.trace.v1` and `dynamo.request.trace.v1`, as JSON lines.

One `request_end` event for each model request: `agent_context` says whose it is (`trajectory_id`, in
later versions `session_id` alone; `program_id` in the first), `request` its tokens and times,
`request.replay` the hashes of its prompt. The sinks wrap events as `{"timestamp": …, "event": …}`.
Tool events are not needed: the time between an answer and the next request holds them.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import msgspec

from conserve_server.core.errors import TraceError

from ..workload import Arrival, ConversationShape, Workload
from .blocks import SharedBlocks
from .reading import Seconds, Tokens, json_lines
from .recorded import RecordedRequest, common_blocks, turns_of

_SCHEMAS = ("dynamo.agent.trace.v1", "dynamo.request.trace.v1")


class _Context(msgspec.Struct, frozen=True):
    session_id: str | None = None
    trajectory_id: str | None = None
    program_id: str | None = None


class _Replay(msgspec.Struct):
    trace_block_size: int
    input_length: Tokens
    input_sequence_hashes: list[int]


class _Metrics(msgspec.Struct):
    output_tokens: Tokens | None = None
    input_tokens: Tokens | None = None
    request_received_ms: Seconds | None = None
    total_time_ms: Seconds | None = None
    replay: _Replay | None = None

    @property
    def prompt_tokens(self) -> int | None:
        if self.input_tokens is None and self.replay is not None:
            return self.replay.input_length
        return self.input_tokens


class _Event(msgspec.Struct):
    schema: str
    event_type: str
    event_time_unix_ms: Seconds
    agent_context: _Context = _Context()
    request: _Metrics | None = None


class _Line(msgspec.Struct):
    """An event, wrapped by a sink or not."""

    event: _Event | None = None
    schema: str = ""
    event_type: str = ""
    event_time_unix_ms: Seconds = 0.0
    agent_context: _Context = _Context()
    request: _Metrics | None = None


class _Request(msgspec.Struct):
    start_s: float
    end_s: float
    input_tokens: int
    output_tokens: int
    replay: _Replay | None


def read_dynamo(path: pathlib.Path) -> Workload:
    """The trace's conversations, arriving as recorded, the first at 0."""
    by_conversation: dict[str, list[_Request]] = {}
    for number, line in json_lines(path, _Line):
        event = line.event or line
        if event.schema not in _SCHEMAS:
            raise TraceError(f"{path}:{number}: schema must be one of {_SCHEMAS}, got {event.schema!r}")
        if event.event_type == "request_end":
            name, request = _request(f"{path}:{number}", event)
            by_conversation.setdefault(name, []).append(request)
    for requests in by_conversation.values():
        requests.sort(key=lambda each: each.start_s)
    return Workload(path.name, _arrivals(by_conversation))


def _request(where: str, event: _Event | _Line) -> tuple[str, _Request]:
    context, metrics = event.agent_context, event.request
    name = context.trajectory_id or context.program_id or context.session_id
    if name is None:
        raise TraceError(f"{where}: agent_context must have a trajectory_id or a session_id")
    if metrics is None or metrics.prompt_tokens is None:
        raise TraceError(f"{where}: request must have input_tokens, or replay.input_length")
    end_s = event.event_time_unix_ms / 1e3
    start_s = end_s - (metrics.total_time_ms or 0.0) / 1e3
    if metrics.request_received_ms is not None:
        start_s = metrics.request_received_ms / 1e3
    return name, _Request(start_s, end_s, metrics.prompt_tokens, metrics.output_tokens or 0, metrics.replay)


def _arrivals(by_conversation: dict[str, list[_Request]]) -> tuple[Arrival, ...]:
    shared = SharedBlocks(_first_hashes(each) for each in by_conversation.values())
    start_s = min((each[0].start_s for each in by_conversation.values()), default=0.0)
    arrivals = [
        Arrival(requests[0].start_s - start_s, _shape(name, requests, shared))
        for name, requests in by_conversation.items()
    ]
    return tuple(sorted(arrivals, key=lambda each: each.at_s))


def _first_hashes(requests: list[_Request]) -> list[int]:
    replay = requests[0].replay
    return replay.input_sequence_hashes if replay else []


def _shape(name: str, requests: list[_Request], shared: SharedBlocks) -> ConversationShape:
    turns = turns_of(_recorded(requests))
    prefix, blocks = shared.prefix_of(_first_hashes(requests))
    replay = requests[0].replay
    tokens = min(blocks * replay.trace_block_size, turns[0].appended_tokens) if replay else 0
    return ConversationShape(name, turns, prefix, tokens)


def _recorded(requests: list[_Request]) -> Iterator[RecordedRequest]:
    before: _Request | None = None
    for each in requests:
        gap_s, kept = 0.0, None
        if before is not None:
            gap_s = max(each.start_s - before.end_s, 0.0)
            if before.replay and each.replay:
                blocks = common_blocks(before.replay.input_sequence_hashes, each.replay.input_sequence_hashes)
                kept = blocks * each.replay.trace_block_size
        yield RecordedRequest(each.input_tokens, each.output_tokens, gap_s, kept)
        before = each
