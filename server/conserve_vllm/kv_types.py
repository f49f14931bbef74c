"""What this plugin uses of vLLM's KV cache classes, as far as it uses them (vLLM 0.31 to 0.33)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Block(Protocol):
    """One KV block: free while nothing refers to it, reusable as a prefix while it has a hash."""

    block_id: int
    ref_cnt: int
    is_null: bool

    @property
    def block_hash(self) -> bytes | None: ...


class FreeQueue(Protocol):
    """vLLM's queue of free blocks, with what `kv_queue` adds to it."""

    num_free_blocks: int

    def remove(self, block: Block, /) -> None:
        """Take a free block out."""

    def append_n(self, blocks: list[Block], /) -> None:
        """Let them be the last to be taken, but for those that are kept."""

    def next_to_go(self, blocks: list[Block], /) -> None:
        """Let these free blocks be taken before all others that hold something."""


class Pool(Protocol):
    """vLLM's `BlockPool`. Its free blocks are exactly those that nothing refers to."""

    @property
    def blocks(self) -> Sequence[Block]:
        """Every block, by its id."""
        ...

    @property
    def free_block_queue(self) -> FreeQueue: ...


class Watcher(Protocol):
    """What the free queue asks and tells about blocks that leave it."""

    @property
    def keeps_any(self) -> bool: ...

    def keeps(self, block: Block) -> bool:
        """Whether the block belongs to a conversation that is kept."""
        ...

    def taken(self, blocks: Sequence[Block]) -> None:
        """These blocks are about to hold something else."""
