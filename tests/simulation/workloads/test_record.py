from __future__ import annotations

from collections.abc import Mapping

from conserve_server.simulation.workload import Arrival, ConversationShape, TurnShape
from conserve_server.simulation.workloads.record import recorded_arrivals
from conserve_server.telemetry import names
from conserve_server.telemetry.spans_file import Span, Value

T0_NS = 1_700_000_000_000_000_000


def turn(
    conversation: str, start_s: float, end_s: float, tokens: int | None, output: int, **more: Value
) -> Span:
    attributes: dict[str, Value] = {names.CONVERSATION_ID: conversation, names.OUTPUT_TOKENS: output}
    if tokens is not None:
        attributes[names.INPUT_TOKENS] = tokens
    named: Mapping[str, Value] = {getattr(names, key): value for key, value in more.items()}
    start_ns, end_ns = (T0_NS + round(at_s * 1e9) for at_s in (start_s, end_s))
    return Span("s", None, names.SPAN_TURN, start_ns, end_ns, {**attributes, **named})


def test_served_turns_become_a_workload_of_numbered_conversations() -> None:
    spans = [
        turn("secret-b", 10.0, 11.0, 500, 20),
        turn("secret-a", 0.0, 2.0, 1000, 50),
        turn("secret-a", 5.0, 6.0, 1200, 30),
    ]
    assert recorded_arrivals(spans) == [
        Arrival(0.0, ConversationShape("c1", (TurnShape(1000, 50), TurnShape(150, 30, 3.0)))),
        Arrival(10.0, ConversationShape("c2", (TurnShape(500, 20),))),
    ]


def test_a_turn_that_no_engine_counted_is_left_out() -> None:
    assert recorded_arrivals([turn("a", 0.0, 1.0, None, 0)]) == []


def test_spans_that_are_no_turns_are_passed_over() -> None:
    other = Span("s", None, "chat m", T0_NS, T0_NS + 1, {names.CONVERSATION_ID: "a", names.INPUT_TOKENS: 9})
    assert recorded_arrivals([other]) == []


def test_the_same_id_of_two_tenants_is_two_conversations() -> None:
    spans = [turn("a", 0.0, 1.0, 100, 5, TENANT="x"), turn("a", 2.0, 3.0, 100, 5, TENANT="y")]
    assert len(recorded_arrivals(spans)) == 2


def test_first_turns_that_hit_the_cache_show_what_an_agent_shares() -> None:
    spans = [
        turn("a", 0.0, 1.0, 1000, 5, AGENT="coder", CACHE_READ_TOKENS=0),
        turn("b", 2.0, 3.0, 1000, 5, AGENT="coder", CACHE_READ_TOKENS=640),
        turn("c", 4.0, 5.0, 1000, 5, AGENT="writer", CACHE_READ_TOKENS=0),
    ]
    one, two, three = (arrival.conversation for arrival in recorded_arrivals(spans))
    assert one.prefix == two.prefix == "agent-1"
    assert one.shared_prefix_tokens == two.shared_prefix_tokens == 640
    assert three.prefix is None


def test_a_shorter_prompt_kept_what_the_cache_held() -> None:
    spans = [turn("a", 0.0, 1.0, 5000, 5), turn("a", 2.0, 3.0, 2000, 5, CACHE_READ_TOKENS=800)]
    (only,) = recorded_arrivals(spans)
    assert only.conversation.turns[1] == TurnShape(1200, 5, 1.0, rewrites_from_tokens=800)


def test_only_conversations_begun_since_a_time_are_kept() -> None:
    spans = [turn("a", 0.0, 1.0, 100, 5), turn("b", 100.0, 101.0, 100, 5)]
    assert len(recorded_arrivals(spans, since_unix_s=T0_NS / 1e9 + 50)) == 1
