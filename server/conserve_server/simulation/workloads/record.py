"""From what a gateway served to a workload: tokens and times, without names or content."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from conserve_server.telemetry import names
from conserve_server.telemetry.spans_file import Span

from ..workload import Arrival, ConversationShape
from .recorded import RecordedRequest, turns_of


@dataclass(frozen=True, slots=True)
class ServedTurn:
    """One turn that an engine counted. Times are seconds on one clock for all turns."""

    start_s: float
    end_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int | None
    agent: str | None


def recorded_arrivals(spans: Iterable[Span], *, since_unix_s: float = 0.0) -> list[Arrival]:
    """The conversations of a gateway's spans that began at `since_unix_s` or later.

    Turns whose prompt no engine counted are left out: nothing is known of their size.
    """
    turns = _turns_by_conversation(spans)
    return arrivals_of([each for each in turns if each[0].start_s >= since_unix_s])


def arrivals_of(conversations: Iterable[Sequence[ServedTurn]]) -> list[Arrival]:
    """Conversations, each the turns of one in their order, by the time of the first, which is at 0 s.

    They are numbered: an id or an agent's name may say more than is wanted in a trace. Those of
    one agent share a prefix if first turns of it hit the cache; its length is the median of those hits.
    """
    begun = sorted(conversations, key=lambda each: each[0].start_s)
    prefixes = _prefixes(begun)
    start_s = begun[0][0].start_s if begun else 0.0
    return [
        Arrival(each[0].start_s - start_s, _shape(f"c{number}", each, prefixes))
        for number, each in enumerate(begun, 1)
    ]


def _turns_by_conversation(spans: Iterable[Span]) -> list[list[ServedTurn]]:
    found: defaultdict[str, list[ServedTurn]] = defaultdict(list)
    for span in spans:
        turn = _turn(span) if span.name == names.SPAN_TURN else None
        if turn is not None and span.conversation_id is not None:
            found[f"{span.text(names.TENANT)} {span.conversation_id}"].append(turn)
    return [sorted(turns, key=lambda each: each.start_s) for turns in found.values()]


def _turn(span: Span) -> ServedTurn | None:
    tokens = span.count(names.INPUT_TOKENS)
    if not tokens:
        return None
    return ServedTurn(
        span.start_ns / 1e9,
        span.end_ns / 1e9,
        tokens,
        span.count(names.OUTPUT_TOKENS) or 0,
        span.count(names.CACHE_READ_TOKENS),
        span.text(names.AGENT),
    )


def _prefixes(conversations: Sequence[Sequence[ServedTurn]]) -> dict[str | None, tuple[str, int]]:
    """Each agent's shared prefix: a name that says nothing, and its tokens."""
    hits: defaultdict[str | None, list[int]] = defaultdict(list)
    for turns in conversations:
        if turns[0].agent is not None and turns[0].cached_tokens:
            hits[turns[0].agent].append(turns[0].cached_tokens)
    return {
        agent: (f"agent-{number}", int(statistics.median(tokens)))
        for number, (agent, tokens) in enumerate(hits.items(), 1)
    }


def _shape(
    name: str, turns: Sequence[ServedTurn], prefixes: dict[str | None, tuple[str, int]]
) -> ConversationShape:
    shapes = turns_of(_requests(turns))
    prefix, tokens = prefixes.get(turns[0].agent, (None, 0))
    return ConversationShape(name, shapes, prefix, min(tokens, shapes[0].appended_tokens))


def _requests(turns: Sequence[ServedTurn]) -> Iterator[RecordedRequest]:
    before: ServedTurn | None = None
    for turn in turns:
        gap_s, kept = 0.0, None
        if before is not None:
            gap_s = max(turn.start_s - before.end_s, 0.0)
            if turn.input_tokens < before.input_tokens:
                kept = turn.cached_tokens  # the history was rewritten; the cache says from where at least
        yield RecordedRequest(turn.input_tokens, turn.output_tokens, gap_s, kept)
        before = turn
