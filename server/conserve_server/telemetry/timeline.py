"""A conversation's timeline, made from the spans of the agent and of the gateway. Pure.

Two processes write: the gateway one `conserve.turn` a turn, with a child for each phase; the
agent (OpenTelemetry's GenAI instrumentation) one span a model call and one a tool call. A
model call whose child is a gateway's turn is that turn; one without is a turn of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from operator import attrgetter

from conserve_sdk.protocol import Outcome, Path
from conserve_server.telemetry import names
from conserve_server.telemetry.spans_file import Span

_MODEL_CALLS = ("chat", "text_completion", "generate_content")
_TOOL_CALL = "execute_tool"


class Phase(StrEnum):
    """What a turn does at one moment."""

    WAIT = "admission wait"
    PREFILL = "prefill"
    TRANSFER = "KV transfer"
    DECODE = "decode"


_PHASES = {
    names.SPAN_ADMISSION: Phase.WAIT,
    names.SPAN_PREFILL: Phase.PREFILL,
    names.SPAN_TRANSFER: Phase.TRANSFER,
    names.SPAN_DECODE: Phase.DECODE,
}


@dataclass(frozen=True, slots=True)
class Segment:
    """One phase of a turn, in seconds since the timeline's start. Segments of a turn don't overlap.

    `is_bound`: the phase ended at `end_s` or before, the engine does not say when. `error` is
    what went wrong on `engine`; the turn itself may have been saved elsewhere.
    """

    phase: Phase
    start_s: float
    end_s: float
    is_bound: bool = False
    engine: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TurnRow:
    """One turn. `index` is the gateway's; None for a model call that no gateway of ours saw."""

    index: int | None
    start_s: float
    end_s: float
    outcome: Outcome
    segments: tuple[Segment, ...] = ()
    path: Path | None = None
    prefiller: str | None = None
    decoder: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    ttft_s: float | None = None
    error: str | None = None
    rebind: str | None = None
    energy_j: float | None = None
    energy_source: str | None = None


@dataclass(frozen=True, slots=True)
class ToolRow:
    """One tool call, as the agent timed it."""

    name: str
    start_s: float
    end_s: float
    outcome: Outcome
    error: str | None = None


Row = TurnRow | ToolRow


@dataclass(frozen=True, slots=True)
class Timeline:
    """One conversation. `start_unix_s` is the wall clock at 0 s; rows are in order of their start."""

    conversation_id: str
    start_unix_s: float
    agent: str | None = None
    model: str | None = None
    parent_id: str | None = None
    is_synthetic: bool = False
    is_emulated: bool = False
    turns: tuple[TurnRow, ...] = ()
    tools: tuple[ToolRow, ...] = ()

    @property
    def duration_s(self) -> float:
        """From the first row's start to the last row's end."""
        ends_s = [turn.end_s for turn in self.turns] + [tool.end_s for tool in self.tools]
        return max(ends_s, default=0.0)

    @property
    def decoders(self) -> tuple[str, ...]:
        """Every decoder that it was on, in order; more than one means that it was placed again."""
        return tuple(dict.fromkeys(turn.decoder for turn in self.turns if turn.decoder))

    @property
    def kv_transfers(self) -> int:
        return sum(s.phase is Phase.TRANSFER for turn in self.turns for s in turn.segments)

    @property
    def energy_j(self) -> float | None:
        """Joules of its turns, those between them not counted; None unless all of them are known."""
        known = [turn.energy_j for turn in self.turns if turn.energy_j is not None]
        return sum(known) if known and len(known) == len(self.turns) else None

    @property
    def ttfet_s(self) -> float | None:
        """Time to first effective token: up to the last turn's first token, tool time left out."""
        if not self.turns or self.turns[-1].ttft_s is None:
            return None
        first_token_s = self.turns[-1].start_s + self.turns[-1].ttft_s
        return _covered_s([(turn.start_s, min(turn.end_s, first_token_s)) for turn in self.turns])


def timeline(conversation_id: str, spans: Iterable[Span]) -> Timeline:
    """The timeline of one conversation, from its spans in any order."""
    ordered = sorted(spans, key=lambda span: (span.start_ns, span.end_ns))
    tools = _tool_spans(ordered)
    turns = _turn_spans(ordered)
    children = _by_parent(ordered)
    zero_ns = min((span.start_ns for span in (*turns, *tools)), default=0)
    return Timeline(
        conversation_id,
        start_unix_s=zero_ns / 1e9,
        agent=_first_text(ordered, names.AGENT) or _first_text(ordered, names.AGENT_NAME),
        model=_first_text([*turns, *ordered], names.REQUEST_MODEL),
        parent_id=_first_text(ordered, names.PARENT_CONVERSATION_ID),
        is_synthetic=any(span.flag(names.SYNTHETIC) for span in ordered),
        is_emulated=any(span.flag(names.EMULATED) for span in ordered),
        turns=tuple(_turn(span, children.get(span.span_id, []), zero_ns) for span in turns),
        tools=tuple(_tool(span, zero_ns) for span in tools),
    )


def rows_of(whole: Timeline, *, last: int | None = None) -> list[Row]:
    """Turns and tool calls in the order in which they began: all, or those from the `last` N turns on."""
    rows: list[Row] = sorted((*whole.turns, *whole.tools), key=attrgetter("start_s", "end_s"))
    if last is None or len(whole.turns) <= last:
        return rows
    from_s = whole.turns[-last].start_s
    return [row for row in rows if row.start_s >= from_s]


