"""The trace behind the paper: mini-swe-agent on SWE-bench (github.com/eicchen/conserve, Apache-2.0).

`paper/figures/section3/output/trace_profile_summary.csv` there, a row a turn, in tokens. It knows no
times: its tools take none, and conversations arrive as an arrival process says.
"""

from __future__ import annotations

import itertools
import pathlib

from ..workload import ConversationShape, TurnShape
from .reading import csv_rows, data_file

_FILE = "conserve_artifact_trace.csv.gz"
_COLUMNS = ("conv_id", "iter_id", "appended_input", "total_input", "out_token_size")


def artifact_conversations(path: pathlib.Path | None = None) -> list[ConversationShape]:
    """The trace's conversations in its order; from the data folder where no path is given."""
    rows = (row for _, row in csv_rows(path or data_file(_FILE), _COLUMNS))
    grouped = itertools.groupby(rows, key=lambda row: int(row["conv_id"]))
    return [ConversationShape(f"swe-{key}", tuple(map(_turn, turns))) for key, turns in grouped]


def _turn(row: dict[str, float]) -> TurnShape:
    # The first turn's appended input is its whole prompt.
    return TurnShape(max(int(row["appended_input"]), 1), int(row["out_token_size"]))
