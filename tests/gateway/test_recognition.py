"""Recognising conversations that no client named."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_server.gateway.identity import Identity
from conserve_server.gateway.recognition import Heads, Recognition
from conserve_server.gateway.request import parse_request

from .anonymous import Agent, History, run_turn

SYSTEM = {"role": "system", "content": "You are one of many that share these words. " * 5}


def test_a_conversation_is_found_by_its_head_once() -> None:
    heads = Heads(kept=10)
    heads.put("a", 1)
    assert (heads.take(1), heads.take(1)) == ("a", None)


def test_conversations_with_one_head_are_taken_in_their_order() -> None:
    heads = Heads(kept=10)
    heads.put("a", 1)
    heads.put("b", 1)
    assert [heads.take(1), heads.take(1), heads.take(1)] == ["a", "b", None]


def test_a_new_head_replaces_the_old_one() -> None:
    heads = Heads(kept=10)
    heads.put("a", 1)
    heads.put("a", 2)
    assert (heads.take(1), heads.take(2)) == (None, "a")


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=60))
def test_heads_never_outgrow_their_bound(puts: list[tuple[int, int]]) -> None:
    heads = Heads(kept=3)
    for conversation, boundary in puts:
        heads.put(str(conversation), boundary)
        assert len(heads) <= 3
        assert sum(map(len, heads._at.values())) == len(heads)


# -- laws: many agents, one table -----------------------------------------------------------------

texts = st.sampled_from(["yes", "no", "more", ""])
steps = st.lists(st.tuples(st.integers(0, 3), texts), max_size=25)


@given(steps, st.booleans())
@settings(max_examples=150)
def test_conversations_that_share_a_beginning_are_never_confused(
    plan: list[tuple[int, str]], is_streamed: bool
) -> None:
    """Agents say the same few words in any interleaving; each one's answers are its own."""
    recognition = Recognition(kept=100)
    agents = [Agent([SYSTEM]) for _ in range(4)]
    for step, (number, said) in enumerate(plan):
        agent = agents[number]
        agent.say(said)
        found = run_turn(recognition, agent.messages, f"answer {number} {step}", is_streamed=is_streamed)
        agent.messages.append(found.answer)
        agent.ids.append(found.identity.conversation_id)
    assert all(len(set(agent.ids)) <= 1 for agent in agents)
    owners = [agent.ids[0] for agent in agents if agent.ids]
    assert len(set(owners)) == len(owners)


@given(st.lists(st.tuples(texts, texts), min_size=2, max_size=6), st.data())
def test_a_rewritten_history_is_a_new_conversation(said: list[tuple[str, str]], data: st.DataObject) -> None:
    recognition = Recognition(kept=100)
    agent = Agent([SYSTEM])
    known = set()
    for question, answer in said:
        agent.say(question)
        found = run_turn(recognition, agent.messages, answer + "!")
        agent.messages.append(found.answer)
        known.add(found.identity.conversation_id)
    rewritten: History = [dict(message) for message in agent.messages]
    changed = data.draw(st.integers(0, len(rewritten) - 1))
    rewritten[changed]["content"] += "?"
    again = run_turn(recognition, [*rewritten, {"role": "user", "content": "go on"}], "x")
    assert again.identity.conversation_id not in known
    intact = run_turn(recognition, [*agent.messages, {"role": "user", "content": "go on"}], "x")
    assert intact.identity.conversation_id in known


def test_a_shared_system_prompt_with_examples_is_nobodys_head() -> None:
    recognition = Recognition(kept=100)
    examples = [SYSTEM, {"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
    ids = set()
    for text in ("a", "b", "a"):
        messages = [*examples, {"role": "user", "content": text}]
        ids.add(run_turn(recognition, messages, "same").identity.conversation_id)
    assert len(ids) == 3


def test_of_two_requests_with_one_history_the_first_goes_on_and_the_second_begins() -> None:
    recognition = Recognition(kept=100)
    agent = Agent([SYSTEM])
    agent.say("hi")
    first = run_turn(recognition, agent.messages, "hello")
    history = [*agent.messages, first.answer, {"role": "user", "content": "go on"}]
    both = [run_turn(recognition, history, "well", settles=False) for _ in range(2)]
    assert both[0].identity.conversation_id == first.identity.conversation_id
    assert both[1].identity.conversation_id != first.identity.conversation_id


def test_a_turn_that_failed_can_be_tried_again() -> None:
    recognition = Recognition(kept=100)
    agent = Agent([SYSTEM])
    agent.say("hi")
    first = run_turn(recognition, agent.messages, "hello")
    history = [*agent.messages, first.answer, {"role": "user", "content": "go on"}]
    failed = run_turn(recognition, history, "half an ans", is_completed=False)
    again = run_turn(recognition, history, "whole")
    ids = {found.identity.conversation_id for found in (first, failed, again)}
    assert len(ids) == 1


def test_a_history_with_messages_of_the_clients_own_behind_the_head_still_goes_on() -> None:
    recognition = Recognition(kept=100)
    agent = Agent([SYSTEM])
    agent.say("hi")
    first = run_turn(recognition, agent.messages, "hello")
    own = {"role": "assistant", "content": "a note that the client wrote itself"}
    history = [*agent.messages, first.answer, own, {"role": "user", "content": "go on"}]
    assert run_turn(recognition, history, "x").identity.conversation_id == first.identity.conversation_id


def test_tenants_and_models_know_nothing_of_each_others_histories() -> None:
    recognition = Recognition(kept=100)
    agent = Agent([SYSTEM])
    agent.say("hi")
    first = run_turn(recognition, agent.messages, "hello")
    history = [*agent.messages, first.answer, {"role": "user", "content": "go on"}]
    for other in ({"tenant": "u"}, {"model": "n"}):
        found = run_turn(recognition, history, "x", **other)  # type: ignore[arg-type]
        assert found.identity.conversation_id != first.identity.conversation_id


def test_what_has_ended_is_forgotten_without_a_trace() -> None:
    recognition = Recognition(kept=100)
    agent = Agent([SYSTEM])
    agent.say("hi")
    first = run_turn(recognition, agent.messages, "hello")
    recognition.forget(first.identity)
    assert len(recognition) == 0
    assert recognition._heads == {}


def test_recognition_can_be_switched_off() -> None:
    request = parse_request("/v1/chat/completions", b'{"model": "m", "messages": []}')
    identity = Identity(conversation_id="a", tenant="t", model="m", is_synthetic=True)
    assert Recognition(kept=0).recognise(identity, request) == (identity, None)


def response(identity_id: str, **fields: Any) -> tuple[Identity, Any]:
    return (
        Identity(conversation_id=identity_id, tenant="t", model="m", is_synthetic=True),
        parse_request("/v1/responses", json.dumps({"model": "m", "input": "hi", **fields}).encode()),
    )


def test_a_response_is_continued_by_its_id() -> None:
    recognition = Recognition(kept=100)
    first, watch = recognition.recognise(*response("a"))
    assert watch is not None
    watch.answer.read_document(b'{"object": "response", "id": "resp_1"}')
    assert recognition.settle(first, watch, is_completed=True)
    stranger, _ = recognition.recognise(*response("b", previous_response_id="resp_2"))
    second, _ = recognition.recognise(*response("c", previous_response_id="resp_1"))
    assert (stranger.conversation_id, second.conversation_id) == ("b", "a")
