"""vLLM's queue of free KV blocks, in four segments where vLLM has two.

Blocks that hold nothing, then those of conversations that have ended, those in the order of
their last use, and those that are kept. It stays one linked list in the order in which
blocks are taken: everybody who reads it sees what is true. What is kept is still free, so
that no request starves for it; what was released is still found until it is taken.
"""

from __future__ import annotations

from typing import Any, Final

from conserve_vllm.kv_types import Watcher

MAX_STEPS: Final = 4_096
"""Blocks that hold nothing which are passed by in search of the first that does: with more of them,
nothing will be taken for a while."""


class ConversationQueue:
    """Mixed in before vLLM's queue class: blocks that the watcher keeps stay behind all others."""

    watcher: Watcher
    last_released: Any
    """The block at which the segment of released ones ends, while it is in the queue."""
    first_kept: Any
    """The block at which the kept segment begins; None while it is empty."""
    num_free_blocks: int
    fake_free_list_head: Any
    fake_free_list_tail: Any

    @property
    def _stock(self) -> Any:
        """vLLM's own methods."""
        return super()

    def popleft(self) -> Any:
        block = self._stock.popleft()
        self._left([block])
        return block

    def popleft_n(self, n: int) -> list[Any]:
        blocks: list[Any] = self._stock.popleft_n(n)
        self._left(blocks)
        return blocks

    def remove(self, block: Any) -> None:
        if block is self.first_kept:
            self.first_kept = self._real(block.next_free_block)
        if block is self.last_released:
            self.last_released = None
        self._stock.remove(block)

    def append(self, block: Any) -> None:
        self.append_n([block])

    def append_n(self, blocks: list[Any]) -> None:
        if self.first_kept is None and not self.watcher.keeps_any:
            self._stock.append_n(blocks)
            return
        kept = [block for block in blocks if self.watcher.keeps(block)]
        others = [block for block in blocks if not self.watcher.keeps(block)]
        self._insert_before_kept(others)
        self._stock.append_n(kept)
        if self.first_kept is None and kept:
            self.first_kept = kept[0]

    def next_to_go(self, blocks: list[Any]) -> None:
        """Let these free blocks be taken before all others that hold something, in this order."""
        for block in blocks:
            self.remove(block)
        before = self._before_used()
        after = before.next_free_block
        for block in blocks:
            before.next_free_block, block.prev_free_block = block, before
            before = block
        before.next_free_block, after.prev_free_block = after, before
        self.num_free_blocks += len(blocks)
        self.last_released = blocks[-1] if blocks else self.last_released

    def _before_used(self) -> Any:
        """The block (or head) behind which those in the order of their use begin."""
        last = self.last_released
        if last is not None and last.next_free_block is not None:
            return last
        before = self.fake_free_list_head
        for _ in range(MAX_STEPS):
            block = before.next_free_block
            if block is self.fake_free_list_tail or block.block_hash is not None:
                break
            before = block
        return before

    def _insert_before_kept(self, blocks: list[Any]) -> None:
        if self.first_kept is None:
            self._stock.append_n(blocks)
            return
        before = self.first_kept.prev_free_block
        for block in blocks:
            before.next_free_block, block.prev_free_block = block, before
            before = block
        before.next_free_block, self.first_kept.prev_free_block = self.first_kept, before
        self.num_free_blocks += len(blocks)

    def _left(self, blocks: list[Any]) -> None:
        # Blocks leave at the head and lose their links: if the first kept one did, all before it did too.
        if self.last_released is not None and self.last_released.next_free_block is None:
            self.last_released = None
        if self.first_kept is not None and self.first_kept.next_free_block is None:
            self.first_kept = self._real(self.fake_free_list_head.next_free_block)
        self.watcher.taken(blocks)

    def _real(self, block: Any) -> Any:
        return None if block is self.fake_free_list_tail else block


def attach(queue: Any, watcher: Watcher) -> None:
    """Make a running engine's queue one that keeps, in place: others hold references to it."""
    queue.watcher = watcher
    queue.first_kept = queue.last_released = None
    queue.__class__ = type("ConversationQueue", (ConversationQueue, type(queue)), {})
