"""What this plugin uses of vLLM's KV cache classes, as far as it uses them (vLLM 0.31 to 0.33)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol


class Block(Protocol):
    """One KV block: free while nothing refers to it, reusable as a prefix while it has a hash."""

    block_id: int
    ref_cnt: int
    is_null: bool

    @property
    def block_hash(self) -> bytes | None: ...


class Pool(Protocol):
    """vLLM's `BlockPool`."""

    @property
    def blocks(self) -> Sequence[Block]:
        """Every block, by its id."""
        ...

    def touch(self, blocks: Sequence[Block], /) -> None:
        """Refer to blocks: those that were free leave the free queue."""

    def free_blocks(self, ordered_blocks: Iterable[Block], /) -> None:
        """Refer to them no more: those without a hash go to the queue's head, others to its end."""

    def evict_blocks(self, block_ids: set[int], /) -> None:
        """Take their hashes: no request finds them as a prefix any more."""


class Watcher(Protocol):
    """What the free queue asks and tells about blocks that leave it."""

    @property
    def keeps_any(self) -> bool: ...

    def keeps(self, block: Block) -> bool:
        """Whether the block belongs to a conversation that is kept."""
        ...

    def taken(self, blocks: Sequence[Block]) -> None:
        """These blocks are about to hold something else."""
