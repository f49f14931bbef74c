"""Blocks are shared by prefix, reused oldest first, and never lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conserve_server.engines.emulated.kv_cache import BlockPool, digest_blocks


def test_equal_blocks_after_different_beginnings_differ() -> None:
    first, second = digest_blocks([1, 2, 9, 9], 2), digest_blocks([3, 4, 9, 9], 2)
    assert first[1] != second[1]


def test_only_full_blocks_have_digests_unless_the_tail_is_asked_for() -> None:
    assert len(digest_blocks([1, 2, 3, 4, 5], 2)) == 2
    assert len(digest_blocks([1, 2, 3, 4, 5], 2, with_tail=True)) == 3


def test_released_blocks_are_found_by_their_content() -> None:
    pool = BlockPool(4)
    blocks = pool.take([], 2)
    assert blocks is not None
    for block, digest in zip(blocks, (11, 12), strict=True):
        pool.publish(block, digest)
    pool.release(blocks)
    assert pool.usage == 0
    assert pool.cached([11, 12, 13]) == blocks


def test_the_longest_unused_content_is_evicted_first_and_a_prefix_outlives_its_end() -> None:
    pool = BlockPool(2)
    blocks = pool.take([], 2)
    assert blocks is not None
    for block, digest in zip(blocks, (11, 12), strict=True):
        pool.publish(block, digest)
    pool.release(blocks)
    pool.take([], 1)
    assert pool.cached([11, 12]) == blocks[:1]


def test_blocks_in_use_are_not_given_away() -> None:
    pool = BlockPool(2)
    assert pool.take([], 2) is not None
    assert pool.take([], 1) is None


@given(st.lists(st.integers(1, 6), max_size=20))
def test_every_block_comes_back(sizes: list[int]) -> None:
    pool = BlockPool(8)
    held: list[list[int]] = []
    for size in sizes:
        taken = pool.take([], size)
        if taken is None:
            pool.release(held.pop(0))
        else:
            held.append(taken)
        assert pool.usage == sum(map(len, held)) / 8
    for blocks in held:
        pool.release(blocks)
    assert pool.take([], 8) is not None
