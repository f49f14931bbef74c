"""The figures of a conversation, from reports made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conserve_sdk.protocol import ConversationReport, Outcome, TurnReport
from conserve_server.telemetry.summary import ConversationSummary, TurnSums

TURN = TurnReport(
    1,
    Outcome.COMPLETED,
    prompt_tokens=100,
    completion_tokens=11,
    cached_tokens=40,
    ttft_s=1.0,
    duration_s=3.0,
)


def summary(*turns: TurnReport) -> ConversationSummary:
    report = ConversationReport("c", "ended", turns=turns, ttfet_s=2.0, kv_transfers=1)
    sums = TurnSums()
    for turn in turns:
        sums.add(turn)
    return ConversationSummary.of(report, sums, e2e_s=9.0, rebinds=0)


def test_the_last_turns_tokens_are_timed_from_its_first() -> None:
    later = replace(TURN, index=2, ttft_s=0.5, duration_s=1.5)
    assert summary(TURN, later).last_turn_tbt_s == pytest.approx(0.1)


def test_a_turn_that_was_not_answered_is_not_the_last() -> None:
    cancelled = replace(TURN, index=2, outcome=Outcome.CANCELLED, duration_s=60.0)
    assert summary(TURN, cancelled).last_turn_tbt_s == pytest.approx(0.2)


@pytest.mark.parametrize("missing", [{"ttft_s": None}, {"duration_s": None}, {"completion_tokens": 1}])
def test_what_was_not_observed_is_not_made_up(missing: dict[str, int | None]) -> None:
    assert summary(replace(TURN, **missing)).last_turn_tbt_s is None  # type: ignore[arg-type]


def test_the_cached_share_is_over_the_turns_that_say_both() -> None:
    silent = replace(TURN, index=2, cached_tokens=None)
    full = replace(TURN, index=3, cached_tokens=100)
    assert summary(TURN, silent, full).cached_share == pytest.approx(0.7)
    assert summary(silent).cached_share is None


def test_a_conversation_that_failed_at_once_has_few_figures() -> None:
    failed = TurnReport(1, Outcome.FAILED)
    attributes = summary(failed).attributes()
    assert {name.rpartition(".")[2] for name in attributes} == {
        "turns",
        "tool_calls",
        "kv_transfers",
        "rebinds",
        "e2e_s",
        "ttfet_s",
    }
