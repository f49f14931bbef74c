from __future__ import annotations

import gzip
import pathlib

import pytest

from conserve_server.core.errors import TraceError
from conserve_server.simulation.workload import ConversationShape, TurnShape
from conserve_server.simulation.workloads.artifact import artifact_conversations

HEAD = "conv_id,iter_id,appended_input,total_input,out_token_size,carried_over\n"
ROWS = "0,0,17912,17912,146,0\n0,1,67,18125,40,18058\n1,0,9000,9000,12,0\n"


def test_each_conversation_has_its_turns_in_order(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "trace.csv.gz"
    file.write_bytes(gzip.compress((HEAD + ROWS).encode()))
    assert artifact_conversations(file) == [
        ConversationShape("swe-0", (TurnShape(17912, 146), TurnShape(67, 40))),
        ConversationShape("swe-1", (TurnShape(9000, 12),)),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "0,0,many,17912,146,0\n", r"trace\.csv:2: appended_input must be a number, got 'many'"),
        (HEAD + ROWS + "1,1,-5,9000,1,0\n", r"trace\.csv:5: appended_input must not be negative, got -5"),
        ("conv_id,iter_id\n", r"trace\.csv:1: no column appended_input, total_input, out_token_size"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path: pathlib.Path, text: str, said: str) -> None:
    (tmp_path / "trace.csv").write_text(text)
    with pytest.raises(TraceError, match=said):
        artifact_conversations(tmp_path / "trace.csv")


def test_a_missing_public_trace_says_how_to_name_its_folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSERVE_DATA", str(tmp_path))
    with pytest.raises(TraceError, match="set CONSERVE_DATA to the folder that has it"):
        artifact_conversations()
