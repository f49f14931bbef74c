from __future__ import annotations

import io
import pathlib
from dataclasses import replace

import pytest
from rich.console import Console
from rich.text import Text

from conserve_sdk.protocol import Outcome
from conserve_server.telemetry import names
from conserve_server.telemetry.conversations import ConversationLine
from conserve_server.telemetry.render import conversations_view, render_timeline, timeline_view
from conserve_server.telemetry.spans_file import read_spans
from conserve_server.telemetry.timeline import Phase, Segment, Timeline, ToolRow, TurnRow, timeline

ROOT = pathlib.Path(__file__).parents[2]
AT_80_COLUMNS = """\
                │0 s         │2 s          │4 s          │6 s               time
turn 1          ···▒▒▒▒▒▒▒»»»◆██████                                      2.80 s
  search                            ───────────────                       2.00 s
  fetch failed                      ──────────────────────                3.00 s
turn 2                                                     █◆██████████   1.70 s

turn path           engines              prompt cached output   TTFT outcome
1    remote-prefill prefill-0 → decode-1   1024      0     64 2.00 s completed
2    pinned         decode-1               1300   1088     40 250 ms completed

· admission wait   ▒ prefill   » KV transfer   █ decode   ◆ first token   ─ tool"""

PLAIN = Timeline("conv-1", 0.0, turns=(TurnRow(1, 0.0, 1.0, Outcome.COMPLETED),))


@pytest.fixture
def shown(researcher: pathlib.Path) -> Timeline:
    return timeline("conv-1", read_spans(researcher))


def test_a_conversation_fits_80_columns(shown: Timeline) -> None:
    head, _, body = render_timeline(shown, 80).partition("\n\n")
    assert body == AT_80_COLUMNS
    assert head.splitlines()[0] == "conversation conv-1"
    assert head.splitlines()[1].startswith("agent researcher, model smollm2, started 2023-11-1")
    assert head.splitlines()[2:] == ["2 turns, 2 tool calls, decoder decode-1, 1 KV transfer, TTFET 3.05 s"]


def test_figures_stand_beside_the_bars_where_there_is_room(shown: Timeline) -> None:
    (row,) = (line for line in render_timeline(shown, 180).splitlines() if line.startswith("turn 2"))
    assert row.endswith(
        "1.70 s  pinned          decode-1                1300    1088      40  250 ms  completed"
    )


@pytest.mark.parametrize("width", [60, 72, 80, 100, 120, 140, 200])
def test_no_line_is_wider_than_the_terminal(shown: Timeline, width: int) -> None:
    assert max(map(len, render_timeline(shown, width).splitlines())) <= width


def test_only_the_last_turns_are_drawn_when_asked(shown: Timeline) -> None:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    with console.capture() as text:
        console.print(timeline_view(shown, 80, last=1))
    assert "turn 2" in text.get()
    assert "turn 1" not in text.get()
    assert "TTFET 3.05 s" in text.get()


def test_an_emulated_engine_is_said_so() -> None:
    assert "emulated engine: its times are modelled" in render_timeline(replace(PLAIN, is_emulated=True), 80)
    assert "emulated" not in render_timeline(PLAIN, 80)


def test_an_id_that_the_gateway_made_is_said_so() -> None:
    assert "the client sent none" in render_timeline(replace(PLAIN, is_synthetic=True), 120)


def test_a_child_names_its_parent() -> None:
    assert "child of conversation conv-0" in render_timeline(replace(PLAIN, parent_id="conv-0"), 80)


def test_what_was_not_observed_is_a_dash() -> None:
    text = render_timeline(PLAIN, 80)
    assert "agent -, model -" in text
    assert "TTFET -" in text
    assert text.count("░") > 20


def test_a_failed_turn_says_why() -> None:
    turn = TurnRow(1, 0.0, 1.0, Outcome.FAILED, error="engine_timeout")
    assert "failed (engine_timeout)" in render_timeline(replace(PLAIN, turns=(turn,)), 100)


def test_a_leg_that_failed_is_said_though_the_turn_was_saved() -> None:
    leg = Segment(Phase.PREFILL, 0.0, 0.5, engine="prefill-0", error="engine_lost")
    text = render_timeline(replace(PLAIN, turns=(replace(PLAIN.turns[0], segments=(leg,)),)), 80)
    assert "turn 1: prefill failed on prefill-0 (engine_lost)" in text


def test_a_transfer_whose_end_is_only_bounded_is_said_so() -> None:
    turn = replace(PLAIN.turns[0], segments=(Segment(Phase.TRANSFER, 0.0, 0.5, is_bound=True),))
    assert "up to the first token" in render_timeline(replace(PLAIN, turns=(turn,)), 100)


def test_text_from_spans_can_neither_style_nor_steer_the_terminal() -> None:
    tool = ToolRow("[red]\x1b[2Jx", 0.0, 1.0, Outcome.COMPLETED)
    text = render_timeline(Timeline("conv-1", 0.0, agent="\x1b]0;title\x07", tools=(tool,)), 80)
    assert "\x1b" not in text
    assert "[red]?[2Jx" in text
    assert "?]0;title?" in text


def test_an_empty_timeline_is_drawn_too() -> None:
    assert "0 turns, 0 tool calls" in render_timeline(Timeline("conv-1", 0.0), 80)


def test_colour_adds_nothing_that_plain_text_lacks(shown: Timeline) -> None:
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system="standard")
    with console.capture() as text:
        console.print(timeline_view(shown, 80))
    assert "\x1b[" in text.get()
    plain = [line.rstrip() for line in Text.from_ansi(text.get()).plain.splitlines()]
    assert plain == render_timeline(shown, 80).splitlines()


def test_the_list_fits_80_columns_and_shows_enough_of_each_id() -> None:
    ids = [f"{number}f3a9c52-1b7e-4d40-9a55-2b6f0a1f3e11" for number in range(3)]
    lines = [ConversationLine(each, 0.0, 12.34, 3, 2, "researcher", is_emulated=False) for each in ids]
    console = Console(width=80, file=io.StringIO(), color_system=None)
    with console.capture() as text:
        console.print(conversations_view(lines, ids))
    _, *rows = text.get().splitlines()
    assert [row.split()[:4] for row in rows] == [[each[:24], "researcher", "3", "2"] for each in ids]
    assert all(row.rstrip().endswith("12.3 s") for row in rows)


def test_an_emulated_engine_is_said_so_in_the_list() -> None:
    line = ConversationLine("conv-1", 0.0, 1.0, 1, 0, "researcher", is_emulated=True)
    console = Console(width=80, file=io.StringIO(), color_system=None)
    with console.capture() as text:
        console.print(conversations_view([line], ["conv-1"]))
    assert "researcher (emulated)" in text.get()


def test_the_picture_in_the_documentation_is_what_is_drawn() -> None:
    assert AT_80_COLUMNS in (ROOT / "docs" / "tracing.md").read_text()


def test_every_name_that_the_server_knows_is_documented() -> None:
    page = (ROOT / "docs" / "tracing.md").read_text()
    known = [value for key, value in vars(names).items() if key.isupper()]
    assert [name for name in known if name not in page] == []


def test_the_joules_of_all_turns_are_a_line_of_the_head() -> None:
    turn = TurnRow(1, 0.0, 1.0, Outcome.COMPLETED, output_tokens=50, energy_j=12.5, energy_source="measured")
    head = render_timeline(replace(PLAIN, turns=(turn,)), 80).splitlines()
    assert "energy of its turns 12.5 J (measured), 0.25 J per output token" in head
