from __future__ import annotations

import pytest

from conserve_server.telemetry.bars import Mark, Window, axis, bar


def drawn(marks: list[Mark], window: Window) -> str:
    return "".join(glyph for glyph, _ in bar(marks, window))


def test_a_mark_fills_its_share_of_the_window() -> None:
    assert drawn([Mark(2, 4, "#", "")], Window(0, 10, 10)) == "  ##      "


def test_the_mark_that_covers_most_of_a_cell_fills_it() -> None:
    marks = [Mark(0, 1.2, "a", ""), Mark(1.2, 3.6, "b", ""), Mark(3.6, 4, "c", "")]
    assert drawn(marks, Window(0, 4, 4)) == "abbb"


@pytest.mark.parametrize("start_s", [0.0, 5.0, 9.999, 10.0])
def test_a_row_is_never_blank(start_s: float) -> None:
    assert drawn([Mark(start_s, start_s, "#", "")], Window(0, 10, 10)).count("#") == 1


def test_no_marks_draw_nothing_even_in_no_time() -> None:
    assert drawn([], Window(0, 0, 5)) == "     "


def test_a_window_may_begin_late() -> None:
    assert drawn([Mark(8, 9, "#", "")], Window(8, 12, 4)) == "#   "


@pytest.mark.parametrize(
    ("window", "line"),
    [
        (Window(0, 4, 40), "│0 s      │1 s      │2 s      │3 s"),
        (Window(0, 0.04, 20), "│0 s      │0.02 s"),
        (Window(0, 4000, 20), "│0 s      │2000 s"),
        (Window(3.5, 6, 25), "     │4 s      │5 s"),
    ],
)
def test_the_axis_has_round_times_at_their_places(window: Window, line: str) -> None:
    assert axis(window) == line


@pytest.mark.parametrize("cells", [1, 5, 10, 33, 58, 200])
@pytest.mark.parametrize("duration_s", [0.0, 0.0003, 0.9, 7.9, 61.0, 86_400.0])
def test_the_axis_is_never_wider_than_its_window(cells: int, duration_s: float) -> None:
    assert len(axis(Window(0, duration_s, cells))) <= cells
