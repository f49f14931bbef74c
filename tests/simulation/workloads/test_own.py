from __future__ import annotations

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.core.errors import TraceError
from conserve_server.simulation.workload import Arrival, ConversationShape, TurnShape
from conserve_server.simulation.workloads.own import read_own, write_own

TURNS = '[{"appended_tokens":1200,"output_tokens":80}]'
LINE = '{"format":"conserve-trace-v1","id":"c1","at_s":0.0,"turns":' + TURNS + "}"

turns = st.builds(
    TurnShape,
    st.integers(0, 10**6),
    st.integers(0, 10**5),
    st.integers(0, 10**9).map(lambda us: us / 1e6),
    st.none() | st.integers(0, 10**6),
)
shapes = st.builds(
    ConversationShape,
    st.text(min_size=1, max_size=20),
    st.lists(turns, min_size=1, max_size=5).map(tuple),
    st.none() | st.text(max_size=10),
    st.integers(0, 10**5),
)
arrivals = st.lists(st.builds(Arrival, st.integers(0, 10**9).map(lambda us: us / 1e6), shapes), max_size=5)


@given(arrivals)
def test_what_is_written_is_read_back_in_the_order_of_time(
    tmp_path_factory: pytest.TempPathFactory, told: list[Arrival]
) -> None:
    file = tmp_path_factory.mktemp("own") / "trace.jsonl"
    assert write_own(file, told) == len(told)
    assert list(read_own(file).arrivals) == sorted(told, key=lambda each: each.at_s)


def test_a_line_of_the_documented_form_is_read(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(LINE + "\n\n")
    workload = read_own(file)
    assert workload.name == "trace.jsonl"
    assert workload.arrivals == (Arrival(0.0, ConversationShape("c1", (TurnShape(1200, 80),))),)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("1200", '"many"'),
            r"trace\.jsonl:2: Expected `int`, got `str` - at `\$\.turns\[0\]\.appended_tokens`",
        ),
        (('"at_s":0.0', '"at_s":-1'), r"trace\.jsonl:2: Expected `float` >= 0.* - at `\$\.at_s`"),
        (('"at_s"', '"at"'), r"trace\.jsonl:2: Object contains unknown field `at`"),
        (("v1", "v9"), r"trace\.jsonl:2: Invalid value 'conserve-trace-v9' - at `\$\.format`"),
        ((TURNS, "[]"), r"turns must have at least 1 entry, got 0"),
        (("}]}", ""), r"trace\.jsonl:2: Input data was truncated"),
    ],
)
def test_a_line_that_is_wrong_is_named_with_its_field(
    tmp_path: pathlib.Path, change: tuple[str, str], said: str
) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(LINE + "\n" + LINE.replace(*change) + "\n")
    with pytest.raises(TraceError, match=said):
        read_own(file)


def test_a_file_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TraceError, match=r"can't write .*/no/trace\.jsonl: No such file or directory"):
        write_own(tmp_path / "no" / "trace.jsonl", [])
