"""Sub-agents and branches: children of a conversation, each bound on its own."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from conserve_sdk.protocol import ConversationReport

from .conftest import MODEL, Serve, Served


async def ask(gateway: Served, headers: dict[str, str], **fields: object) -> httpx2.Response:
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 4,
    }
    return await gateway.client.post("/v1/chat/completions", json=body | fields, headers=headers)


def branch(name: str) -> dict[str, str]:
    return {"x-conserve-conversation-id": "c", "x-conserve-branch": name}


async def state(gateway: Served, conversation: str) -> object:
    return (await gateway.report(conversation))["state"]


async def test_each_branch_is_placed_and_bound_on_its_own(gateway: Served) -> None:
    answers = [await ask(gateway, branch(name)) for name in ("sub:1", "sub:2", "sub:1")]
    assert [a.headers["x-conserve-conversation-id"] for a in answers] == ["c/sub:1", "c/sub:2", "c/sub:1"]
    paths = [a.headers["x-conserve-path"] for a in answers]
    assert paths == ["remote-prefill", "remote-prefill", "pinned"]
    assert len({a.headers["x-conserve-decoder"] for a in answers}) == 2


async def test_a_conversation_and_its_branches_name_one_another(gateway: Served) -> None:
    await ask(gateway, branch("sub:1"))
    report, child = (
        await gateway.report("c"),
        (await gateway.client.get("/v1/conversations/c%2Fsub%3A1")).json(),
    )
    assert (report["children"], report["turns"], report["state"]) == (["c/sub:1"], [], "new")
    assert (child["parent_id"], len(child["turns"])) == ("c", 1)


async def test_a_report_adds_the_branches_up(gateway: Served) -> None:
    for headers in ({"x-conserve-conversation-id": "c"}, branch("sub:1"), branch("sub:2"), branch("sub:1")):
        await ask(gateway, headers)
    report = ConversationReport.from_json(await gateway.report("c"))
    children = [
        ConversationReport.from_json((await gateway.client.get(f"/v1/conversations/{name}")).json())
        for name in ("c%2Fsub%3A1", "c%2Fsub%3A2")
    ]
    assert [child.with_branches for child in children] == [None, None]
    totals = report.with_branches
    assert totals is not None
    assert (totals.branches, totals.turns, len(report.turns)) == (2, 4, 1)
    every = (report, *children)
    assert totals.kv_transfers == sum(each.kv_transfers for each in every) == 3
    assert totals.reserved_kv_tokens == sum(each.reserved_kv_tokens for each in every)
    turns = [turn for each in every for turn in each.turns]
    assert totals.prompt_tokens == sum(turn.prompt_tokens or 0 for turn in turns)
    assert totals.completion_tokens == sum(turn.completion_tokens or 0 for turn in turns) == 16


async def test_energy_of_the_branches_is_added_up(serve: Serve) -> None:
    async with serve(energy={"meter": "modelled", "window_s": 0.05}) as gateway:
        for name in ("sub:1", "sub:2"):
            await ask(gateway, branch(name))
        await gateway.client.delete("/v1/conversations/c")
        await gateway.eventually(lambda: _is_settled(gateway))
        report = ConversationReport.from_json(await gateway.report("c"))
        parts = [
            ConversationReport.from_json((await gateway.client.get(f"/v1/conversations/{name}")).json())
            for name in ("c%2Fsub%3A1", "c%2Fsub%3A2")
        ]
    assert report.energy.total_j is None  # no turn of its own
    assert report.with_branches is not None
    assert report.with_branches.energy.total_j == pytest.approx(sum(p.energy.total_j or 0 for p in parts))
    first = str(report).splitlines()[0]
    assert first.startswith("conversation c (emulated engine): ended, ")
    assert f"2 turns, 0 tool calls, 2 KV transfer(s), energy {report.with_branches.energy}" in first


async def _is_settled(gateway: Served) -> bool:
    report = ConversationReport.from_json(await gateway.report("c"))
    return report.with_branches is not None and not report.with_branches.energy.pending


async def test_releasing_a_conversation_releases_its_branches(gateway: Served) -> None:
    await ask(gateway, {"x-conserve-conversation-id": "c"})
    await ask(gateway, branch("sub:1"))
    await gateway.client.delete("/v1/conversations/c")
    assert [await state(gateway, name) for name in ("c", "c/sub:1")] == ["ended", "ended"]
    assert await gateway.metric('conserve_reserved_kv_tokens{engine="decode-0"}') == 0
    assert await gateway.metric('conserve_reserved_kv_tokens{engine="decode-1"}') == 0


async def test_a_final_turn_ends_the_branches_too_and_a_branchs_own_ends_that_one_alone(
    gateway: Served,
) -> None:
    for name in ("sub:1", "sub:2"):
        await ask(gateway, branch(name))
    await ask(gateway, branch("sub:1") | {"x-conserve-final": "true"})
    assert [await state(gateway, f"c/{name}") for name in ("sub:1", "sub:2")] == ["ended", "tool-gap"]
    await ask(gateway, {"x-conserve-conversation-id": "c", "x-conserve-final": "true"})
    assert [await state(gateway, name) for name in ("c", "c/sub:2")] == ["ended", "ended"]


async def test_tool_boundaries_of_a_conversation_that_has_only_branches_are_taken(gateway: Served) -> None:
    await ask(gateway, branch("sub:1"))
    events = {"events": [{"kind": "start", "call_id": "1", "name": "search"}]}
    assert (await gateway.client.post("/v1/conversations/c/events", json=events)).status_code == 204


async def test_claude_codes_agents_are_children_of_their_session(gateway: Served) -> None:
    session = {"x-claude-code-session-id": "s"}
    main = await ask(gateway, session)
    agent = await ask(gateway, {**session, "x-claude-code-agent-id": "a"})
    assert [a.headers["x-conserve-turn"] for a in (main, agent)] == ["1", "1"]
    assert (await gateway.report("s"))["children"] == ["s/a"]


async def test_a_conversation_whose_only_branch_expired_has_expired(serve: Serve) -> None:
    async with serve(idle_timeout_s=0.1) as gateway:
        await ask(gateway, branch("sub:1"))
        await gateway.eventually(lambda: _is_expired(gateway))


async def _is_expired(gateway: Served) -> bool:
    return await state(gateway, "c") == "expired"


async def test_a_first_turn_that_failed_leaves_no_live_conversation(gateway: Served) -> None:
    refused = await ask(gateway, {"x-session-id": "bad"}, max_tokens=-1)
    assert refused.status_code == 400
    assert await state(gateway, "bad") == "ended"


async def test_conversations_named_in_other_scripts_are_apart_and_shown_as_given(gateway: Served) -> None:
    names = ["客户-1", "顧客-1"]
    for name in names:
        headers = {b"x-conserve-conversation-id": name.encode()}
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        answers = [
            await gateway.client.post("/v1/chat/completions", json=body, headers=headers) for _ in range(2)
        ]
        assert [answer.headers["x-conserve-turn"] for answer in answers] == ["1", "2"]
        raw = dict(answers[0].headers.raw)
        assert raw[b"x-conserve-conversation-id"].decode() == name
        assert (await gateway.report(name))["id"] == name
    assert (await gateway.client.delete(f"/v1/conversations/{names[0]}")).status_code == 200
    assert [await state(gateway, name) for name in names] == ["ended", "tool-gap"]


async def test_threads_of_one_codex_session_are_its_branches(gateway: Served) -> None:
    threads = ["s", "t", "t", "s"]
    answers = [await ask(gateway, {"session-id": "s", "thread-id": thread}) for thread in threads]
    assert [a.headers["x-conserve-conversation-id"] for a in answers] == ["s", "s/t", "s/t", "s"]
    paths = [a.headers["x-conserve-path"] for a in answers]
    assert paths == ["remote-prefill", "remote-prefill", "pinned", "pinned"]
