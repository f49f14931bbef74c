"""Timelines as a trace file for Perfetto (ui.perfetto.dev) and Chrome's trace viewer. Pure.

The JSON object form of the Trace Event Format: complete events ("X") with times in
microseconds. Each conversation is a process whose tracks are its turns, with their phases
inside, and its tools; one more process shows the same phases by engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from conserve_server.telemetry.timeline import Phase, Segment, Timeline, ToolRow, TurnRow

Argument = str | int | float | bool
Event = dict[str, str | int | float | dict[str, Argument]]

_ENGINES_PROCESS = 1
_FIRST_CONVERSATION = 2


def trace_events(timelines: Sequence[Timeline]) -> dict[str, list[Event] | str]:
    """The document that both viewers load; times count from the earliest conversation's start."""
    zero_s = min((each.start_unix_s for each in timelines), default=0.0)
    engines = _Process(_ENGINES_PROCESS, "engines")
    processes = [engines]
    for number, each in enumerate(timelines):
        process = _Process(_FIRST_CONVERSATION + number, _title(each))
        _add_conversation(process, engines, each, each.start_unix_s - zero_s)
        processes.append(process)
    events = [event for process in processes if process.slices for event in process.events()]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


@dataclass(frozen=True, slots=True)
class _Slice:
    track: str
    name: str
    start_s: float
    end_s: float
    arguments: dict[str, Argument]
    inside: tuple[_Slice, ...] = ()


@dataclass(slots=True)
class _Process:
    """A group of tracks. Slices of a track that overlap are put onto lanes of their own."""

    id: int
    name: str
    slices: list[_Slice] = field(default_factory=list)

    def events(self) -> Iterator[Event]:
        yield self._named("process_name", 0, self.name)
        threads = 0
        for track in dict.fromkeys(each.track for each in self.slices):
            lanes = _lanes([each for each in self.slices if each.track == track])
            for number, lane in enumerate(lanes):
                threads += 1
                yield self._named("thread_name", threads, track if number == 0 else f"{track} ({number + 1})")
                for each in lane:
                    yield from self._complete(each, threads)

    def _complete(self, each: _Slice, thread: int) -> Iterator[Event]:
        yield {
            "ph": "X",
            "name": each.name,
            "pid": self.id,
            "tid": thread,
            "ts": round(each.start_s * 1e6),
            "dur": round((each.end_s - each.start_s) * 1e6),
            "args": each.arguments,
        }
        for inner in each.inside:
            yield from self._complete(inner, thread)

    def _named(self, what: str, thread: int, name: str) -> Event:
        return {"ph": "M", "name": what, "pid": self.id, "tid": thread, "args": {"name": name}}


def _lanes(slices: Iterable[_Slice]) -> list[list[_Slice]]:
    """The slices on as few lanes as keep those of a lane apart: the first lane that is free takes one."""
    lanes: list[list[_Slice]] = []
    for each in sorted(slices, key=lambda one: (one.start_s, one.end_s)):
        free = next((lane for lane in lanes if lane[-1].end_s <= each.start_s), None)
        if free is None:
            lanes.append([each])
        else:
            free.append(each)
    return lanes


def _add_conversation(process: _Process, engines: _Process, whole: Timeline, from_s: float) -> None:
    for turn in whole.turns:
        phases = tuple(_phases(turn, from_s))
        process.slices.append(
            _Slice("turns", _label(turn), from_s + turn.start_s, from_s + turn.end_s, _facts(turn), phases)
        )
        for phase, segment in zip(phases, turn.segments, strict=True):
            engine = _engine(turn, segment)
            if engine is not None:
                shown = {"conversation": whole.conversation_id, **phase.arguments}
                name = f"{phase.name} · {whole.conversation_id[:12]} {_label(turn)}"
                engines.slices.append(_Slice(engine, name, phase.start_s, phase.end_s, shown))
    for tool in whole.tools:
        process.slices.append(_tool(tool, from_s))


def _phases(turn: TurnRow, from_s: float) -> Iterator[_Slice]:
    for segment in turn.segments:
        facts: dict[str, Argument | None] = {"error": segment.error, "engine": _engine(turn, segment)}
        if segment.is_bound:
            facts["end"] = "at the latest: the engine does not report it"
        start_s, end_s = from_s + segment.start_s, from_s + segment.end_s
        yield _Slice("turns", segment.phase, start_s, end_s, _known(facts))


def _engine(turn: TurnRow, segment: Segment) -> str | None:
    """Where the phase ran; waiting is on none."""
    if segment.phase is Phase.WAIT:
        return None
    return segment.engine or (turn.prefiller if segment.phase is Phase.PREFILL else turn.decoder)


def _tool(tool: ToolRow, from_s: float) -> _Slice:
    facts = _known({"outcome": tool.outcome, "error": tool.error})
    return _Slice("tools", tool.name, from_s + tool.start_s, from_s + tool.end_s, facts)


def _facts(turn: TurnRow) -> dict[str, Argument]:
    return _known(
        {
            "path": turn.path,
            "prefiller": turn.prefiller,
            "decoder": turn.decoder,
            "prompt_tokens": turn.prompt_tokens,
            "cached_tokens": turn.cached_tokens,
            "output_tokens": turn.output_tokens,
            "ttft_s": turn.ttft_s,
            "outcome": turn.outcome,
            "error": turn.error,
        }
    )


def _known(facts: dict[str, Argument | None]) -> dict[str, Argument]:
    return {name: value for name, value in facts.items() if value is not None}


def _label(turn: TurnRow) -> str:
    return "model call" if turn.index is None else f"turn {turn.index}"


def _title(whole: Timeline) -> str:
    return f"{whole.agent or 'conversation'} {whole.conversation_id}"
