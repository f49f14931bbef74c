"""Each check of the demo can fail, and says what was seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conserve_sdk.protocol import ConversationReport, Outcome, TurnReport
from conserve_server.cli.demo_checks import Counted, checks
from conserve_server.cli.demo_report import build_report

FIRST = TurnReport(1, Outcome.COMPLETED, prompt_tokens=100, cached_tokens=0)
SECOND = TurnReport(2, Outcome.COMPLETED, prompt_tokens=160, cached_tokens=96)
BROKEN = replace(SECOND, outcome=Outcome.FAILED)
THIRD = TurnReport(3, Outcome.COMPLETED, prompt_tokens=220, cached_tokens=128)
GOOD = ConversationReport(
    "a", "ended", decoders=("decode-0",), kv_transfers=1, turns=(FIRST, SECOND, THIRD), emulated=True
)
COUNTED = Counted(kv_transfers=2, prefill_requests=2)


def failed(*reports: ConversationReport, counted: Counted = COUNTED) -> dict[str, str]:
    """The checks that do not hold, each with its summary."""
    return {name: check.summary for name, check in checks(reports, counted).items() if not check.holds}


def test_all_hold_for_conversations_that_went_as_they_should() -> None:
    found = checks([GOOD, replace(GOOD, decoders=("decode-1",))], COUNTED)
    assert {name: check.summary for name, check in found.items() if check.holds} == {
        "every_turn_completed": "6 of 6",
        "one_kv_transfer_each": "2 of 2",
        "one_decoder_each": "2 of 2 (decode-0 1, decode-1 1)",
        "decoders_counted_the_same_transfers": "2, expected 2",
        "prefillers_served_first_turns_only": "2, expected 2",
        "later_turns_reuse_the_previous_prompt": "4 of 4",
        "released_at_the_end": "2 of 2",
    }


@pytest.mark.parametrize(
    ("bad", "name", "summary"),
    [
        (replace(GOOD, turns=(FIRST, BROKEN, THIRD)), "every_turn_completed", "5 of 6"),
        (
            replace(GOOD, decoders=("decode-0", "decode-1")),
            "one_decoder_each",
            "1 of 2 (decode-0 2, decode-1 1)",
        ),
        (replace(GOOD, decoders=()), "one_decoder_each", "1 of 2 (decode-0 1)"),
        (replace(GOOD, state="bound"), "released_at_the_end", "1 of 2"),
        (replace(GOOD, reserved_kv_tokens=7), "released_at_the_end", "1 of 2"),
        (
            replace(GOOD, turns=(FIRST, replace(SECOND, cached_tokens=67), THIRD)),
            "later_turns_reuse_the_previous_prompt",
            "3 of 4",
        ),
        (
            replace(GOOD, turns=(FIRST, replace(SECOND, cached_tokens=None), THIRD)),
            "later_turns_reuse_the_previous_prompt",
            "3 of 4",
        ),
    ],
)
def test_one_conversation_that_did_not_fails_its_check_alone(
    bad: ConversationReport, name: str, summary: str
) -> None:
    assert failed(GOOD, bad) == {name: summary}


def test_a_second_transfer_is_seen_on_both_sides() -> None:
    twice = replace(GOOD, kv_transfers=2)
    assert failed(GOOD, twice) == {
        "one_kv_transfer_each": "1 of 2",
        "decoders_counted_the_same_transfers": "2, expected 3",
    }


def test_a_count_of_the_engines_that_differs_is_a_failure() -> None:
    assert failed(GOOD, GOOD, counted=Counted(3, 4)) == {
        "decoders_counted_the_same_transfers": "3, expected 2",
        "prefillers_served_first_turns_only": "4, expected 2",
    }


def test_nothing_to_look_at_is_no_success() -> None:
    assert len(failed(counted=Counted(0, 0))) == len(checks([], Counted(0, 0)))


def test_counters_are_compared_from_where_they_stood() -> None:
    assert Counted(5, 7) - Counted(3, 4) == Counted(2, 3)


def test_a_conversation_with_a_failed_turn_has_failed_in_the_report() -> None:
    bad = replace(GOOD, turns=(FIRST, replace(SECOND, outcome=Outcome.CANCELLED)))
    report = build_report([GOOD, bad], COUNTED, engine="vllm", version="0.32.0", model="m")
    assert [entry["outcome"] for entry in report["conversations"]] == ["completed", "failed"]
    assert report["checks"]["every_turn_completed"] == {"holds": False, "summary": "4 of 5"}
