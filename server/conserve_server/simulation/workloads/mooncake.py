"""Mooncake's trace format: one request a line, with the hashes of its prompt's blocks.

`timestamp` (ms), `input_length`, `output_length` and `hash_ids`, one for every 512 tokens, as in the
FAST '25 traces (github.com/kvcache-ai/Mooncake). Requests that carry a `session_id`, as Dynamo's and
AIPerf's variants do, are the turns of that session; `delay` (ms) is the time since the answer before,
plus `tool_wait_ms` in Dynamo's. Elsewhere a request is a conversation's next turn if its prompt
begins with all full blocks of that conversation's prompt before: only the latest prompts of
conversations are looked at, so the trace's own timing says which turn follows which.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass, field

import msgspec

from ..workload import Arrival, ConversationShape, Workload
from .blocks import SharedBlocks
from .reading import Seconds, Tokens, json_lines
from .recorded import RecordedRequest, common_blocks, turns_of

BLOCK_TOKENS = 512


class _Request(msgspec.Struct):
    input_length: Tokens
    output_length: Tokens
    timestamp: Seconds | None = None
    hash_ids: list[int] = []
    session_id: str | None = None
    delay: Seconds = 0.0
    tool_wait_ms: Seconds = 0.0


@dataclass(slots=True)
class _Conversation:
    """A conversation so far. `full_blocks` are those of its latest prompt that can't change any more."""

    id: str
    at_s: float
    first_hashes: list[int]
    requests: list[RecordedRequest] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    full_blocks: list[int] = field(default_factory=list)
    last_at_s: float = 0.0

    def is_continued_by(self, hashes: list[int]) -> bool:
        ends = self.full_blocks
        return len(hashes) > len(ends) and hashes[: len(ends)] == ends


def read_mooncake(
    path: pathlib.Path, *, block_tokens: int = BLOCK_TOKENS, decode_s: float = 0.03
) -> Workload:
    """The trace's requests as conversations, arriving as recorded.

    Without `delay`, the time between an answer and the next turn is not in the trace: it is taken as
    the time between the two requests less `decode_s` for each token of the answer.
    """
    conversations = _Conversations(block_tokens, decode_s)
    for number, request in json_lines(path, _Request):
        conversations.take(number, request)
    shared = SharedBlocks(each.first_hashes for each in conversations.found)
    arrivals = [Arrival(each.at_s, _shape(each, shared, block_tokens)) for each in conversations.found]
    return Workload(path.name, tuple(sorted(arrivals, key=lambda each: each.at_s)))


def _shape(conversation: _Conversation, shared: SharedBlocks, block_tokens: int) -> ConversationShape:
    turns = turns_of(conversation.requests)
    prefix, blocks = shared.prefix_of(conversation.first_hashes)
    tokens = min(blocks * block_tokens, turns[0].appended_tokens)
    return ConversationShape(conversation.id, turns, prefix, tokens if prefix else 0)


class _Conversations:
    """The conversations found so far, by session, or by the last full block of their latest prompt."""

    def __init__(self, block_tokens: int, decode_s: float) -> None:
        self._block_tokens, self._decode_s = block_tokens, decode_s
        self._sessions: dict[str, _Conversation] = {}
        self._ends: dict[int, _Conversation] = {}
        self.found: list[_Conversation] = []

    def take(self, number: int, request: _Request) -> None:
        known = self._before(request)
        if known is None:
            at_s = (request.timestamp or 0.0) / 1e3
            known = _Conversation(request.session_id or f"request-{number}", at_s, request.hash_ids)
            self.found.append(known)
            known.requests.append(RecordedRequest(request.input_length, request.output_length))
        else:
            known.requests.append(self._next(known, request))
        self._remember(known, request)

    def _before(self, request: _Request) -> _Conversation | None:
        if request.session_id is not None:
            return self._sessions.get(request.session_id)
        for block in reversed(request.hash_ids):
            conversation = self._ends.get(block)
            if conversation is not None and conversation.is_continued_by(request.hash_ids):
                return conversation
        return None

    def _next(self, known: _Conversation, request: _Request) -> RecordedRequest:
        before = known.requests[-1]
        gap_s = (request.delay + request.tool_wait_ms) / 1e3
        if not gap_s and request.timestamp is not None:
            passed_s = request.timestamp / 1e3 - known.last_at_s
            gap_s = max(passed_s - self._decode_s * before.output_tokens, 0.0)
        kept = common_blocks(known.hashes, request.hash_ids) * self._block_tokens
        # What the last, partial block held can't be seen: up to a block less is still all of it.
        whole = kept > before.input_tokens - self._block_tokens or not request.hash_ids
        return RecordedRequest(request.input_length, request.output_length, gap_s, None if whole else kept)

    def _remember(self, known: _Conversation, request: _Request) -> None:
        if request.session_id is not None:
            self._sessions[request.session_id] = known
        if known.full_blocks:
            self._ends.pop(known.full_blocks[-1], None)
        known.hashes = request.hash_ids
        # The last block of a prompt is rarely full, and then it has another hash once it is.
        known.full_blocks = request.hash_ids[: request.input_length // self._block_tokens]
        if request.timestamp is not None:
            known.last_at_s = request.timestamp / 1e3
        if known.full_blocks and request.session_id is None:
            self._ends[known.full_blocks[-1]] = known
