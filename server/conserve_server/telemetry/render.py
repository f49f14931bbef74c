"""A timeline for a terminal: bars on one time axis, and what each turn cost."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from conserve_sdk.protocol import Outcome, joules_text
from conserve_server.telemetry.bars import Mark, Window, axis, bar
from conserve_server.telemetry.conversations import ConversationLine, short_ids
from conserve_server.telemetry.timeline import Phase, Row, Timeline, ToolRow, TurnRow, rows_of

_GLYPHS = {
    Phase.WAIT: ("·", "yellow"),
    Phase.PREFILL: ("▒", "blue"),
    Phase.TRANSFER: ("»", "magenta"),
    Phase.DECODE: ("█", "green"),
}
_TOOL = ("─", "cyan")
_CALL = ("░", "white")
"""A turn without phases: a model call that no gateway of ours recorded."""
_FIRST_TOKEN = ("◆", "bold green")
_HEADINGS = ("path", "engines", "prompt", "cached", "output", "TTFT", "outcome")
_RIGHT = frozenset({"prompt", "cached", "output", "TTFT"})
_LABEL_CELLS = 20
_TIME_CELLS = 7
_GAP = 2
_SIDE_BY_SIDE_CELLS = 56
"""The chart stands beside the figures where at least this much is left for its bars."""


def render_timeline(timeline: Timeline, width: int) -> str:
    """The timeline as plain text, no line longer than `width` columns."""
    console = Console(width=width, file=io.StringIO(), color_system=None, force_terminal=False)
    with console.capture() as text:
        console.print(timeline_view(timeline, width))
    return "\n".join(line.rstrip() for line in text.get().splitlines())


def timeline_view(timeline: Timeline, width: int, *, last: int | None = None) -> RenderableType:
    """The timeline for a `rich` console of `width` columns: all rows, or those of the `last` N turns."""
    rows = rows_of(timeline, last=last)
    turns = [row for row in rows if isinstance(row, TurnRow)]
    label_cells = max((len(_label(row)) for row in rows), default=0)
    bar_cells = width - label_cells - _TIME_CELLS - 2 * _GAP
    is_wide = bar_cells - _facts_cells(turns) >= _SIDE_BY_SIDE_CELLS
    window = Window(
        start_s=min((row.start_s for row in rows), default=0.0),
        end_s=max((row.end_s for row in rows), default=0.0),
        cells=max(10, bar_cells - _facts_cells(turns) if is_wide else bar_cells),
    )
    chart = _chart(rows, window, with_facts=is_wide)
    below: list[RenderableType] = [] if is_wide else [_facts_table(turns, width), Text()]
    legend = _legend(turns, has_tools=len(rows) > len(turns))
    return Group(_header(timeline), Text(), chart, Text(), *below, legend)


def conversations_view(lines: Sequence[ConversationLine], ids: Iterable[str]) -> RenderableType:
    """A table of conversations, one a line, each by as much of its id as finds it among `ids`."""
    short = short_ids(ids)
    table = _grid(
        Column("conversation", no_wrap=True),
        Column("agent", overflow="fold"),
        Column("turns", justify="right"),
        Column("tools", justify="right"),
        Column("started", no_wrap=True),
        Column("time", justify="right", no_wrap=True),
    )
    for line in lines:
        table.add_row(
            Text(_clean(short[line.id])),
            Text(_clean(line.agent or "-") + (" (emulated)" if line.is_emulated else "")),
            str(line.turns),
            str(line.tools),
            time.strftime("%m-%d %H:%M:%S", time.localtime(line.start_unix_s)),
            _duration(line.duration_s),
        )
    return table


def _header(timeline: Timeline) -> Text:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timeline.start_unix_s))
    who = [
        f"agent {timeline.agent or '-'}",
        f"model {timeline.model or '-'}",
        f"started {started}",
        f"{_duration(timeline.duration_s)} in all",
    ]
    decoders = " → ".join(timeline.decoders) or "-"
    what = [
        _many(len(timeline.turns), "turn"),
        _many(len(timeline.tools), "tool call"),
        f"decoder {decoders}",
        _many(timeline.kv_transfers, "KV transfer"),
        f"TTFET {_duration(timeline.ttfet_s)}",
    ]
    lines = [
        Text.assemble(("conversation ", ""), (_clean(timeline.conversation_id), "bold")),
        Text(_clean(", ".join(who))),
        Text(_clean(", ".join(what))),
        *(Text(_clean(line)) for line in _energy(timeline)),
        *(Text(_clean(note), style="yellow") for note in _notes(timeline)),
    ]
    return Text("\n").join(lines)


def _energy(timeline: Timeline) -> list[str]:
    """A line where every turn's joules are known, and how they are."""
    if timeline.energy_j is None:
        return []
    sources = ", ".join(sorted({turn.energy_source or "?" for turn in timeline.turns}))
    output_tokens = sum(turn.output_tokens or 0 for turn in timeline.turns)
    each = f", {joules_text(timeline.energy_j / output_tokens)} per output token" if output_tokens else ""
    return [f"energy of its turns {joules_text(timeline.energy_j)} ({sources}){each}"]


def _notes(timeline: Timeline) -> list[str]:
    notes = []
    if timeline.parent_id:
        notes.append(f"child of conversation {timeline.parent_id}")
    if timeline.is_synthetic:
        notes.append("its id is the gateway's: the client sent none, the turns were matched by their history")
    if timeline.is_emulated:
        notes.append("emulated engine: its times are modelled, not measured")
    return notes


