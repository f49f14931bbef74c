"""Which blocks are whose, and what release, refresh and keep do to the order in which they are taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from conserve_vllm.kv_ledger import Ledger
from conserve_vllm.kv_queue import attach
from tests.conserve_vllm.fake_kv import BlockPool

BLOCKS = 12


class Engine:
    """A pool with a ledger, and turns that take, record and free blocks as an engine has it."""

    def __init__(self, *, max_conversations: int = 100) -> None:
        self.now_s = 0.0
        self.pool = BlockPool(BLOCKS)
        self.ledger = Ledger(
            self.pool, block_size=4, now_s=lambda: self.now_s, max_conversations=max_conversations
        )
        attach(self.pool.free_block_queue, self.ledger)

    def begin(self, conversation: str | None, context: str, request_id: str = "r") -> Callable[[], None]:
        """A turn over a context of one letter a block; call the result to end it."""
        blocks = self.pool.allocate(_hashes(context))

        def end() -> None:
            self.ledger.record(conversation, request_id, blocks)
            self.pool.free_blocks(reversed(blocks))
            self.ledger.freed(conversation, request_id)

        return end

    def turn(self, conversation: str | None, context: str) -> None:
        self.begin(conversation, context)()

    def cached(self, context: str) -> int:
        """How many blocks of the context a turn would find."""
        return len(self.pool.cached(_hashes(context)))

    def goes_next(self, context: str) -> bool:
        """Whether the context's blocks are the first of those that hold something."""
        of = {block.block_id: block.block_hash for block in self.pool.blocks}
        used = [i for i in self.pool.free_ids if of[i] is not None]
        return set(used[: len(context)]) == {block.block_id for block in self.pool.cached(_hashes(context))}


def _hashes(context: str) -> list[str]:
    return [context[: i + 1] for i in range(len(context))]


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_without_signals_the_longest_unused_conversation_is_taken_first(engine: Engine) -> None:
    engine.turn("a", "AAAA")
    engine.turn("b", "BBBB")
    engine.turn("c", "CCCCCCCC")
    assert (engine.cached("AAAA"), engine.cached("BBBB")) == (0, 4)


def test_released_blocks_are_taken_before_those_of_a_live_conversation(engine: Engine) -> None:
    engine.turn("a", "AAAA")
    engine.turn("b", "BBBB")
    assert engine.ledger.release("b", running=())
    engine.turn("c", "CCCCCCCC")
    assert (engine.cached("AAAA"), engine.cached("BBBB")) == (4, 0)
    assert engine.ledger.take_counts().released == 4


def test_a_shared_prefix_stays_for_its_other_owner(engine: Engine) -> None:
    engine.turn("a", "SSAA")
    engine.turn("b", "SSBB")
    engine.ledger.release("a", running=())
    engine.turn("c", "CCCCCCCC")
    assert (engine.cached("SSAA"), engine.cached("SSBB")) == (2, 4)


def test_a_prefix_that_nameless_requests_use_stays(engine: Engine) -> None:
    engine.turn(None, "SS")
    engine.turn("a", "SSAA")
    engine.turn("b", "BBBBBB")
    engine.ledger.release("a", running=())
    engine.turn("c", "CCCC")
    assert engine.cached("SS") == 2


def test_blocks_that_a_running_turn_of_another_holds_are_not_freed(engine: Engine) -> None:
    engine.turn("a", "SSAA")
    end = engine.begin("b", "SSBB")
    assert not engine.ledger.release("a", running=())
    assert engine.cached("SS") == 2
    end()
    engine.ledger.step()
    engine.turn("c", "CCCCCCCC")
    assert (engine.cached("SSBB"), engine.cached("SSAA")) == (4, 2)


def test_a_release_waits_for_the_running_turn(engine: Engine) -> None:
    end = engine.begin("a", "AAAA", "r1")
    assert not engine.ledger.release("a", running=("r1",))
    engine.turn("b", "BBBB")
    end()
    assert engine.goes_next("AAAA")


def test_a_conversation_that_goes_on_after_its_release_is_not_released_by_it(engine: Engine) -> None:
    first = engine.begin("a", "AA", "r1")
    engine.ledger.release("a", running=("r1",))
    engine.begin("a", "AAAA", "r2")()
    first()
    engine.ledger.step()
    assert engine.ledger.resident(None).tokens == {"a": 16}


def test_blocks_freed_later_than_their_request_are_released_when_they_are(engine: Engine) -> None:
    blocks = engine.pool.allocate(_hashes("AAAA"))
    engine.ledger.record("a", "r1", blocks)
    assert not engine.ledger.release("a", running=())
    engine.ledger.step()
    engine.turn("b", "BBBB")
    engine.pool.free_blocks(reversed(blocks))
    engine.ledger.step()
    assert engine.goes_next("AAAA")
    assert list(engine.ledger.resident(None).tokens) == ["b"]


def test_what_was_released_is_found_until_it_is_taken(engine: Engine) -> None:
    engine.turn("a", "SSAA")
    engine.ledger.release("a", running=())
    engine.turn("b", "SSBB")
    assert engine.cached("SSBB") == 4
    assert engine.ledger.resident(None).tokens == {"b": 16}


def test_what_was_released_first_is_taken_first_a_context_s_end_before_its_beginning(
    engine: Engine,
) -> None:
    for name in "abc":
        engine.turn(name, name.upper() * 4)
    engine.ledger.release("b", running=())
    engine.ledger.release("a", running=())
    engine.turn("d", "DDDDDD")
    assert (engine.cached("BBBB"), engine.cached("AAAA"), engine.cached("CCCC")) == (0, 2, 4)


