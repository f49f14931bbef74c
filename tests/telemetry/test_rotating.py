from __future__ import annotations

import pathlib
from pathlib import Path

from conserve_server.telemetry.rotating import RotatingFile


def test_a_full_file_is_set_aside_and_lines_stay_whole(tmp_path: pathlib.Path) -> None:
    file = RotatingFile(tmp_path / "gateway-7.jsonl", limit_bytes=16)
    for number in range(5):
        file.write(f"line {number}\n")
    file.close()
    assert (tmp_path / "gateway-7.1.jsonl").read_text() == "line 2\nline 3\n"
    assert (tmp_path / "gateway-7.jsonl").read_text() == "line 4\n"


def test_at_most_two_files_are_kept(tmp_path: pathlib.Path) -> None:
    file = RotatingFile(tmp_path / "gateway-7.jsonl", limit_bytes=50)
    for number in range(1000):
        file.write(f"line {number}\n")
    file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gateway-7.1.jsonl", "gateway-7.jsonl"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 100


def test_a_file_that_exists_is_appended_to_within_the_limit(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "gateway-7.jsonl"
    path.write_text("before\n")
    file = RotatingFile(path, limit_bytes=100)
    file.write("after\n")
    file.flush()
    assert path.read_text() == "before\nafter\n"
    file.close()
    assert file.closed


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    RotatingFile(path).close()
    assert path.stat().st_mode & 0o077 == 0
