"""Which host copies are overwritten: of ended conversations first, then those used longest ago."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from conserve_vllm.host_order import MAX_LATE, HostOrder


@dataclass
class Chunk:
    is_ready: bool = True


def order_of(keys: str) -> HostOrder:
    """With a whole copy of each."""
    order = HostOrder(10)
    for key in _keys(keys):
        order.insert(key, Chunk())
        order.mark_evictable(key)
    return order


def _keys(letters: str) -> list[bytes]:
    return [letter.encode() for letter in letters]


def evicted(order: HostOrder, n: int, protected: str = "") -> str | None:
    gone = order.evict(n, set(_keys(protected)))
    return None if gone is None else "".join(key.decode() for key, _ in gone)


def test_what_was_used_longest_ago_goes_and_of_a_context_its_end() -> None:
    order = order_of("abcxyz")
    order.touch(_keys("abc"), None)
    assert evicted(order, 4) == "xyzc"


def test_copies_of_an_ended_conversation_go_before_all_others() -> None:
    order = order_of("abcd")
    assert order.release(_keys("dc")) == 2
    assert evicted(order, 3) == "dca"


def test_a_copy_that_was_on_its_way_when_its_conversation_ended_goes_first_too() -> None:
    order = order_of("ab")
    assert order.release(_keys("c")) == 0
    order.insert(b"c", Chunk(), "vLLM 0.33 tells the request too")
    order.mark_evictable(b"c")
    assert evicted(order, 1) == "c"


def test_what_another_conversation_has_since_is_not_released_any_more() -> None:
    order = order_of("ab")
    order.release(_keys("bc"))
    order.claim(_keys("bc"))
    order.insert(b"c", Chunk())
    order.mark_evictable(b"c")
    assert evicted(order, 3) == "abc"


def test_what_is_loaded_or_protected_stays_and_too_few_change_nothing() -> None:
    order = order_of("abc")
    order.mark_non_evictable(b"a")
    assert evicted(order, 2, protected="b") is None
    assert evicted(order, 1, protected="b") == "c"
    order.mark_evictable(b"a")
    assert evicted(order, 2) == "ab"


def test_every_copy_that_goes_is_told() -> None:
    order = order_of("abcd")
    gone: list[bytes] = []
    order.on_gone = gone.append
    evicted(order, 1)
    order.remove(b"b")
    order.clear()
    assert gone == _keys("abcd")
    assert not order.holds(b"c")


def test_a_copy_is_held_once_it_is_whole() -> None:
    order = order_of("a")
    order.insert(b"b", Chunk(is_ready=False))
    assert (order.holds(b"a"), order.holds(b"b"), order.holds(b"c")) == (True, False, False)


def test_copies_on_their_way_are_remembered_up_to_a_bound() -> None:
    order = HostOrder(10)
    order.release(str(i).encode() for i in range(MAX_LATE + 1))
    order.insert(b"0", Chunk())
    order.insert(b"1", Chunk())
    for key in (b"0", b"1"):
        order.mark_evictable(key)
    assert evicted(order, 1) == "1"


@given(st.lists(st.tuples(st.sampled_from("iretpm"), st.sampled_from("abcdef")), max_size=60))
def test_exactly_n_that_may_go_are_chosen_or_none(steps: list[tuple[str, str]]) -> None:
    order, here, free = HostOrder(10), set(), set()
    for step, letter in steps:
        key = letter.encode()
        if step == "i" and key not in here:
            order.insert(key, Chunk())
            here.add(key)
        elif step == "m" and key in here:
            order.mark_evictable(key)
            free.add(key)
        elif step == "p" and key in free:
            order.mark_non_evictable(key)
            free.discard(key)
        elif step == "r":
            order.release([key])
        elif step == "t":
            order.touch([key], None)
        elif step == "e":
            gone = order.evict(2, {key})
            may_go = free - {key}
            assert (gone is None) == (len(may_go) < 2)
            keys = {each for each, _ in gone or ()}
            assert keys <= may_go
            assert len(keys) in (0, 2)
            here -= keys
            free -= keys
