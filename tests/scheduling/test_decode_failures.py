"""Decode legs that break: what is placed again, where, and what stays as it was."""

from conserve_sdk.protocol import Path, RebindCause
from conserve_server.core.turn import Placement
from conserve_server.scheduling.actions import StartDecode, StartPrefill
from conserve_server.scheduling.conversation import State
from conserve_server.scheduling.scheduler import Scheduler
from tests.scheduling.driving import bind, scheduler_of, sent, started, turn_of

LOST = RebindCause.ENGINE_LOST


def decoding_first_turn(scheduler: Scheduler, conversation: str) -> int:
    """A first turn whose decode leg has been sent."""
    turn = turn_of(conversation)
    scheduler.on_turn(turn, 0.0)
    scheduler.on_prefilled(turn.id, 100, 0.0)
    return turn.id


def test_a_bound_turn_whose_decoder_is_lost_is_placed_anew_on_another() -> None:
    scheduler = scheduler_of()
    assert bind(scheduler, "a") == "d0"
    turn = turn_of("a", 150)
    scheduler.on_turn(turn, 1.0)
    actions = scheduler.on_decode_failed(turn.id, 2.0, is_lost=True)
    assert actions == [StartPrefill(turn.id, Placement(Path.REMOTE_PREFILL, "d1", "p0"), LOST)]
    assert scheduler.pools.ledgers["d0"].reserved_tokens == 0


def test_the_cause_of_a_rebind_is_counted_once_its_decoder_has_answered() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a")
    turn = turn_of("a", 150)
    scheduler.on_turn(turn, 1.0)
    scheduler.on_decode_failed(turn.id, 2.0, is_lost=True)
    (decode,) = sent(scheduler.on_prefilled(turn.id, 150, 3.0))
    assert decode.rebind is LOST
    assert scheduler.rebinds_by_cause == {}
    scheduler.on_first_token(turn.id, 3.0)
    assert scheduler.rebinds_by_cause == {LOST: 1}


def test_one_lost_turn_leaves_the_other_conversations_of_that_decoder_bound() -> None:
    scheduler = scheduler_of()
    decoders = [bind(scheduler, name) for name in ("a", "b", "c")]
    assert decoders == ["d0", "d1", "d0"]
    turn = turn_of("a", 150)
    scheduler.on_turn(turn, 1.0)
    scheduler.on_decode_failed(turn.id, 2.0, is_lost=True)
    other = scheduler.find("c")
    assert other is not None
    assert (other.decoder, other.state) == ("d0", State.TOOL_GAP)
    later = turn_of("c", 150)
    assert scheduler.on_turn(later, 3.0) == [StartDecode(later.id, Placement(Path.PINNED, "d0"))]


def test_a_decoder_that_could_not_be_reached_takes_nothing_new_until_it_is_seen_up() -> None:
    scheduler = scheduler_of()
    first = decoding_first_turn(scheduler, "a")
    scheduler.on_decode_failed(first, 1.0, is_lost=True)
    placed = [decoder for name in "bcd" for decoder in [bind(scheduler, name)]]
    assert placed == ["d1", "d1", "d1"]
    scheduler.on_engine_up("d0", 1000, 0.0)
    assert bind(scheduler, "e") == "d0"


def test_a_bound_turn_that_was_answered_with_an_error_goes_to_its_decoder_once_more() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a")
    turn = turn_of("a", 150)
    scheduler.on_turn(turn, 1.0)
    again = scheduler.on_decode_failed(turn.id, 2.0, is_lost=False)
    assert again == [StartDecode(turn.id, Placement(Path.PINNED, "d0"))]
    moved = scheduler.on_decode_failed(turn.id, 3.0, is_lost=False)
    assert moved == [
        StartPrefill(turn.id, Placement(Path.REMOTE_PREFILL, "d1", "p0"), RebindCause.ENGINE_FAILED)
    ]


def test_a_transfer_that_failed_is_tried_with_the_other_prefiller_and_decoder() -> None:
    scheduler = scheduler_of(prefillers=("p0", "p1"))
    turn_id = decoding_first_turn(scheduler, "a")
    actions = scheduler.on_decode_failed(turn_id, 1.0, is_lost=False)
    assert actions == [StartPrefill(turn_id, Placement(Path.REMOTE_PREFILL, "d1", "p1"))]


def test_after_two_failed_transfers_a_turn_is_prefilled_where_it_is_decoded() -> None:
    scheduler = scheduler_of(prefillers=("p0", "p1", "p2"))
    turn_id = decoding_first_turn(scheduler, "a")
    scheduler.on_decode_failed(turn_id, 1.0, is_lost=False)
    scheduler.on_prefilled(turn_id, 100, 1.0)
    (last,) = sent(scheduler.on_decode_failed(turn_id, 2.0, is_lost=False))
    assert (type(last), last.placement.path) == (StartDecode, Path.LOCAL_PREFILL)


def test_a_decoder_that_failed_a_turn_gets_it_again_if_no_other_has_room() -> None:
    scheduler = scheduler_of(capacity=100)
    scheduler.on_engine_down("d1", 0.0)
    turn_id = decoding_first_turn(scheduler, "a")
    actions = scheduler.on_decode_failed(turn_id, 1.0, is_lost=False)
    assert [action.placement.decoder for action in sent(actions)] == ["d0"]


def test_a_turn_lost_in_mid_stream_unbinds_its_conversation_and_is_not_sent_again() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a")
    turn = turn_of("a", 150)
    scheduler.on_turn(turn, 1.0)
    scheduler.on_first_token(turn.id, 1.0)
    assert scheduler.on_decode_failed(turn.id, 2.0, is_lost=True) == []
    scheduler.on_turn_ended(turn.id, None, 2.0)
    assert scheduler.reserved_tokens("a") == 0
    following = turn_of("a", 160)
    assert sent(scheduler.on_turn(following, 3.0))[0].rebind is LOST


def test_an_error_in_mid_stream_leaves_the_conversation_where_its_kv_is() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a")
    turn = turn_of("a", 150)
    scheduler.on_turn(turn, 1.0)
    scheduler.on_first_token(turn.id, 1.0)
    scheduler.on_decode_failed(turn.id, 2.0, is_lost=False)
    scheduler.on_turn_ended(turn.id, None, 2.0)
    found = scheduler.find("a")
    assert found is not None
    assert found.decoder == "d0"


def test_kv_of_a_prefiller_that_was_restarted_meanwhile_is_never_pulled() -> None:
    scheduler = scheduler_of()
    turn = turn_of("a")
    scheduler.on_turn(turn, 0.0)
    scheduler.on_engine_down("p0", 0.0)
    scheduler.on_engine_up("p0", 1000, 0.0)
    actions = scheduler.on_prefilled(turn.id, 100, 1.0)
    assert started(actions) == [(StartDecode, turn.id)]
    assert sent(actions)[0].placement.path is Path.LOCAL_PREFILL


def test_a_vacated_engine_keeps_no_binding_and_its_conversations_say_why() -> None:
    scheduler = scheduler_of()
    bind(scheduler, "a")
    scheduler.on_engine_draining("d0", 0.0)
    assert not scheduler.pools.is_drained("d0")
    scheduler.on_engine_vacated("d0", 0.0)
    assert scheduler.pools.is_drained("d0")
    turn = turn_of("a", 150)
    (action,) = sent(scheduler.on_turn(turn, 1.0))
    assert (action.placement.decoder, action.rebind) == ("d1", RebindCause.ENGINE_DRAINED)
