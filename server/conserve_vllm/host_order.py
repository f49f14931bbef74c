"""In which order host copies of KV blocks are overwritten: of ended conversations first, then by last use.

The whole of a cache policy for vLLM's `OffloadingConnector`, but for its base class
(`host_tier.py` adds it): it keeps the chunks by their keys, and chooses which go.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, Protocol

MAX_LATE: Final = 4_096
"""Copies that were on their way to the host when their conversation ended, as far as they are remembered."""


class Chunk(Protocol):
    """vLLM's state of one host copy."""

    @property
    def is_ready(self) -> bool:
        """Whether its bytes have arrived."""
        ...


class HostOrder:
    """The copies of one engine. A key is a block's hash with its cache group, as in the engine's cache."""

    def __init__(self, cache_capacity: int) -> None:
        self.cache_capacity = cache_capacity
        self.on_gone: Callable[[bytes], None] | None = None
        """Told of each copy that was overwritten or dropped."""
        self._chunks: OrderedDict[bytes, Any] = OrderedDict()
        self._evictable: set[bytes] = set()
        self._released: OrderedDict[bytes, None] = OrderedDict()
        self._late: OrderedDict[bytes, None] = OrderedDict()

    # -- conversations ------------------------------------------------------------------------------

    def release(self, keys: Iterable[bytes]) -> int:
        """No conversation needs these any more: they go first, in this order. How many there are."""
        found = 0
        for key in keys:
            if key in self._chunks:
                self._released[key] = None
                found += 1
            else:
                self._late[key] = None
                if len(self._late) > MAX_LATE:
                    self._late.popitem(last=False)
        return found

    def claim(self, keys: Iterable[bytes]) -> None:
        """A conversation has these: they are not released, whoever had them before."""
        for key in keys:
            self._released.pop(key, None)
            self._late.pop(key, None)

    def holds(self, key: bytes) -> bool:
        """Whether the copy is there and whole."""
        chunk: Chunk | None = self._chunks.get(key)
        return chunk is not None and chunk.is_ready

    # -- vLLM's cache policy --------------------------------------------------------------------

    def get(self, key: bytes) -> Any:
        return self._chunks.get(key)

    def insert(self, key: bytes, chunk: Any, *_: Any) -> None:
        """vLLM 0.33 also tells for which request."""
        self._chunks[key] = chunk
        if self._late.pop(key, key) is None:
            self._released[key] = None

    def remove(self, key: bytes) -> None:
        del self._chunks[key]
        self._gone(key)

    def touch(self, keys: Iterable[bytes], _: Any) -> None:
        """Used, in the order of a context: its beginning stays longest."""
        for key in reversed(list(keys)):
            if key in self._chunks:
                self._chunks.move_to_end(key)

    def evict(self, n: int, protected: Collection[bytes]) -> list[tuple[bytes, Any]] | None:
        """Let go of n; None, and nothing has changed, where there are not so many."""
        chosen: dict[bytes, None] = {}
        for keys in (self._released, self._chunks):
            for key in keys:
                if len(chosen) == n:
                    break
                if key in self._evictable and key not in protected:
                    chosen[key] = None
        if len(chosen) < n:
            return None
        gone = [(key, self._chunks.pop(key)) for key in chosen]
        for key in chosen:
            self._gone(key)
        return gone

    def clear(self) -> None:
        keys = list(self._chunks)
        self._chunks.clear()
        for key in keys:
            self._gone(key)

    def mark_evictable(self, key: bytes) -> None:
        self._evictable.add(key)

    def mark_non_evictable(self, key: bytes) -> None:
        self._evictable.discard(key)

    def _gone(self, key: bytes) -> None:
        self._evictable.discard(key)
        self._released.pop(key, None)
        if self.on_gone is not None:
            self.on_gone(key)
