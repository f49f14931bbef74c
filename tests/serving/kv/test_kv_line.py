"""The queue of one engine's signals: the latest of each conversation, releases before all."""

from __future__ import annotations

import asyncio

import pytest

from conserve_server.serving.kv import line as kv_line
from conserve_server.serving.kv.line import Batch, KvLine


@pytest.fixture
def line() -> KvLine:
    found = KvLine()
    found.found("g1", has_plugin=True)
    return found


async def test_the_latest_keep_of_a_conversation_counts(line: KvLine) -> None:
    line.keep("a", 8.0)
    line.keep("a", 0.0)
    assert await line.next() == Batch(keeps={0.0: ("a",)})


async def test_keeps_of_like_time_outs_go_in_one_call_that_is_long_enough(line: KvLine) -> None:
    for name, timeout_s in (("a", 8.0), ("b", 8.5)):
        line.keep(name, timeout_s)
    ((timeout_s, names),) = (await line.next()).keeps.items()
    assert names == ("a", "b")
    assert 8.5 <= timeout_s <= 8.5 * 1.25


async def test_a_release_replaces_what_waits_of_its_conversation(line: KvLine) -> None:
    line.keep("a", 8.0)
    line.release("a")
    line.keep("a", 8.0)
    assert await line.next() == Batch(releases=("a",))


async def test_a_conversation_that_goes_on_is_not_released(line: KvLine) -> None:
    line.release("a")
    line.goes_on("a")
    line.refresh("b")
    assert await line.next() == Batch(refreshes=("b",))


async def test_beyond_the_limit_the_oldest_keeps_go_and_no_release(
    line: KvLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_line, "MAX_KEEPS", 2)
    line.release("z")
    for name in "abc":
        line.keep(name, 1.0)
    batch = await line.next()
    assert (batch.releases, *batch.keeps.values()) == (("z",), ("b", "c"))


async def test_releases_that_were_not_heard_come_first_again(line: KvLine) -> None:
    line.release("a")
    line.release("b")
    batch = await line.next()
    line.release("c")
    line.put_back(batch)
    assert (await line.next()).releases == ("a", "b", "c")


async def test_what_a_dead_process_was_to_be_told_is_void(line: KvLine) -> None:
    line.release("a")
    line.found("g2", has_plugin=True)
    line.release("b")
    assert (await line.next()).releases == ("b",)


async def test_before_the_engine_is_known_signals_wait() -> None:
    line = KvLine()
    line.release("a")
    waiting = asyncio.create_task(line.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    line.found("g1", has_plugin=True)
    assert (await waiting).releases == ("a",)


async def test_an_engine_without_the_plugin_is_told_nothing() -> None:
    line = KvLine()
    line.release("a")
    line.found("g1", has_plugin=False)
    line.release("b")
    line.keep("c", 1.0)
    line.found("g2", has_plugin=True)
    line.release("d")
    assert await line.next() == Batch(releases=("d",))


HOST = ("release", "refresh", "keep", "resident", "offload", "fetch")


@pytest.fixture
def with_host() -> KvLine:
    found = KvLine()
    found.found("g1", has_plugin=True, calls=HOST)
    return found


async def test_an_offload_is_a_refresh_where_there_is_no_host(line: KvLine, with_host: KvLine) -> None:
    for each in (line, with_host):
        each.keep("a", 8.0)
        each.offload("a")
    assert await line.next() == Batch(refreshes=("a",))
    assert await with_host.next() == Batch(offloads=("a",))


async def test_fetches_go_in_the_order_in_which_they_were_asked_for(with_host: KvLine) -> None:
    for name in ("a", "b", "a"):
        with_host.fetch(name)
    assert await with_host.next_fetches() == ("b", "a")


@pytest.mark.parametrize("ends", ["goes_on", "release"])
async def test_a_turn_or_the_end_drops_a_fetch_that_waits(with_host: KvLine, ends: str) -> None:
    with_host.fetch("a")
    with_host.fetch("b")
    getattr(with_host, ends)("a")
    assert await with_host.next_fetches() == ("b",)


async def test_fetches_that_wait_are_bounded_and_void_with_their_engine(with_host: KvLine) -> None:
    for i in range(kv_line.MAX_FETCHES + 1):
        with_host.fetch(str(i))
    assert (await with_host.next_fetches())[0] == "1"
    with_host.found("g2", has_plugin=True, calls=HOST)
    with_host.fetch("new")
    assert await with_host.next_fetches() == ("new",)


async def test_an_engine_that_can_t_fetch_is_not_asked_to(line: KvLine) -> None:
    line.fetch("a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(line.next_fetches(), 0.01)
