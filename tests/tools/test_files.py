"""What each file is for, as the files themselves say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.files import PROJECT, file_list


def test_each_file_is_one_line_in_its_room(tmp_path: Path) -> None:
    room = tmp_path / "conserve_sdk" / "room"
    room.mkdir(parents=True)
    (room / "a.py").write_text('"""What a is for.\n\nMore.\n"""\n')
    (room / "b.py").write_text('"""What b is for."""\n')
    (tmp_path / "conserve_sdk" / "top.py").write_text('"""On top."""\n')
    assert file_list(tmp_path) == (
        "### conserve_sdk\n- `top.py`: On top.\n\n"
        "### conserve_sdk/room\n- `a.py`: What a is for.\n- `b.py`: What b is for."
    )


def test_a_file_that_says_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "silent.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"silent\.py has no docstring"):
        file_list(tmp_path)


def test_every_file_of_ours_says_what_it_is_for() -> None:
    assert "- `headers.py`: Header names, paths, identifiers and sampling" in file_list(PROJECT)


def test_the_architecture_page_names_files_and_rooms_that_are_there() -> None:
    page = (PROJECT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.(?:py|md))?)`", page)
    server = PROJECT / "server" / "conserve_server"
    roots = (PROJECT, server, server / "gateway")
    assert len(named) > 25
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []
    assert len(page.splitlines()) < 110  # two screens
