"""The end of a log."""

from __future__ import annotations

from pathlib import Path

from conserve_server.engines.engine_log import log_size, log_tail


def test_the_tail_is_the_last_lines_without_colours_or_blanks(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("one\n\x1b[36mtwo\x1b[0m\n\n  three  \n10%\r20%\n")
    assert log_tail(log, lines=4) == ["two", "  three", "10%", "20%"]


def test_the_tail_holds_nothing_from_before_this_start(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("an earlier death\n")
    since = log_size(log)
    with log.open("a") as more:
        more.write("this one\n")
    assert log_tail(log, since=since) == ["this one"]


def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert log_tail(tmp_path / "none.log") == []
    assert log_size(tmp_path / "none.log") == 0
