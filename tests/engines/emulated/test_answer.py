"""Answers have the length, the end and the mark that the request asks for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conserve_server.engines.emulated.answer import MARK, Answer, Ask, plan_answer
from conserve_server.engines.emulated.script import Rule

ASK = Ask(text="hello", turn=1, max_tokens=100)


def _text(answer: Answer) -> str:
    return "".join(token.text for token in answer.tokens)


def test_an_unscripted_answer_is_marked_and_has_the_default_length() -> None:
    answer = plan_answer(ASK, (), 32)
    assert _text(answer).startswith(MARK)
    assert (len(answer.tokens), answer.finish_reason) == (32, "stop")


@pytest.mark.parametrize("limit", [1, 5, 31])
def test_a_token_limit_ends_the_answer_by_length(limit: int) -> None:
    answer = plan_answer(replace(ASK, max_tokens=limit), (), 32)
    assert (len(answer.tokens), answer.finish_reason) == (limit, "length")


def test_ignore_eos_fills_up_to_the_limit() -> None:
    answer = plan_answer(replace(ASK, ignore_eos=True), (Rule(reply="short"),), 32)
    assert (len(answer.tokens), answer.finish_reason) == (100, "length")
    assert _text(answer).startswith("short")


@pytest.mark.parametrize("script", [(), (Rule(reply="short"),)])
def test_min_tokens_are_reached(script: tuple[Rule, ...]) -> None:
    assert len(plan_answer(replace(ASK, min_tokens=50), script, 32).tokens) == 50


@pytest.mark.parametrize("tokens", [3, 40])
def test_a_rule_decides_the_length(tokens: int) -> None:
    answer = plan_answer(ASK, (Rule(reply="one two three four", output_tokens=tokens),), 32)
    assert (len(answer.tokens), answer.finish_reason) == (tokens, "stop")


def test_a_stop_text_ends_the_answer_before_itself() -> None:
    answer = plan_answer(replace(ASK, stops=("three",)), (Rule(reply="one two three four"),), 32)
    assert (_text(answer), answer.finish_reason, answer.stop_reason) == ("one two ", "stop", "three")


def test_equal_requests_have_equal_answers() -> None:
    assert plan_answer(ASK, (), 32) == plan_answer(ASK, (), 32)


def test_a_schema_is_not_followed_by_filler() -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}}
    answer = plan_answer(replace(ASK, schema=schema, ignore_eos=True), (), 32)
    assert _text(answer) == '{"city": "Oslo"}'
