from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conserve_server.simulation.workload import ConversationShape, TurnShape
from conserve_server.simulation.workloads.recorded import (
    RecordedRequest,
    common_blocks,
    cut,
    scaled,
    turns_of,
)


def test_a_later_prompt_appends_what_is_new_since_the_answer() -> None:
    turns = turns_of([RecordedRequest(1000, 50), RecordedRequest(1200, 30, gap_s=2.0)])
    assert turns == (TurnShape(1000, 50), TurnShape(150, 30, 2.0))


def test_a_prompt_a_little_shorter_than_its_history_was_appended_to() -> None:
    turns = turns_of([RecordedRequest(1000, 50), RecordedRequest(1040, 30)])
    assert turns[1] == TurnShape(1, 30)


def test_an_answer_that_was_not_sent_back_is_computed_again() -> None:
    turns = turns_of([RecordedRequest(1000, 500), RecordedRequest(1300, 30)])
    assert turns[1] == TurnShape(300, 30, rewrites_from_tokens=1000)


def test_a_shorter_prompt_keeps_what_is_known_to_be_kept() -> None:
    turns = turns_of([RecordedRequest(50_000, 500), RecordedRequest(20_000, 30)], rewritten_from=14_000)
    assert turns[1] == TurnShape(6_000, 30, rewrites_from_tokens=14_000)


def test_hashes_say_where_a_history_was_rewritten() -> None:
    turns = turns_of([RecordedRequest(1000, 50), RecordedRequest(1400, 30, kept_tokens=512)])
    assert turns[1] == TurnShape(888, 30, rewrites_from_tokens=512)


def test_blocks_in_common_are_counted_from_the_beginning() -> None:
    assert common_blocks([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_blocks([1, 2], [1, 2, 3]) == 2
    assert common_blocks([], [1]) == 0


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 3000)), min_size=1, max_size=10))
def test_every_turn_has_the_length_that_was_recorded(sizes: list[tuple[int, int]]) -> None:
    """But for rounding: a prompt up to 64 tokens short of its history counts as that history and one more."""
    requests = [RecordedRequest(prompt, answer) for prompt, answer in sizes]
    before = 0
    for request, turn in zip(requests, turns_of(requests, rewritten_from=100), strict=True):
        history = before if turn.rewrites_from_tokens is None else turn.rewrites_from_tokens
        assert turn.appended_tokens >= 1
        assert 0 <= history + turn.appended_tokens - request.input_tokens <= 65
        before = request.input_tokens + request.output_tokens


def test_a_conversation_is_cut_before_the_turn_that_goes_too_far() -> None:
    turns = (TurnShape(100, 10), TurnShape(50, 10, 9.0), TurnShape(500, 10))
    shape = ConversationShape("c", turns)
    short = cut(shape, max_context_tokens=200, max_gap_s=5.0)
    assert short is not None
    assert short.turns == (TurnShape(100, 10), TurnShape(50, 10, 5.0))
    assert cut(shape, max_context_tokens=100) is None
    assert cut(shape, max_turns=1) == ConversationShape("c", turns[:1])


def test_a_rewritten_history_counts_as_the_shorter_one_that_it_is() -> None:
    turns = (TurnShape(900, 50), TurnShape(100, 50, rewrites_from_tokens=200), TurnShape(100, 50))
    shape = ConversationShape("c", turns)
    assert cut(shape, max_context_tokens=1000) == shape


def test_a_scaled_conversation_has_shorter_turns_and_none_empty() -> None:
    turns = (TurnShape(1000, 100), TurnShape(3, 50, 2.0, rewrites_from_tokens=800))
    shape = scaled(ConversationShape("c", turns, "p", 600), 0.1)
    assert shape.turns == (TurnShape(100, 10), TurnShape(1, 5, 2.0, rewrites_from_tokens=80))
    assert (shape.prefix, shape.shared_prefix_tokens) == ("p", 60)
