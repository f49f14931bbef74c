"""Which KV blocks belong to which conversation, and what is done with them.

One ledger an engine (each data-parallel rank has its own). It runs in the engine's thread,
between steps, so nothing here locks. A block is remembered with the hash that it had: with
another one it holds something else, and is nobody's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from conserve_vllm.kv_types import Block, Pool

NOBODY: Final = ""
"""Owner of what requests without a conversation have used: it is never released."""
MAX_CONVERSATIONS: Final = 10_000
MAX_SHARES_PER_BLOCK: Final = 16
"""Entries kept, as a multiple of the engine's blocks: each conversation that shares a block has one."""


@dataclass(slots=True)
class Counts:
    """Blocks since this was last asked for."""

    released: int = 0
    kept: int = 0
    evicted_while_kept: int = 0
    offloaded: int = 0
    fetched: int = 0
    host_released: int = 0


@dataclass(frozen=True, slots=True)
class Resident:
    """What changed since a cursor: tokens by conversation (whole blocks only), 0 for those that are gone.

    `is_full`: the cursor was none of ours or too old, and this is everything that is resident.
    """

    cursor: int
    tokens: dict[str, int]
    is_full: bool


class Ledger:
    """The conversations of one engine. `now_s` gives monotonic seconds, `block_size` tokens."""

    def __init__(
        self,
        pool: Pool,
        *,
        block_size: int,
        now_s: Callable[[], float],
        max_conversations: int = MAX_CONVERSATIONS,
    ) -> None:
        self._pool = pool
        self._block_size = block_size
        self._now_s = now_s
        self._max_conversations = max_conversations
        self._max_entries = MAX_SHARES_PER_BLOCK * len(pool.blocks)
        self._entries = 0
        # By conversation, the blocks in the order in which they should be taken: a context's end first.
        self._owned: OrderedDict[str, dict[int, bytes]] = OrderedDict()
        self._owners: dict[int, set[str]] = {}
        self._kept_until_s: dict[str, float] = {}
        self._next_expiry_s = float("inf")
        self._ending: dict[str, set[str]] = {}
        self._changes: OrderedDict[str, int] = OrderedDict()
        self._change = 0
        self._oldest_known_change = 0
        self.counts = Counts()
        self.on_released: Callable[[str], int] | None = None
        """Told of each conversation that was released; how many host copies that were."""

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self._block_size

    @property
    def blocks(self) -> int:
        """Blocks of the engine."""
        return len(self._pool.blocks)

    def clear(self) -> None:
        """Forget everything; blocks stay where they are."""
        for state in (self._owned, self._owners, self._kept_until_s, self._ending, self._changes):
            state.clear()
        self._entries = 0

    # -- what the engine does ------------------------------------------------------------------

    def record(self, conversation: str | None, request_id: str, blocks: Sequence[Block]) -> None:
        """A request is about to free these blocks, in the order of its context."""
        name = conversation or NOBODY
        waits_for = self._ending.get(name)
        if waits_for is not None and request_id not in waits_for:
            del self._ending[name]  # the conversation goes on after all
        owned = self._owned.setdefault(name, {})
        self._owned.move_to_end(name)
        for block in reversed(blocks):
            block_hash = block.block_hash
            if block.is_null or block_hash is None:
                continue
            if owned.pop(block.block_id, None) is None:
                self._owners.setdefault(block.block_id, set()).add(name)
                self._entries += 1
            owned[block.block_id] = block_hash
        self._drop_if_empty(name)
        self._changed(name)
        self._cap()

    def freed(self, conversation: str | None, request_id: str) -> None:
        """A request has freed its blocks and is over."""
        name = conversation or NOBODY
        waits_for = self._ending.get(name)
        if waits_for is not None:
            waits_for.discard(request_id)
            if not waits_for:
                self._release_now(name)

    def taken(self, blocks: Iterable[Block]) -> None:
        """These blocks left the free queue to hold something else."""
        for block in blocks:
            if block.block_id not in self._owners:
                continue
            self.counts.evicted_while_kept += self.keeps(block)
            self._disown(block.block_id)

    def step(self) -> None:
        """A step begins: what was kept for long enough is kept no longer, what had to wait is released."""
        for name in [name for name, waits_for in self._ending.items() if not waits_for]:
            self._release_now(name)
        if self._kept_until_s and self._now_s() >= self._next_expiry_s:
            now_s = self._now_s()
            for name in [name for name, until_s in self._kept_until_s.items() if until_s <= now_s]:
                self._unkeep(name)

    @property
    def keeps_any(self) -> bool:
        return bool(self._kept_until_s)

    def keeps(self, block: Block) -> bool:
        owners = self._owners.get(block.block_id, ())
        return any(name in self._kept_until_s for name in owners)

    # -- what a gateway asks for -----------------------------------------------------------------

    def release(self, conversation: str, running: Collection[str]) -> bool:
        """The conversation is over: its blocks are the next to be taken, but for those that others share.

        `running`: its requests that still hold blocks; the release then waits for their end, and
        this is False.
        """
        self._unkeep(conversation)
        if running:
            self._ending[conversation] = set(running)
            return False
        return self._release_now(conversation)

    def refresh(self, conversation: str) -> int:
        """Its free blocks are the last to be taken, as if just used; how many blocks it has."""
        found = self._current(conversation)
        free = [block for block in found if block.ref_cnt == 0]
        for block in free:
            self._pool.free_block_queue.remove(block)
        self._pool.free_block_queue.append_n(free)
        return len(found)

    def keep(self, conversation: str, timeout_s: float) -> int:
        """Its blocks are taken after all that are not kept, for `timeout_s`; 0 ends that. How many it has."""
        if timeout_s <= 0:
            return self._unkeep(conversation)
        if conversation not in self._owned:
            return 0
        until_s = self._now_s() + timeout_s
        self._kept_until_s[conversation] = until_s
        self._next_expiry_s = min(self._next_expiry_s, until_s)
        blocks = self.refresh(conversation)
        self.counts.kept += blocks
        return blocks

    def offload(self, conversation: str, is_on_host: Callable[[bytes], bool]) -> int:
        """Its blocks that the host has a copy of are the next to be taken; how many these are.

        Those that others share, or that are in use, stay where they are. It keeps what it has
        until that is taken.
        """
        self._unkeep(conversation)
        found = [
            block
            for block in self._current(conversation)
            if block.ref_cnt == 0
            and self._owners[block.block_id] == {conversation}
            and block.block_hash is not None
            and is_on_host(block.block_hash)
        ]
        self._pool.free_block_queue.next_to_go(found)
        self.counts.offloaded += len(found)
        return len(found)

    def hashes(self, conversation: str) -> set[bytes]:
        """Of the blocks that it has here."""
        return set(self._owned.get(conversation, {}).values())

    @property
    def free_unkept(self) -> int:
        """Free blocks that no kept conversation has."""
        kept = {block_id for name in self._kept_until_s for block_id in self._owned.get(name, ())}
        free_kept = sum(self._pool.blocks[block_id].ref_cnt == 0 for block_id in kept)
        return self._pool.free_block_queue.num_free_blocks - free_kept

    def resident(self, since: int | None) -> Resident:
        """What of which conversation is cached, as far as it has changed."""
        is_full = since is None or not self._oldest_known_change <= since <= self._change
        if is_full:
            names = list(self._owned)
        else:
            names = []
            for name in reversed(self._changes):
                if since is not None and self._changes[name] <= since:
                    break
                names.append(name)
        tokens = {name: len(self._owned.get(name, ())) * self._block_size for name in names if name}
        return Resident(self._change, tokens, is_full)

    def take_counts(self) -> Counts:
        """The counts since the last call."""
        counts, self.counts = self.counts, Counts()
        return counts

    # -- steps -------------------------------------------------------------------------------------

    def _current(self, name: str) -> list[Block]:
        """The conversation's blocks that still hold its context, in the order to be taken."""
        found: list[Block] = []
        for block_id, block_hash in list(self._owned.get(name, {}).items()):
            block = self._pool.blocks[block_id]
            if block.block_hash == block_hash:
                found.append(block)
            else:
                self._drop(name, block_id)
        return found

    def _release_now(self, name: str) -> bool:
        """Let go what is its alone; False if a request that is under way still holds some of that."""
        own = [b for b in self._current(name) if self._owners[b.block_id] == {name}]
        free = [block for block in own if block.ref_cnt == 0]
        self._pool.free_block_queue.next_to_go(free)
        self.counts.released += len(free)
        held = [block for block in own if block.ref_cnt > 0]
        kept_back = {block.block_id for block in held}
        for block_id in [i for i in self._owned.get(name, {}) if i not in kept_back]:
            self._drop(name, block_id)
        if held:
            self._ending[name] = set()
        else:
            self._ending.pop(name, None)
            self._owned.pop(name, None)
            if self.on_released is not None:
                self.counts.host_released += self.on_released(name)
        self._changed(name)
        return not held

    def _unkeep(self, name: str) -> int:
        if self._kept_until_s.pop(name, None) is None:
            return 0
        self._next_expiry_s = min(self._kept_until_s.values(), default=float("inf"))
        return self.refresh(name)

    def _disown(self, block_id: int) -> None:
        for name in self._owners.pop(block_id, ()):
            del self._owned[name][block_id]
            self._entries -= 1
            self._changed(name)
            self._drop_if_empty(name)

    def _drop(self, name: str, block_id: int) -> None:
        del self._owned[name][block_id]
        self._entries -= 1
        owners = self._owners[block_id]
        owners.discard(name)
        if not owners:
            del self._owners[block_id]

    def _drop_if_empty(self, name: str) -> None:
        if not self._owned[name]:
            del self._owned[name]
            self._ending.pop(name, None)

    def _cap(self) -> None:
        """Forget the conversations that were used longest ago: their blocks are cached as without us."""
        while len(self._owned) > self._max_conversations or self._entries > self._max_entries:
            name = next(iter(self._owned))
            for block_id in list(self._owned[name]):
                self._drop(name, block_id)
            del self._owned[name]
            self._kept_until_s.pop(name, None)
            self._ending.pop(name, None)
            self._changed(name)

    def _changed(self, name: str) -> None:
        self._change += 1
        self._changes[name] = self._change
        self._changes.move_to_end(name)
        if len(self._changes) > 2 * self._max_conversations:
            _, self._oldest_known_change = self._changes.popitem(last=False)
