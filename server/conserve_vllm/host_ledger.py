"""Which host copies belong to which conversation, and how its latest context began.

Beside the ledger of the engine's own cache (`kv_ledger.py`), and with its rules: what a
conversation alone has goes first once it has ended, what others share stays. It runs in the
engine's thread, between steps.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from conserve_vllm.host_order import HostOrder
from conserve_vllm.kv_ledger import NOBODY

MAX_CONVERSATIONS: Final = 10_000
MAX_SHARES_PER_CHUNK: Final = 4
"""Keys kept, as a multiple of the host's chunks; a chunk is one block."""


@dataclass(frozen=True, slots=True)
class Context:
    """A conversation's latest context: its whole blocks by their keys, and the ids of all its tokens."""

    keys: tuple[bytes, ...]
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Fetch:
    """What brings a context back: its first tokens, one more than is held; `missing` blocks of them are
    on the host only."""

    tokens: list[int]
    missing: int


class HostLedger:
    """The conversations with copies in `order`, of blocks of `block_size` tokens."""

    def __init__(
        self, order: HostOrder, *, block_size: int, max_conversations: int = MAX_CONVERSATIONS
    ) -> None:
        self._order = order
        self._block_size = block_size
        self._max_conversations = max_conversations
        self._max_entries = MAX_SHARES_PER_CHUNK * max(order.cache_capacity, 1)
        self._entries = 0
        self._owned: OrderedDict[str, dict[bytes, None]] = OrderedDict()
        self._owners: dict[bytes, set[str]] = {}
        self._contexts: dict[str, Context] = {}
        order.on_gone = self._disown

    @property
    def chunks(self) -> int:
        """Blocks that the host has room for."""
        return self._order.cache_capacity

    def record(self, conversation: str | None, keys: Sequence[bytes], tokens: Sequence[int] | None) -> None:
        """A request is about to free these whole blocks; `tokens` is None if ids do not tell it all."""
        name = conversation or NOBODY
        owned = self._owned.setdefault(name, {})
        self._owned.move_to_end(name)
        self._order.claim(keys)
        for key in keys:
            if key not in owned:
                owned[key] = None
                self._owners.setdefault(key, set()).add(name)
                self._entries += 1
        self._contexts.pop(name, None)
        if conversation and tokens is not None:
            self._contexts[name] = Context(tuple(keys), array("I", tokens))
        self._cap()

    def release(self, conversation: str) -> int:
        """The conversation has ended: its copies are overwritten first, but for those that others share.

        How many there are.
        """
        own = [key for key in self._owned.get(conversation, ()) if self._owners[key] == {conversation}]
        self._forget(conversation)
        return self._order.release(reversed(own))

    def holds(self, key: bytes) -> bool:
        """Whether the host has a whole copy of the block."""
        return self._order.holds(key)

    def fetch(self, conversation: str, on_device: Collection[bytes]) -> Fetch:
        """What would bring the conversation back to the device, where it has the blocks `on_device`."""
        context = self._contexts.get(conversation)
        if context is None:
            return Fetch([], 0)
        held = missing = 0
        for key in context.keys:
            if key not in on_device:
                if not self._order.holds(key):
                    break
                missing += 1
            held += 1
        return Fetch(list(context.tokens[: held * self._block_size + 1]), missing)

    def _disown(self, key: bytes) -> None:
        for name in self._owners.pop(key, ()):
            del self._owned[name][key]
            self._entries -= 1
            if not self._owned[name]:
                self._forget(name)

    def _forget(self, name: str) -> None:
        for key in self._owned.pop(name, ()):
            owners = self._owners[key]
            owners.discard(name)
            self._entries -= 1
            if not owners:
                del self._owners[key]
        self._contexts.pop(name, None)

    def _cap(self) -> None:
        while len(self._owned) > self._max_conversations or self._entries > self._max_entries:
            self._forget(next(iter(self._owned)))
