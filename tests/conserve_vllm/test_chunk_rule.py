"""How large chunks are, by what was observed."""

from __future__ import annotations

import itertools

import pytest

from conserve_vllm.chunk_rule import HOLD_S, WINDOW_S, Chunk, ChunkRule, felt_wait_s


def size(rule: ChunkRule, now_s: float, *, decoding: int = 1, waited_s: float = 0.0) -> int:
    return rule.next(now_s, decoding=decoding, waited_s=waited_s).tokens


def under_load(rule: ChunkRule, share: float, *, begins_s: float = 0.0, seconds: int = 120) -> float:
    """Steps of half a second of prefilling, so many of a hundred; when they end."""
    for step in range(2 * seconds):
        now_s = begins_s + step / 2
        rule.next(now_s, decoding=1, waited_s=0.0)
        rule.ran(now_s, now_s + share / 2)
    return begins_s + seconds


def test_at_first_and_under_light_load_chunks_are_small() -> None:
    rule = ChunkRule(2048)
    assert rule.next(0.0, decoding=1, waited_s=0.0) == Chunk(256, 192)
    assert size(rule, under_load(rule, 0.5)) == 256


def test_where_nothing_decodes_a_chunk_is_all_that_the_engine_takes() -> None:
    assert ChunkRule(8192).next(0.0, decoding=0, waited_s=0.0) == Chunk(8192, 0)


@pytest.mark.parametrize(("share", "tokens"), [(0.6, 512), (0.9, 512), (1.0, 2048)])
def test_under_load_they_grow(share: float, tokens: int) -> None:
    rule = ChunkRule(8192)
    assert size(rule, under_load(rule, share)) == tokens


def test_they_grow_one_step_at_a_time() -> None:
    rule = ChunkRule(2048)
    sizes = []
    for step in range(200):
        now_s = step / 5
        sizes.append(size(rule, now_s))
        rule.ran(now_s, now_s + 0.2)
    changes = [i / 5 for i in range(1, 200) if sizes[i] != sizes[i - 1]]
    assert [sizes[round(5 * at_s)] for at_s in changes] == [512, 1024, 2048]
    assert all(later - earlier > HOLD_S for earlier, later in itertools.pairwise(changes))


def test_they_shrink_when_the_load_goes() -> None:
    rule = ChunkRule(2048)
    now_s = under_load(rule, 1.0)
    assert size(rule, now_s) == 2048
    for step in range(40):
        size(rule, now_s + step * HOLD_S)
    assert size(rule, now_s + 40 * HOLD_S) == 256


def test_half_the_time_at_the_larger_size_is_no_reason_for_the_smaller_one() -> None:
    rule = ChunkRule(2048)
    now_s = under_load(rule, 0.6)
    assert size(rule, under_load(rule, 0.4, begins_s=now_s)) == 512
    assert size(rule, under_load(rule, 0.3, begins_s=now_s + 120)) == 256


@pytest.mark.parametrize(
    ("waited_s", "tokens"), [(1.0, 256), (1.1, 512), (2.1, 1024), (4.1, 2048), (99, 2048)]
)
def test_a_prompt_that_waits_long_is_taken_in_larger_chunks(waited_s: float, tokens: int) -> None:
    assert size(ChunkRule(2048), 0.0, waited_s=waited_s) == tokens


@pytest.mark.parametrize(("prompts", "tokens"), [(5, 256), (6, 512), (12, 1024), (24, 2048), (99, 2048)])
def test_a_crowd_of_prompts_is_taken_in_larger_chunks_before_any_has_waited(
    prompts: int, tokens: int
) -> None:
    assert ChunkRule(2048).next(0.0, decoding=1, waited_s=0.0, prompts=prompts).tokens == tokens


def test_a_wait_is_felt_longer_by_what_goes_first() -> None:
    assert (felt_wait_s(2.0, 10), felt_wait_s(2.0, 0), felt_wait_s(2.0, -1)) == (2.0, 3.0, 3.0)


def test_a_crowd_and_a_wait_do_not_add_up() -> None:
    assert ChunkRule(2048).next(0.0, decoding=1, waited_s=1.1, prompts=6).tokens == 512


def test_no_chunk_is_larger_than_what_the_engine_takes() -> None:
    assert size(ChunkRule(100), 0.0, waited_s=99) == 100
    assert ChunkRule(1).next(0.0, decoding=1, waited_s=0.0) == Chunk(1, 1)


def test_a_larger_smallest_chunk_is_kept() -> None:
    assert size(ChunkRule(8192, 4096), 0.0, waited_s=99) == 4096


def test_the_busy_share_is_that_of_the_window() -> None:
    rule = ChunkRule(2048)
    assert rule.busy_share(0.0) == 0
    assert rule.busy_share(under_load(rule, 0.4)) == pytest.approx(0.4, rel=0.02)
    rule = ChunkRule(2048)
    rule.ran(0.0, 1.0)
    assert rule.busy_share(1.0) == pytest.approx(4 / WINDOW_S, rel=0.05)  # one second is no load yet
