from __future__ import annotations

import json
import pathlib

import pytest

from conserve_server.core.errors import TraceError
from conserve_server.simulation.workload import ConversationShape, TurnShape
from conserve_server.simulation.workloads.sessions import coding_sessions


def turn(total: int, appended: int | None, output: int, gap_s: float | None = 0.0) -> dict[str, object]:
    return {
        "input_tokens": total,
        "appended_tokens": appended,
        "output_tokens": output,
        "gap_s": gap_s,
        "after": "tool",
    }


def written(folder: pathlib.Path, *turns: dict[str, object]) -> pathlib.Path:
    file = folder / "sessions.jsonl"
    file.write_text(json.dumps({"session": "s", "shared_prefix_tokens": 14_000, "turns": turns}) + "\n")
    return file


def test_a_session_becomes_its_turns(tmp_path: pathlib.Path) -> None:
    file = written(tmp_path, turn(18_000, 18_000, 200), turn(18_300, 100, 50, 3.0))
    (shape,) = coding_sessions(file)
    turns = (TurnShape(18_000, 200), TurnShape(100, 50, 3.0))
    assert shape == ConversationShape("s", turns, "claude-code", 14_000)


def test_a_rewritten_history_keeps_the_shared_prefix(tmp_path: pathlib.Path) -> None:
    (shape,) = coding_sessions(written(tmp_path, turn(50_000, 50_000, 200), turn(20_000, None, 50, 3.0)))
    assert shape.turns[1] == TurnShape(6_000, 50, 3.0, rewrites_from_tokens=14_000)


def test_an_unknown_gap_is_the_sessions_median(tmp_path: pathlib.Path) -> None:
    (shape,) = coding_sessions(
        written(
            tmp_path,
            turn(100, 100, 1),
            turn(201, 100, 1, 2.0),
            turn(302, 100, 1, 6.0),
            turn(403, 100, 1, None),
        )
    )
    assert [each.gap_s for each in shape.turns] == [0.0, 2.0, 6.0, 4.0]


def test_sessions_that_share_nothing_can_be_asked_for(tmp_path: pathlib.Path) -> None:
    (shape,) = coding_sessions(written(tmp_path, turn(18_000, 18_000, 200)), shares_prefix=False)
    assert (shape.prefix, shape.shared_prefix_tokens) == (None, 0)


def test_a_bad_field_is_named_with_its_line(tmp_path: pathlib.Path) -> None:
    file = written(tmp_path, turn(100, 100, 1))
    file.write_text(file.read_text() + file.read_text().replace('"output_tokens": 1', '"output_tokens": -1'))
    with pytest.raises(TraceError, match=r"sessions\.jsonl:2: .*>= 0.*\$\.turns\[0\]\.output_tokens"):
        coding_sessions(file)
