"""Whose host copies are whose, and which tokens bring a conversation back."""

from __future__ import annotations

import pytest

from conserve_vllm.host_ledger import MAX_SHARES_PER_CHUNK, HostLedger
from conserve_vllm.host_order import HostOrder
from tests.conserve_vllm.test_host_order import Chunk, evicted

CHUNKS = 8


class Host:
    """A host tier that takes every copy at once."""

    def __init__(self, **bounds: int) -> None:
        self.order = HostOrder(CHUNKS)
        self.ledger = HostLedger(self.order, block_size=2, **bounds)

    def turn(self, conversation: str | None, context: str) -> None:
        """Over one letter a block."""
        keys = [letter.encode() for letter in context]
        for key in keys:
            if self.order.get(key) is None:
                self.order.insert(key, Chunk())
                self.order.mark_evictable(key)
        self.ledger.record(conversation, keys, list(range(2 * len(keys) + 1)))


@pytest.fixture
def host() -> Host:
    return Host()


def test_a_release_puts_first_what_the_conversation_alone_has(host: Host) -> None:
    host.turn("a", "pab")
    host.turn("b", "pcd")
    assert host.ledger.release("b") == 2
    assert evicted(host.order, 3) == "dcp"


def test_what_requests_without_a_conversation_share_is_not_released(host: Host) -> None:
    host.turn(None, "p")
    host.turn("a", "pa")
    assert host.ledger.release("a") == 1


def test_one_token_more_than_is_held_brings_a_context_back(host: Host) -> None:
    host.turn("a", "abc")
    found = host.ledger.fetch("a", {b"a"})
    assert (found.tokens, found.missing) == (list(range(7)), 2)


def test_only_the_beginning_that_is_held_somewhere_is_brought_back(host: Host) -> None:
    host.turn("a", "abc")
    host.order.remove(b"b")
    found = host.ledger.fetch("a", ())
    assert (found.tokens, found.missing) == ([0, 1, 2], 1)


def test_nothing_is_brought_back_of_a_stranger_or_of_what_ids_do_not_tell(host: Host) -> None:
    assert host.ledger.fetch("stranger", ()).missing == 0
    host.turn("a", "ab")
    host.ledger.record("a", [b"a", b"b"], None)
    assert host.ledger.fetch("a", ()).missing == 0


def test_copies_that_were_overwritten_are_nobody_s(host: Host) -> None:
    host.turn("a", "ab")
    evicted(host.order, 2)
    assert host.ledger.release("a") == 0
    assert host.ledger.fetch("a", ()).tokens == []


def test_the_ledger_is_bounded_by_conversations_and_by_keys() -> None:
    host = Host(max_conversations=2)
    for name in "abc":
        host.turn(name, name)
    assert [host.ledger.fetch(name, ()).missing for name in "abc"] == [0, 1, 1]
    host = Host()
    for i in range(MAX_SHARES_PER_CHUNK + 1):
        host.turn(str(i), "abcdefgh")
    assert [host.ledger.fetch(str(i), ()).missing for i in range(3)] == [0, 8, 8]
