"""Which conversations the gateway knows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conserve_sdk.protocol import Outcome, ToolEvent, TurnReport
from conserve_server.core.errors import InvalidRequest
from conserve_server.serving.asked.identity import Identity
from conserve_server.serving.records import conversation_log
from conserve_server.serving.records.conversation_log import ConversationLog
from conserve_server.serving.records.record import ENDED, ConversationRecord

TENANTS = ("t", "u")


def named(conversation_id: str, **changes: str) -> Identity:
    return replace(Identity(conversation_id=conversation_id, tenant="t", model="m"), **changes)  # type: ignore[arg-type]


def run_turn(log: ConversationLog, identity: Identity, now_s: float) -> ConversationRecord:
    record = log.open(identity, now_s)
    index = record.begin_turn(now_s)
    record.end_turn(index, now_s)
    record.keep_turn(TurnReport(index, Outcome.COMPLETED), None, 0.0)
    return record


def test_the_conversations_that_ended_first_are_forgotten_first() -> None:
    log = ConversationLog(ended_kept=1)
    for name in ("a", "b"):
        log.end(log.open(named(name), 0.0), ENDED)
    assert log.find(TENANTS, "a") == []
    assert len(log.find(TENANTS, "b")) == 1


def test_one_tenants_churn_pushes_out_nothing_of_another() -> None:
    log = ConversationLog(ended_kept=1)
    for identity in (named("a"), named("b", tenant="u"), named("c", tenant="u")):
        log.end(log.open(identity, 0.0), ENDED)
    assert len(log.find(TENANTS, "a")) == 1


def test_a_conversation_that_had_ended_goes_on_with_its_turns() -> None:
    log = ConversationLog(ended_kept=5)
    first = log.open(named("a"), 0.0)
    log.end(first, ENDED)
    again = log.open(named("a"), 9.0)
    assert again is first
    assert again.ended_as is None
    assert log.live_count("t") == 1


def test_one_id_has_a_record_for_each_model_and_tenant_the_latest_turn_first() -> None:
    log = ConversationLog(ended_kept=5)
    for second, identity in enumerate((named("a"), named("a", tenant="u"), named("a", model="n"))):
        run_turn(log, identity, float(second))
    assert [r.identity.model for r in log.find(["t"], "a")] == ["n", "m"]
    assert [r.identity.model for r in log.find(["t"], "a", "m")] == ["m"]
    assert len(log.find(TENANTS, "a")) == 3


def test_recent_ones_come_latest_first_live_or_ended() -> None:
    log = ConversationLog(ended_kept=5)
    for second, name in enumerate("abcd"):
        run_turn(log, named(name), float(second))
    log.end(log.find(["t"], "d")[0], ENDED)
    run_turn(log, named("a"), 9.0)
    assert [r.identity.conversation_id for r in log.recent(TENANTS, 3)] == ["a", "d", "c"]


def test_a_branch_brings_its_conversation_along() -> None:
    log = ConversationLog(ended_kept=5)
    branches = [run_turn(log, named(f"a/{n}", branch_of="a"), 1.0) for n in (1, 2)]
    (root,) = log.find(["t"], "a")
    assert log.branches(root) == branches
    assert log.live_count("t") == 3
    assert [log.root(branch) for branch in branches] == [root, root]
    assert log.root(root) is None
    assert log.has_live_branches(root)
    log.end(branches[0], ENDED)
    log.end(branches[0], ENDED)  # a second time is none
    assert log.has_live_branches(root)
    log.end(branches[1], ENDED)
    assert not log.has_live_branches(root)
    run_turn(log, branches[1].identity, 2.0)  # it goes on
    assert log.has_live_branches(root)
    log.end(root, ENDED)
    assert log.root(branches[0]) is root  # ended, and remembered


def test_a_conversation_with_turns_of_its_own_outlives_its_branches() -> None:
    log = ConversationLog(ended_kept=5)
    root = run_turn(log, named("a"), 0.0)
    log.end(run_turn(log, named("a/1", branch_of="a"), 1.0), ENDED)
    assert root.ended_as is None


def test_what_is_forgotten_leaves_nothing_behind() -> None:
    log = ConversationLog(ended_kept=0)
    for number in range(5):
        branch = run_turn(log, named(f"a/{number}", branch_of="a"), 1.0)
        root = log.root(branch)
        assert root is not None
        log.end(branch, ENDED)
        log.end(root, ENDED)
    shelf = log._shelves["t"]
    assert (shelf.live, shelf.ended, shelf.by_id, shelf.branches) == ({}, {}, {}, {})
    assert (shelf.live_branches, shelf.tools) == ({}, 0)


def test_tool_calls_of_all_conversations_of_a_tenant_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation_log, "MAX_TOOLS_OF_A_TENANT", 3)
    log = ConversationLog(ended_kept=0)
    first, second, other = (
        run_turn(log, each, 1.0) for each in (named("a"), named("b"), named("a", tenant="u"))
    )
    for record, call in ((first, "1"), (first, "2"), (second, "1")):
        log.note_tool(record, ToolEvent("start", call, "search"))
    with pytest.raises(InvalidRequest, match="remembered already"):
        log.note_tool(second, ToolEvent("start", "2", "search"))
    log.note_tool(second, ToolEvent("end", "1", "search", duration_s=0.1))  # one that is known
    log.note_tool(other, ToolEvent("start", "1", "search"))
    log.end(first, ENDED)  # and forgotten
    log.note_tool(second, ToolEvent("start", "2", "search"))
