"""The summary of a conversation, as a dashboard and Prometheus receive it once it has ended."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from conserve_server.engines.emulated import Fault
from conserve_server.engines.engine import Role
from conserve_server.telemetry import names

from .conftest import MODEL, Serve, Served, engine_config


def summaries(gateway: Served) -> list[ReadableSpan]:
    return [span for span in gateway.spans if span.name == names.SPAN_CONVERSATION]


async def released(gateway: Served, conversation: str = "a") -> dict[str, Any]:
    await gateway.client.delete(f"/v1/conversations/{conversation}")
    return dict(summaries(gateway)[-1].attributes or {})


async def test_a_released_conversation_is_summed_up_once(gateway: Served) -> None:
    for text in ("hello", "and then?"):
        await gateway.ask("a", text, stream=True)
    assert summaries(gateway) == []
    found = await released(gateway)
    await gateway.client.delete("/v1/conversations/a")
    assert len(summaries(gateway)) == 1
    assert (found[names.CONVERSATION_ID], found[names.SESSION_ID]) == ("a", "a")
    assert (found[names.CONVERSATION_TURNS], found[names.CONVERSATION_TRANSFERS]) == (2, 1)
    assert (found[names.CONVERSATION_REBINDS], found[names.CONVERSATION_ENDED_AS]) == (0, "ended")
    assert 0 < found[names.CONVERSATION_TTFET_S] < found[names.CONVERSATION_E2E_S]
    assert found[names.CONVERSATION_LAST_TBT_S] > 0
    assert 0 <= found[names.CONVERSATION_CACHED_SHARE] < 1
    assert found[names.CONVERSATION_OUTPUT_TOKENS] == 16
    assert names.CONVERSATION_ENERGY_J not in found  # nothing meters it here
    assert not any(name.startswith("gen_ai.usage") for name in found)


async def test_the_summary_is_a_trace_of_its_own_linked_to_its_turns(gateway: Served) -> None:
    await gateway.ask("a", "hello")
    await gateway.ask("a", "and then?")
    await released(gateway)
    (summary,) = summaries(gateway)
    turns = [span for span in gateway.spans if span.name == names.SPAN_TURN]
    assert summary.parent is None
    assert [link.context.span_id for link in summary.links] == [turn.context.span_id for turn in turns]
    assert summary.start_time is not None
    assert summary.end_time is not None
    extent_s = (summary.end_time - summary.start_time) / 1e9
    assert abs(extent_s - float((summary.attributes or {})[names.CONVERSATION_E2E_S])) < 1e-3  # type: ignore[arg-type]


async def test_one_that_ends_while_a_turn_runs_is_summed_up_with_that_turn(serve: Serve) -> None:
    slow = [engine_config(Role.DECODE, "decode-0", faults=(Fault("slow", delay_s=0.05),))]
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 8,
        "stream": True,
    }
    headers = {"x-conserve-conversation-id": "a"}
    async with serve(decode=slow) as gateway:
        post = gateway.client.stream("POST", "/v1/chat/completions", json=body, headers=headers)
        async with post as answer:
            chunks = answer.aiter_bytes()
            await anext(chunks)
            await gateway.client.delete("/v1/conversations/a")
            assert summaries(gateway) == []
            async for _ in chunks:
                pass
        (summary,) = summaries(gateway)
    assert (summary.attributes or {})[names.CONVERSATION_TURNS] == 1


async def test_one_that_goes_on_after_its_end_is_summed_up_again_whole(gateway: Served) -> None:
    await gateway.ask("a", "hello")
    await released(gateway)
    await gateway.ask("a", "once more")
    found = await released(gateway)
    assert [span.name for span in summaries(gateway)] == [names.SPAN_CONVERSATION] * 2
    assert found[names.CONVERSATION_TURNS] == 2


async def test_an_unsampled_conversation_has_no_summary_either(gateway: Served) -> None:
    headers = {
        "x-conserve-conversation-id": "a",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
    }
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    await gateway.client.post("/v1/chat/completions", json=body, headers=headers)
    await gateway.client.delete("/v1/conversations/a")
    assert gateway.spans == []


async def test_ended_conversations_are_counted_by_their_figures(gateway: Served) -> None:
    await gateway.ask("a", "hello", stream=True)
    await gateway.ask("b", "hello", stream=True)
    await released(gateway, "a")
    await released(gateway, "b")
    for name in ("turns", "kv_transfers", "e2e_seconds", "ttfet_seconds", "last_turn_tbt_seconds"):
        assert await gateway.metric(f"conserve_conversation_{name}_count") == 2
    assert await gateway.metric("conserve_conversation_energy_joules_count") == 0
    assert await gateway.metric("conserve_conversation_turns_sum") == 2


async def test_what_was_cached_and_what_was_written_make_up_the_prompt(gateway: Served) -> None:
    for text in ("hello", "and then?"):
        await gateway.ask("a", text)
    for turn in (span for span in gateway.spans if span.name == names.SPAN_TURN):
        found: Any = turn.attributes or {}
        read, written = found[names.CACHE_READ_TOKENS], found[names.CACHE_WRITE_TOKENS]
        assert read + written == found[names.INPUT_TOKENS]
        assert found[names.CACHE_CREATION_TOKENS] == written


async def branch(gateway: Served, name: str, **headers: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    named = {"x-conserve-conversation-id": "a", "x-conserve-branch": name, **headers}
    await gateway.client.post("/v1/chat/completions", json=body, headers=named)


async def test_a_summary_adds_the_branches_up_beside_the_conversations_own(gateway: Served) -> None:
    await gateway.ask("a", "hello")
    for name in ("one", "two", "one"):
        await branch(gateway, name)
    found = await released(gateway)
    assert len(summaries(gateway)) == 3
    own = (found[names.CONVERSATION_TURNS], found[names.CONVERSATION_TRANSFERS])
    whole = [found[names.WITH_BRANCHES + name] for name in ("turns", "kv_transfers", "rebinds")]
    assert (found[names.CONVERSATION_BRANCHES], own, whole) == (2, (1, 1), [4, 3, 0])
    assert await gateway.metric("conserve_conversation_turns_sum") == 4
    assert await gateway.metric("conserve_conversation_turns_count") == 3


async def test_one_that_has_branches_alone_is_summed_up_after_the_last_of_them(gateway: Served) -> None:
    await branch(gateway, "one")
    await branch(gateway, "two", **{"x-conserve-final": "true"})
    assert [str((s.attributes or {})[names.CONVERSATION_ID]) for s in summaries(gateway)] == ["a/two"]
    await branch(gateway, "one", **{"x-conserve-final": "true"})
    ids = [str((s.attributes or {})[names.CONVERSATION_ID]) for s in summaries(gateway)]
    assert ids == ["a/two", "a/one", "a"]
    whole = summaries(gateway)[-1]
    found: Any = whole.attributes
    assert (found[names.CONVERSATION_TURNS], found[names.WITH_BRANCHES + "turns"]) == (0, 3)
    assert found[names.EMULATED] is True
    turns = [span.context.span_id for span in gateway.spans if span.name == names.SPAN_TURN]
    assert sorted(link.context.span_id for link in whole.links) == sorted(turns)
    assert await gateway.metric("conserve_conversation_turns_count") == 2  # what had turns of its own


async def test_a_summary_waits_for_a_branch_that_still_runs(serve: Serve) -> None:
    slow = [engine_config(Role.DECODE, "decode-0", faults=(Fault("slow", delay_s=0.05),))]
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 8,
        "stream": True,
    }
    headers = {"x-conserve-conversation-id": "a", "x-conserve-branch": "one"}
    async with serve(decode=slow) as gateway:
        await gateway.ask("a", "hello")
        post = gateway.client.stream("POST", "/v1/chat/completions", json=body, headers=headers)
        async with post as answer:
            chunks = answer.aiter_bytes()
            await anext(chunks)
            await gateway.client.delete("/v1/conversations/a")
            assert summaries(gateway) == []
            async for _ in chunks:
                pass
        ids = [str((s.attributes or {})[names.CONVERSATION_ID]) for s in summaries(gateway)]
    assert ids == ["a/one", "a"]
    assert (summaries(gateway)[-1].attributes or {})[names.WITH_BRANCHES + "turns"] == 2
