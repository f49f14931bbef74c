"""An engine's host tier: copies of KV in host memory, and the way back to the device.

As vLLM's `OffloadingConnector` with `conserve_vllm` does it: copies are written as requests
leave, those of ended conversations are overwritten first, then those used longest ago, each
from its end. Writing costs the engine nothing here; loads come one after the other.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Room for so many tokens of KV, and how fast they come back (by default, 4/5 of PCIe 4.0 x16)."""

    capacity_tokens: int
    bytes_per_s: float = 25e9
    latency_s: float = 0.001


@dataclass(slots=True)
class _Copy:
    """Blocks of a conversation's own, behind `shared_blocks` of a prefix; or a prefix."""

    blocks: int
    shared_blocks: int = 0


class HostTier:
    """The copies of one engine, in blocks."""

    def __init__(self, memory: HostMemory, *, block_tokens: int) -> None:
        self.memory = memory
        self.total = memory.capacity_tokens // block_tokens
        self.used = 0
        self._copies: OrderedDict[str, _Copy] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._free_s = 0.0

    def store(self, key: str, blocks: int, shared_blocks: int = 0) -> None:
        """Have a copy of these blocks, as far as there is room; one that is there is as if just used."""
        self._drop(key)
        blocks = min(blocks, self.total)
        self._make_room(blocks)
        if blocks:
            self._copies[key] = _Copy(blocks, shared_blocks)
            self.used += blocks

    def reach(self, key: str, prefix: str | None, resident_blocks: int) -> int:
        """Blocks from a context's beginning that copies reach to; 0 where its prefix is on neither side.

        `resident_blocks` of the prefix are on the device.
        """
        prefix_copy = self._copies.get(prefix) if prefix is not None else None
        shared = max(resident_blocks, prefix_copy.blocks if prefix_copy is not None else 0)
        own = self._copies.get(key)
        if own is None:
            return shared
        return own.shared_blocks + own.blocks if own.shared_blocks <= shared else shared

    def touch(self, key: str) -> None:
        """Used now."""
        if key in self._copies:
            self._copies.move_to_end(key)

    def truncate(self, key: str, blocks: int) -> None:
        """What came after so many blocks of the context is of no use."""
        copy = self._copies.get(key)
        if copy is None:
            return
        gone = min(copy.blocks, max(0, copy.shared_blocks + copy.blocks - blocks))
        self._shorten(key, gone)

    def end(self, key: str) -> None:
        """The conversation has ended: its copy is overwritten before all that have not."""
        if key in self._copies:
            self._ended[key] = None

    def load(self, tokens: int, bytes_per_token: int, now_s: float) -> float:
        """Load so many tokens once the loads before are done; when they are on the device."""
        took_s = self.memory.latency_s + tokens * bytes_per_token / self.memory.bytes_per_s
        self._free_s = max(now_s, self._free_s) + took_s
        return self._free_s

    def _make_room(self, blocks: int) -> None:
        while self.used + blocks > self.total:
            key = next(iter(self._ended or self._copies))
            self._shorten(key, min(self._copies[key].blocks, self.used + blocks - self.total))

    def _shorten(self, key: str, blocks: int) -> None:
        copy = self._copies[key]
        copy.blocks -= blocks
        self.used -= blocks
        if not copy.blocks:
            self._drop(key)

    def _drop(self, key: str) -> None:
        copy = self._copies.pop(key, None)
        self._ended.pop(key, None)
        self.used -= 0 if copy is None else copy.blocks