def _chart(rows: Sequence[Row], window: Window, *, with_facts: bool) -> Table:
    """A bar for each row, with the turns' figures beside it where there is room."""
    table = _grid(
        Column(),
        Column(axis(window), width=window.cells),
        Column("time", justify="right", width=_TIME_CELLS),
        *(_fact_columns() if with_facts else ()),
    )
    for row in rows:
        drawn = Text.assemble(*bar(_marks(row, window), window))
        facts = _fact_cells(row) if with_facts and isinstance(row, TurnRow) else ()
        table.add_row(Text(_label(row)), drawn, _duration(row.end_s - row.start_s), *facts)
    return table


def _facts_cells(turns: Sequence[TurnRow]) -> int:
    """How wide the turns' figures are, with the gap before each column."""
    columns = zip(_HEADINGS, *map(_facts, turns), strict=True)
    return sum(_GAP + max(map(len, column)) for column in columns)


def _facts_table(turns: Sequence[TurnRow], width: int) -> Table:
    gap = _GAP if len("turn") + _facts_cells(turns) <= width else 1
    table = _grid(Column("turn"), *_fact_columns(), gap=gap)
    for turn in turns:
        table.add_row(Text(_label(turn).removeprefix("turn ")), *_fact_cells(turn))
    return table


def _facts(turn: TurnRow) -> tuple[str, ...]:
    engines = " → ".join(_clean(name) for name in (turn.prefiller, turn.decoder) if name)
    error = f" ({_clean(turn.error)})" if turn.error else ""
    rebound = f", rebound: {_clean(turn.rebind)}" if turn.rebind else ""
    return (
        turn.path or "-",
        engines or "-",
        _count(turn.prompt_tokens),
        _count(turn.cached_tokens),
        _count(turn.output_tokens),
        _duration(turn.ttft_s),
        turn.outcome + error + rebound,
    )


def _fact_cells(turn: TurnRow) -> list[Text]:
    *figures, outcome = _facts(turn)
    style = "" if turn.outcome is Outcome.COMPLETED else "red"
    return [*map(Text, figures), Text(outcome, style=style)]


def _marks(row: Row, window: Window) -> list[Mark]:
    if isinstance(row, ToolRow):
        return [Mark(row.start_s, row.end_s, *_TOOL)]
    if not row.segments:
        return [Mark(row.start_s, row.end_s, *_CALL)]
    marks = [Mark(s.start_s, s.end_s, *_GLYPHS[s.phase]) for s in row.segments]
    if row.ttft_s is not None and row.end_s - row.start_s > 4 * window.cell_s:
        at_s = window.start_s + window.cell_at(row.start_s + row.ttft_s) * window.cell_s
        # The first that covers a whole cell fills it, so the first token hides what is under it.
        marks.insert(0, Mark(at_s, at_s + window.cell_s, *_FIRST_TOKEN))
    return marks


def _legend(turns: Sequence[TurnRow], *, has_tools: bool) -> Text:
    used = {segment.phase for turn in turns for segment in turn.segments}
    entries = [(*_GLYPHS[phase], phase.value) for phase in Phase if phase in used]
    if any(turn.ttft_s is not None and turn.segments for turn in turns):
        entries.append((*_FIRST_TOKEN, "first token"))
    if has_tools:
        entries.append((*_TOOL, "tool"))
    if not all(turn.segments for turn in turns):
        entries.append((*_CALL, "model call"))
    parts = [Text.assemble((glyph, style), f" {name}") for glyph, style, name in entries]
    lines = [Text("   ").join(parts)]
    lines += [Text(note, style="red") for turn in turns for note in _failures(turn)]
    if any(segment.is_bound for turn in turns for segment in turn.segments):
        lines.append(
            Text("KV transfers are drawn up to the first token: the engine does not report their end.")
        )
    return Text("\n").join(lines)


def _failures(turn: TurnRow) -> list[str]:
    """What went wrong within a turn, also where the turn was saved on another engine."""
    return [
        _clean(f"{_label(turn)}: {s.phase} failed on {s.engine or 'an engine'} ({s.error})")
        for s in turn.segments
        if s.error is not None
    ]


def _grid(*columns: Column, gap: int = _GAP) -> Table:
    for column in columns:
        column.no_wrap = column.no_wrap or column.overflow == "ellipsis"
        column.header_style = "dim"
    return Table(*columns, box=None, padding=(0, gap, 0, 0), pad_edge=False)


def _fact_columns() -> list[Column]:
    return [
        Column(name, justify="right" if name in _RIGHT else "left", overflow="fold") for name in _HEADINGS
    ]


def _label(row: Row) -> str:
    if isinstance(row, TurnRow):
        return "call" if row.index is None else f"turn {row.index}"
    mark = "" if row.outcome is Outcome.COMPLETED else f" {row.outcome}"
    name = _clean(row.name) + mark
    return "  " + (name if len(name) <= _LABEL_CELLS - 2 else name[: _LABEL_CELLS - 3] + "…")


def _clean(text: str) -> str:
    """Text from a span without control characters: a tool's name may be a model's invention."""
    return "".join(c if c.isprintable() else "?" for c in itertools.islice(text, 300))


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _duration(seconds: float | None) -> str:
    """A time as a person reads it: `0.4 ms`, `41 ms`, `2.30 s`, `12.3 s`, `15 min`."""
    if seconds is None:
        return "-"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.{1 if seconds < 0.00995 else 0}f} ms"
    if seconds < 600:
        return f"{seconds:.{2 if seconds < 9.995 else 1}f} s"
    return f"{seconds / 60:.0f} min"
