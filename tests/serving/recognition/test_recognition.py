"""Recognising conversations that no client named."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_server.serving.answers.answer import AnswerGatherer
from conserve_server.serving.asked.identity import Identity
from conserve_server.serving.asked.request import parse_request
from conserve_server.serving.recognition.recognition import Heads, Recognition
from tests.gateway.anonymous import Agent, History, run_turn

SYSTEM = {"role": "system", "content": "You are one of many that share these words. " * 5}


def test_a_conversation_is_found_by_its_head_once() -> None:
    heads = Heads(kept=10)
    heads.put("a", 1)
    assert (heads.take(1), heads.take(1)) == (("a", (1,)), None)


def test_conversations_with_one_head_are_taken_in_their_order() -> None:
    heads = Heads(kept=10)
    heads.put("a", 1)
    heads.put("b", 1)
    assert [heads.take(1), heads.take(1), heads.take(1)] == [("a", (1,)), ("b", (1,)), None]


def test_a_new_head_replaces_the_old_one() -> None:
    heads = Heads(kept=10)
    heads.put("a", 1)
    heads.put("a", 2)
    assert (heads.take(1), heads.take(2)) == (None, ("a", (2,)))


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


# -- the Responses API, its history sent whole ------------------------------------------------------


def said(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def output(text: str, **call: str) -> list[dict[str, Any]]:
    """An answer's items as an engine writes them: thoughts, a message, and a call where one is given."""
    message = {"id": "msg_1", "content": [{"type": "output_text", "text": text, "annotations": []}]}
    items = [
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "?"}],
        },
        {"type": "message", "role": "assistant", "status": "completed", **message},
    ]
    return [*items, {"type": "function_call", "id": "fc_1", "status": "completed", **call}] if call else items


def run_response(
    recognition: Recognition,
    name: str,
    items: object,
    answer: object,
    *,
    is_streamed: bool = False,
    **more: Any,
) -> str:
    """One request and its answer: the conversation that it was taken for."""
    identity, watch = recognition.recognise(*response(name, input=items, **more))
    assert watch is not None
    document = {"object": "response", "id": f"resp_{name}", "output": answer}
    if is_streamed:
        events = [
            {"type": "response.created", "response": {"id": f"resp_{name}", "output": []}},
            {"type": "response.output_text.delta", "delta": "half"},
            {"type": "response.completed", "response": document},
        ]
        watch.answer.read_events([b"data: " + json.dumps(event).encode() for event in events])
    else:
        watch.answer.read_document(json.dumps(document).encode())
    recognition.settle(identity, watch, is_completed=True)
    return identity.conversation_id


def sent_back(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answer as clients repeat it: without thoughts or status, the message in its short form."""
    kept: list[dict[str, Any]] = []
    for item in items:
        if item["type"] == "message":
            kept.append({"role": "assistant", "content": item["content"][0]["text"]})
        elif item["type"] == "function_call":
            call = {name: item[name] for name in ("call_id", "name", "type")}
            kept.append({**call, "arguments": json.dumps(json.loads(item["arguments"]), indent=1)})
    return kept


@given(st.booleans(), st.booleans(), st.booleans())
def test_an_input_that_repeats_its_history_goes_on(is_streamed: bool, is_short: bool, calls: bool) -> None:
    recognition = Recognition(kept=100)
    call = {"call_id": "call_1", "name": "clock", "arguments": '{"zone":"UTC"}'} if calls else {}
    answer = output("let me see", **call)
    again = sent_back(answer) if is_short else answer
    begun = [said("what time is it?")]
    assert run_response(recognition, "a", begun, answer, is_streamed=is_streamed) == "a"
    result = {"type": "function_call_output", "call_id": "call_1", "output": "noon"}
    second = [*begun, *again, result if calls else said("well?")]
    assert run_response(recognition, "b", second, output("noon"), is_streamed=is_streamed) == "a"
    third = [*second, *output("noon"), said("thanks")]
    assert run_response(recognition, "c", third, output("welcome")) == "a"
    assert run_response(recognition, "d", third, output("welcome")) == "d"  # the head was taken


def test_a_response_goes_on_by_its_id_or_by_its_history() -> None:
    recognition = Recognition(kept=100)
    begun = [said("hi")]
    assert run_response(recognition, "a", begun, output("hello")) == "a"
    by_id = run_response(recognition, "b", [said("more")], output("yes"), previous_response_id="resp_a")
    assert by_id == "a"
    by_history = [*begun, *output("hello"), said("more")]
    assert run_response(recognition, "c", by_history, output("no")) == "c"  # it has gone on by the other way
    assert recognition.recognise(*response("e", previous_response_id="resp_b"))[0].conversation_id == "a"


def test_other_instructions_are_another_conversation() -> None:
    recognition = Recognition(kept=100)
    begun = [said("hi")]
    run_response(recognition, "a", begun, output("hello"), instructions="be brief")
    second = [*begun, *output("hello"), said("more")]
    assert run_response(recognition, "b", second, output("x"), instructions="be long") == "b"
    assert run_response(recognition, "c", second, output("x"), instructions="be brief") == "a"


def test_an_answer_with_items_of_other_kinds_goes_on_by_its_id_alone() -> None:
    recognition = Recognition(kept=100)
    answer = [{"type": "mcp_call", "id": "mcp_1", "output": "?"}, *output("hello")]
    run_response(recognition, "a", [said("hi")], answer)
    assert run_response(recognition, "b", [said("hi"), *answer, said("more")], output("x")) == "b"
    assert recognition.recognise(*response("c", previous_response_id="resp_a"))[0].conversation_id == "a"


class Unreadable(dict[str, msgspec.Raw]):
    """Fields in whose messages a fault of the reader lies."""

    def __getitem__(self, name: str) -> msgspec.Raw:
        raise RecursionError(name)


def test_a_history_that_cannot_be_read_is_no_fault_of_the_turn() -> None:
    noted: list[Exception] = []
    recognition = Recognition(10, noted.append)
    request = parse_request("/v1/chat/completions", b'{"model":"m","messages":[]}')
    request = replace(request, fields=Unreadable(request.fields))
    identity = Identity(conversation_id="a", tenant="t", model="m", is_synthetic=True)
    found, watch = recognition.recognise(identity, request)
    assert found == identity
    assert watch is not None
    assert not recognition.settle(found, watch, is_completed=True)
    assert [type(error) for error in noted] == [RecursionError]


class Unsteady(AnswerGatherer):
    """One in which a fault lies."""

    def _read_document(self, _body: bytes) -> None:
        raise RecursionError("too deep")


def test_an_answer_that_cannot_be_gathered_is_no_fault_of_the_turn() -> None:
    noted: list[Exception] = []
    gatherer = Unsteady(noted.append)
    gatherer.read_document(b'{"choices":[{"message":{"role":"assistant","content":"yes"}}]}')
    gatherer.read_events([b'data: {"choices":[{"index":0,"delta":{"content":"no"}}]}'])
    assert gatherer.canonical() is None
    assert [type(error) for error in noted] == [RecursionError]
