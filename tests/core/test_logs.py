"""Log lines stay one line each, whatever is written into them."""

from __future__ import annotations

import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.core.logs import OneLine, shown
from conserve_server.core.texts import MAX_TEXT_LENGTH


@given(st.text())
def test_any_text_becomes_one_printable_line(text: str) -> None:
    assert shown(text).isprintable()


@pytest.mark.parametrize(
    ("text", "line"),
    [("\x1b[31mred", "\\x1b[31mred"), ("a\nb\r", "a\\nb\\r"), ("\u202ex", "\\u202ex"), ("客户", "客户")],
)
def test_what_cannot_be_printed_is_written_out(text: str, line: str) -> None:
    assert shown(text) == line


def test_a_long_text_is_cut() -> None:
    assert len(shown("x" * 1_000_000)) == MAX_TEXT_LENGTH


def test_a_record_is_a_line_and_a_traceback_is_marked() -> None:
    try:
        raise ValueError("a\n2026-01-01 root: all keys were sent\x07")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "said %s", ("\nno\x1b",), sys.exc_info())
    first, *rest = OneLine("%(name)s %(message)s").format(record).split("\n")
    assert first == "x said \\nno\\x1b"
    assert all(line.startswith("  | ") and line.isprintable() for line in rest)