def is_model_call(span: Span) -> bool:
    return _operation(span) in _MODEL_CALLS


def is_tool_call(span: Span) -> bool:
    return _operation(span) == _TOOL_CALL


def _operation(span: Span) -> str:
    return span.text(names.OPERATION) or span.name.partition(" ")[0]


def _turn_spans(ordered: Sequence[Span]) -> list[Span]:
    served = {span.parent_id for span in ordered if span.name == names.SPAN_TURN}
    return [
        span
        for span in ordered
        if span.name == names.SPAN_TURN or (is_model_call(span) and span.span_id not in served)
    ]


def _tool_spans(ordered: Sequence[Span]) -> list[Span]:
    """Each tool call once, though the SDK and a framework's instrumentation may both have timed it."""
    seen: set[str] = set()
    kept = []
    for span in filter(is_tool_call, ordered):
        call_id = span.text(names.TOOL_CALL_ID) or span.span_id
        if call_id not in seen:
            seen.add(call_id)
            kept.append(span)
    return kept


def _by_parent(ordered: Iterable[Span]) -> dict[str, list[Span]]:
    children: dict[str, list[Span]] = {}
    for span in ordered:
        if span.parent_id is not None:
            children.setdefault(span.parent_id, []).append(span)
    return children


def _turn(span: Span, children: Sequence[Span], zero_ns: int) -> TurnRow:
    path = span.text(names.TURN_PATH)
    start_s, end_s = _interval(span, zero_ns)
    energy = next((child for child in children if child.name == names.SPAN_ENERGY), None)
    return TurnRow(
        index=span.count(names.TURN_INDEX),
        start_s=start_s,
        end_s=end_s,
        outcome=_outcome(span),
        segments=_segments(children, zero_ns),
        path=Path(path) if path in list(Path) else None,
        prefiller=span.text(names.PREFILLER),
        decoder=span.text(names.DECODER),
        prompt_tokens=_either(span, names.TURN_INPUT_TOKENS, names.INPUT_TOKENS),
        cached_tokens=_either(span, names.TURN_CACHE_READ_TOKENS, names.CACHE_READ_TOKENS),
        output_tokens=_either(span, names.TURN_OUTPUT_TOKENS, names.OUTPUT_TOKENS),
        ttft_s=span.seconds(names.TURN_TTFT_S),
        error=span.text(names.ERROR_TYPE),
        rebind=span.text(names.REBIND_CAUSE),
        energy_j=energy.seconds(names.ENERGY_J) if energy is not None else None,
        energy_source=energy.text(names.ENERGY_SOURCE) if energy is not None else None,
    )


def _either(span: Span, own: str, shared: str) -> int | None:
    counted = span.count(own)
    return span.count(shared) if counted is None else counted


def _segments(children: Sequence[Span], zero_ns: int) -> tuple[Segment, ...]:
    phases = [_segment(child, zero_ns) for child in children if child.name in _PHASES]
    transfers = [segment for segment in phases if segment.phase is Phase.TRANSFER]
    cut = [_after(segment, transfers) if segment.phase is Phase.DECODE else segment for segment in phases]
    return tuple(sorted(cut, key=lambda segment: (segment.start_s, segment.end_s)))


def _after(decode: Segment, transfers: Sequence[Segment]) -> Segment:
    """The decode leg from where its KV had arrived: the transfer runs at the leg's beginning."""
    start_s = max((t.end_s for t in transfers if t.start_s < decode.end_s), default=decode.start_s)
    return replace(decode, start_s=min(max(start_s, decode.start_s), decode.end_s))


def _segment(child: Span, zero_ns: int) -> Segment:
    start_s, end_s = _interval(child, zero_ns)
    return Segment(
        _PHASES[child.name],
        start_s,
        end_s,
        is_bound=child.text(names.TRANSFER_OBSERVED_BY) == "first_token",
        engine=child.text(names.PREFILLER) or child.text(names.DECODER),
        error=(child.text(names.ERROR_TYPE) or "error") if child.is_error else None,
    )


def _tool(span: Span, zero_ns: int) -> ToolRow:
    start_s, end_s = _interval(span, zero_ns)
    name = span.text(names.TOOL_NAME) or span.name.removeprefix(_TOOL_CALL).strip() or "tool"
    return ToolRow(name, start_s, end_s, _outcome(span), span.text(names.ERROR_TYPE))


def _outcome(span: Span) -> Outcome:
    said = span.text(names.TURN_OUTCOME)
    if said in list(Outcome):
        return Outcome(said)
    return Outcome.FAILED if span.is_error else Outcome.COMPLETED


def _interval(span: Span, zero_ns: int) -> tuple[float, float]:
    return (span.start_ns - zero_ns) / 1e9, (max(span.end_ns, span.start_ns) - zero_ns) / 1e9


def _first_text(spans: Iterable[Span], name: str) -> str | None:
    return next((text for span in spans if (text := span.text(name)) is not None), None)


def _covered_s(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of `intervals`."""
    covered_s, until_s = 0.0, float("-inf")
    for start_s, end_s in sorted(intervals):
        covered_s += max(0.0, end_s - max(start_s, until_s))
        until_s = max(until_s, end_s)
    return covered_s