def test_a_refresh_makes_it_the_last_to_be_taken(engine: Engine) -> None:
    engine.turn("a", "AAAA")
    engine.turn("b", "BBBB")
    engine.ledger.refresh("a")
    engine.turn("c", "CCCCCCCC")
    assert (engine.cached("AAAA"), engine.cached("BBBB")) == (4, 0)


def test_what_is_kept_outlives_what_is_used_later(engine: Engine) -> None:
    engine.turn("a", "AAAA")
    engine.ledger.keep("a", 60.0)
    for context in ("BBBBBBBB", "CCCCCCCC", "DDDDDDDD"):
        engine.turn(context, context)
    assert engine.cached("AAAA") == 4


def test_a_kept_context_loses_its_end_first_and_nothing_starves(engine: Engine) -> None:
    engine.turn("a", "AAAA")
    engine.ledger.keep("a", 60.0)
    engine.turn("b", "B" * (BLOCKS - 1))
    assert engine.cached("AAAA") == 1
    assert engine.ledger.take_counts().evicted_while_kept == 3


def test_a_keep_ends_at_its_time_out(engine: Engine) -> None:
    engine.turn("a", "AAAA")
    engine.ledger.keep("a", 60.0)
    engine.now_s = 61.0
    engine.ledger.step()
    engine.turn("b", "BBBBBBBB")
    engine.turn("c", "CCCCCCCC")
    assert engine.cached("AAAA") == 0


def test_a_keep_of_no_time_ends_it(engine: Engine) -> None:
    engine.turn("a", "AAAA")
    engine.ledger.keep("a", 60.0)
    engine.ledger.keep("a", 0.0)
    assert not engine.ledger.keeps_any


def test_the_next_turn_of_a_kept_conversation_is_kept_with_what_it_adds(engine: Engine) -> None:
    engine.turn("a", "AA")
    engine.ledger.keep("a", 60.0)
    engine.turn("a", "AAXX")
    engine.turn("b", "BBBBBBBB")
    assert engine.cached("AAXX") == 4


def test_resident_tells_only_what_changed_since_the_cursor(engine: Engine) -> None:
    engine.turn("a", "AAAA")
    first = engine.ledger.resident(None)
    assert (first.tokens, first.is_full) == ({"a": 16}, True)
    engine.turn("b", "BB")
    engine.ledger.release("a", running=())
    second = engine.ledger.resident(first.cursor)
    assert (second.tokens, second.is_full) == ({"a": 0, "b": 8}, False)
    assert engine.ledger.resident(second.cursor).tokens == {}


def test_blocks_that_are_taken_are_resident_no_more(engine: Engine) -> None:
    engine.turn("a", "AAAA")
    cursor = engine.ledger.resident(None).cursor
    engine.turn("b", "B" * 10)
    assert engine.ledger.resident(cursor).tokens == {"a": 8, "b": 40}


def test_a_cursor_of_another_life_gets_everything(engine: Engine) -> None:
    engine.turn("a", "AA")
    assert engine.ledger.resident(1_000_000).is_full


def test_blocks_whose_content_went_another_way_are_nobodys(engine: Engine) -> None:
    engine.turn("a", "AAAA")
    engine.pool.evict_blocks(set(engine.pool.free_ids))
    assert engine.ledger.refresh("a") == 0


def test_the_ledger_forgets_the_longest_unused_beyond_its_cap() -> None:
    engine = Engine(max_conversations=2)
    for name in "abc":
        engine.turn(name, name)
    assert list(engine.ledger.resident(None).tokens) == ["b", "c"]


def test_what_was_forgotten_stays_cached_as_without_the_plugin() -> None:
    engine = Engine(max_conversations=1)
    engine.turn("a", "AA")
    engine.turn("b", "BB")
    engine.ledger.release("a", running=())
    assert engine.cached("AA") == 2


def test_an_offload_lets_go_of_what_the_host_has_and_of_nothing_that_is_shared_or_in_use(
    engine: Engine,
) -> None:
    engine.turn("a", "PAAA")
    engine.turn("b", "PB")
    engine.turn("c", "CCC")
    engine.ledger.keep("a", 60.0)
    on_host = {content.encode() for content in ("P", "PA", "PAA")}
    assert engine.ledger.offload("a", on_host.__contains__) == 2
    end = engine.begin("d", "DDDDDD")  # four were free, and the two that were let go
    assert (engine.cached("PAAA"), engine.cached("CCC")) == (1, 3)
    end()
    assert engine.ledger.counts.offloaded == 2


def test_a_release_is_told_once_it_is_done(engine: Engine) -> None:
    told: list[str] = []

    def on_released(name: str) -> int:
        told.append(name)
        return 3

    engine.ledger.on_released = on_released
    end = engine.begin("a", "AA")
    engine.ledger.release("a", {"r"})
    assert told == []
    end()
    assert (told, engine.ledger.counts.host_released) == (["a"], 3)


def test_free_blocks_that_are_kept_are_told_apart(engine: Engine) -> None:
    engine.turn("a", "AAAA")
    assert engine.ledger.free_unkept == BLOCKS
    engine.ledger.keep("a", 60.0)
    assert engine.ledger.free_unkept == BLOCKS - 4
