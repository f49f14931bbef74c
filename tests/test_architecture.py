"""The list of files in ARCHITECTURE.md is what the files themselves say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.architecture import END, PAGE, PROJECT, START, StaleError, file_list, main, with_list


def test_the_list_in_the_architecture_page_is_up_to_date() -> None:
    page = PAGE.read_text()
    if page != with_list(page, file_list(PROJECT)):
        pytest.fail(f"the files in {PAGE.name} are stale: run python tools/architecture.py --write")


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
    with pytest.raises(StaleError, match=r"silent\.py has no docstring"):
        file_list(tmp_path)


def test_what_stands_around_the_list_is_kept() -> None:
    page = f"# Title\n{START}\nold\n{END}\nend\n"
    assert with_list(page, "new") == f"# Title\n{START}\nnew\n{END}\nend\n"


@pytest.mark.parametrize("page", ["", START, END, f"{END}\n{START}"])
def test_a_page_without_its_markers_is_refused(page: str) -> None:
    with pytest.raises(StaleError, match="needs"):
        with_list(page, "new")


def test_without_write_the_list_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "- `headers.py`: Header names, paths, identifiers and sampling" in capsys.readouterr().out
