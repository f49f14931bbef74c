from __future__ import annotations

import argparse
import json
import pathlib

import pytest

from conserve_server.cli.workload_options import add_workload_options, workload_of
from conserve_server.core.errors import ConfigError
from conserve_server.simulation.workload import Workload


def asked(*arguments: str) -> Workload:
    parser = argparse.ArgumentParser()
    add_workload_options(parser)
    return workload_of(parser.parse_args(arguments))


@pytest.fixture
def trace(tmp_path: pathlib.Path) -> str:
    turns = [{"appended_tokens": 100, "output_tokens": 10}, {"appended_tokens": 50, "output_tokens": 10}]
    lines = [
        {"format": "conserve-trace-v1", "id": f"c{number}", "at_s": number * 2.0, "turns": turns}
        for number in range(4)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(tmp_path / "t.jsonl")


def test_a_trace_arrives_as_recorded_unless_a_rate_is_given(trace: str) -> None:
    assert [each.at_s for each in asked(trace).arrivals] == [0.0, 2.0, 4.0, 6.0]
    again = asked(trace, "--rate", "10", "--conversations", "9")
    assert len(again.arrivals) == 9
    assert again.arrivals[-1].at_s < 6.0


def test_a_profile_needs_a_rate() -> None:
    with pytest.raises(ConfigError, match="tool-chat is a profile and says no times: give --rate"):
        asked("tool-chat")
    assert len(asked("tool-chat", "--rate", "1", "--conversations", "7").arrivals) == 7


def test_conversations_are_cut_and_scaled(trace: str) -> None:
    (first, *_) = asked(trace, "--max-turns", "1", "--token-scale", "0.5").arrivals
    assert [(turn.appended_tokens, turn.output_tokens) for turn in first.conversation.turns] == [(50, 5)]


def test_a_limit_that_leaves_nothing_is_refused(trace: str) -> None:
    with pytest.raises(ConfigError, match="raise --max-context"):
        asked(trace, "--max-context", "50")


@pytest.mark.parametrize("option", ["--rate", "--conversations", "--max-turns", "--token-scale"])
def test_a_number_that_makes_no_sense_is_refused(trace: str, option: str) -> None:
    with pytest.raises(SystemExit):
        asked(trace, option, "0")
