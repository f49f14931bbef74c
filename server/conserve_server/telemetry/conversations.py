"""The conversations in a trace folder: a line each, and the one that a prefix means."""

from __future__ import annotations

import difflib
import itertools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from conserve_server.core.errors import ConserveError
from conserve_server.telemetry import names
from conserve_server.telemetry.spans_file import Span
from conserve_server.telemetry.timeline import is_model_call, is_tool_call


class ConversationNotFound(ConserveError):
    """No conversation, or more than one, is meant; the message names those that are near."""


@dataclass(frozen=True, slots=True)
class ConversationLine:
    """One conversation in the list. `start_unix_s` is the wall clock."""

    id: str
    start_unix_s: float
    duration_s: float
    turns: int
    tools: int
    agent: str | None
    is_emulated: bool


def conversation_lines(spans: Iterable[Span]) -> list[ConversationLine]:
    """Every conversation among `spans`, the latest first."""
    found = ConversationList()
    found.add(spans)
    return found.lines()


class ConversationList:
    """The conversations among the spans told so far. Holds no span, only their identifiers."""

    def __init__(self) -> None:
        self._found: dict[str, _Counts] = {}

    def add(self, spans: Iterable[Span]) -> None:
        for span in spans:
            if span.conversation_id is not None:
                self._found.setdefault(span.conversation_id, _Counts()).add(span)

    def lines(self) -> list[ConversationLine]:
        """A line each, the latest conversation first."""
        lines = [counts.line(each) for each, counts in self._found.items() if counts.holds_rows]
        return sorted(lines, key=lambda line: (-line.start_unix_s, line.id))


def find_conversation(wanted: str, ids: Sequence[str]) -> str:
    """The id that `wanted` is, or is the only one to begin with. Raises ConversationNotFound."""
    if wanted in ids:
        return wanted
    matches = [each for each in ids if each.startswith(wanted)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConversationNotFound(
            f"{len(matches)} conversations begin with {wanted!r}, type more of one: {_few(matches)}"
        )
    near = difflib.get_close_matches(wanted, ids, n=3, cutoff=0.4)
    if near:
        raise ConversationNotFound(f"no conversation {wanted!r}; near it: {_few(near)}")
    raise ConversationNotFound(f"no conversation {wanted!r}; `conserve trace` lists them")


def short_ids(ids: Iterable[str], *, at_least: int = 24) -> dict[str, str]:
    """Each id cut to `at_least` characters, or to as many as tell it from all the others."""
    ordered = sorted(set(ids))
    lengths = dict.fromkeys(ordered, at_least)
    for one, next_one in itertools.pairwise(ordered):
        needed = 1 + sum(1 for _ in itertools.takewhile(bool, map(operator.eq, one, next_one)))
        lengths[one] = max(lengths[one], needed)
        lengths[next_one] = max(lengths[next_one], needed)
    return {each: each[:length] for each, length in lengths.items()}


def _few(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")


@dataclass(slots=True)
class _Counts:
    """What the spans of one conversation come to, told one by one, in any order."""

    agent: str | None = None
    is_emulated: bool = False
    turns: int = 0
    times_ns: list[int] = field(default_factory=list)
    turn_parents: set[str] = field(default_factory=set)
    model_calls: dict[str, tuple[int, int]] = field(default_factory=dict)
    tool_calls: set[str] = field(default_factory=set)

    @property
    def holds_rows(self) -> bool:
        """Whether there is anything to draw: an agent's own span alone is no conversation."""
        return bool(self.turns or self.model_calls or self.tool_calls)

    def add(self, span: Span) -> None:
        self.agent = self.agent or span.text(names.AGENT) or span.text(names.AGENT_NAME)
        self.is_emulated = self.is_emulated or span.flag(names.EMULATED)
        if is_model_call(span):
            self.model_calls[span.span_id] = (span.start_ns, span.end_ns)
        elif span.name == names.SPAN_TURN:
            self.turns += 1
            self.turn_parents.add(span.parent_id or "")
            self._stretch(span)
        elif is_tool_call(span):
            self.tool_calls.add(span.text(names.TOOL_CALL_ID) or span.span_id)
            self._stretch(span)

    def line(self, conversation_id: str) -> ConversationLine:
        unserved = [times for call, times in self.model_calls.items() if call not in self.turn_parents]
        times_ns = [*self.times_ns, *itertools.chain.from_iterable(unserved)]
        return ConversationLine(
            conversation_id,
            start_unix_s=min(times_ns) / 1e9,
            duration_s=(max(times_ns) - min(times_ns)) / 1e9,
            turns=self.turns + len(unserved),
            tools=len(self.tool_calls),
            agent=self.agent,
            is_emulated=self.is_emulated,
        )

    def _stretch(self, span: Span) -> None:
        """Keep the earliest and the latest time so far."""
        times_ns = [*self.times_ns, span.start_ns, span.end_ns]
        self.times_ns = [min(times_ns), max(times_ns)]
