"""Bars on a common time axis, as characters. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Mark(NamedTuple):
    """What fills the time from `start_s` to `end_s`: one character and its colour."""

    start_s: float
    end_s: float
    glyph: str
    style: str


class Window(NamedTuple):
    """The time that `cells` characters stand for."""

    start_s: float
    end_s: float
    cells: int

    @property
    def cell_s(self) -> float:
        return (self.end_s - self.start_s) / self.cells or 1.0

    def cell_at(self, time_s: float) -> int:
        """The cell in which `time_s` falls, the window's end in the last one."""
        return max(0, min(self.cells - 1, int((time_s - self.start_s) / self.cell_s)))


def bar(marks: Sequence[Mark], window: Window) -> list[tuple[str, str]]:
    """One character a cell, each with its colour: the mark that covers most of a cell fills it.

    A mark that no cell would show, since it is shorter than one, may be hidden by its
    neighbours; a row whose marks are all that short still shows one cell.
    """
    row = [_fill(marks, window.start_s + i * window.cell_s, window.cell_s) for i in range(window.cells)]
    if marks and all(glyph == " " for glyph, _ in row):
        row[window.cell_at(marks[0].start_s)] = (marks[0].glyph, marks[0].style)
    return row


def axis(window: Window) -> str:
    """Round times at their places: `│0 s      │2 s      │4 s`, at most the window's width."""
    step_s = _round_step(window.cell_s * 10)
    line = ""
    for i in range(math.ceil(window.start_s / step_s - 1e-9), int(window.end_s / step_s) + 1):
        at, label = window.cell_at(i * step_s), f"│{i * step_s:.6g} s"
        if len(line) <= at and at + len(label) <= window.cells:
            line = line.ljust(at) + label
    return line


def _fill(marks: Sequence[Mark], from_s: float, cell_s: float) -> tuple[str, str]:
    most_s, cell = 0.0, (" ", "")
    for mark in marks:
        overlap_s = min(mark.end_s, from_s + cell_s) - max(mark.start_s, from_s)
        if overlap_s > most_s + 1e-6 * cell_s:
            most_s, cell = overlap_s, (mark.glyph, mark.style)
    return cell


def _round_step(at_least_s: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `at_least_s`."""
    power = 10.0 ** math.floor(math.log10(at_least_s))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= at_least_s), 10 * power)
