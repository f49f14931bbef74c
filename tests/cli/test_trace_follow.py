from __future__ import annotations

import io
import json
import pathlib
from collections.abc import Callable

import pytest
from rich.console import Console

from conserve_server.cli.trace_follow import FollowedList, FollowedTimeline, follow
from conserve_server.telemetry import names


def turn(conversation_id: str, index: int) -> str:
    """One line of a trace file: a turn of half a second."""
    start_ns = 1_700_000_000_000_000_000 + index * 1_000_000_000
    attributes = [
        {"key": names.CONVERSATION_ID, "value": {"stringValue": conversation_id}},
        {"key": names.TURN_INDEX, "value": {"intValue": index}},
    ]
    span = {
        "spanId": f"{conversation_id}-{index}",
        "name": names.SPAN_TURN,
        "startTimeUnixNano": str(start_ns),
        "endTimeUnixNano": str(start_ns + 500_000_000),
        "attributes": attributes,
    }
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}) + "\n"


def scripted(*happens: Callable[[], object]) -> Callable[[float], None]:
    """A wait in which one thing happens after the other, and at last the user interrupts."""
    left = list(happens)

    def wait(_seconds: float) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    return wait


def appended(file: pathlib.Path, text: str) -> Callable[[], object]:
    def append() -> None:
        with file.open("a") as to:
            to.write(text)

    return append


def console(*, is_terminal: bool) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=100, force_terminal=is_terminal, color_system=None), output


@pytest.mark.parametrize("is_terminal", [True, False])
def test_turns_appear_as_they_are_written(is_terminal: bool, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "gateway-1.jsonl"
    file.write_text(turn("conv-1", 1))
    to, output = console(is_terminal=is_terminal)
    wait = scripted(lambda: None, appended(file, turn("conv-1", 2) + turn("conv-2", 3)))
    follow(FollowedTimeline(tmp_path, "conv-1", last=None), to, wait=wait)
    shown = output.getvalue()
    assert shown.index("1 turn,") < shown.index("2 turns,")
    assert "turn 3" not in shown


def test_a_list_is_followed_from_before_its_folder_exists(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "traces"
    to, output = console(is_terminal=False)

    def begin() -> None:
        folder.mkdir()
        (folder / "gateway-1.jsonl").write_text(turn("conv-1", 1))

    follow(FollowedList(folder, last=20), to, wait=scripted(begin))
    before, after = output.getvalue().split("yet\n")
    assert before.startswith("no conversation in")
    assert "conv-1" in after


def test_nothing_is_drawn_anew_while_nothing_is_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "gateway-1.jsonl").write_text(turn("conv-1", 1))
    to, output = console(is_terminal=False)
    follow(FollowedList(tmp_path, last=20), to, wait=scripted(lambda: None, lambda: None))
    assert output.getvalue().count("conv-1") == 1
