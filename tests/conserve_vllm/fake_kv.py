"""vLLM's KV cache classes in little: the same rules, lists in place of links between blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any


@dataclass(eq=False)
class KVCacheBlock:
    block_id: int
    ref_cnt: int = 0
    is_null: bool = False
    block_hash: bytes | None = None
    prev_free_block: Any = None
    next_free_block: Any = None

    def set_block_hash(self, block_hash: bytes) -> None:
        self.block_hash = block_hash


class FreeKVCacheBlockQueue:
    """A doubly linked list between two ends that are no blocks."""

    def __init__(self, blocks: list[KVCacheBlock]) -> None:
        self.num_free_blocks = 0
        self.fake_free_list_head = KVCacheBlock(-1)
        self.fake_free_list_tail = KVCacheBlock(-1)
        self._join(self.fake_free_list_head, self.fake_free_list_tail)
        self.append_n(blocks)

    def popleft(self) -> KVCacheBlock:
        return FreeKVCacheBlockQueue.popleft_n(self, 1)[0]

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        blocks = FreeKVCacheBlockQueue.get_all_free_blocks(self)[:n]
        for block in blocks:
            FreeKVCacheBlockQueue.remove(self, block)
        return blocks

    def remove(self, block: KVCacheBlock) -> None:
        self._join(block.prev_free_block, block.next_free_block)
        block.prev_free_block = block.next_free_block = None
        self.num_free_blocks -= 1

    def append(self, block: KVCacheBlock) -> None:
        FreeKVCacheBlockQueue.append_n(self, [block])

    def append_n(self, blocks: list[KVCacheBlock]) -> None:
        self._insert(self.fake_free_list_tail.prev_free_block, blocks)

    def prepend_n(self, blocks: list[KVCacheBlock]) -> None:
        self._insert(self.fake_free_list_head, blocks)

    def get_all_free_blocks(self) -> list[KVCacheBlock]:
        found, block = [], self.fake_free_list_head.next_free_block
        while block is not self.fake_free_list_tail:
            found.append(block)
            block = block.next_free_block
        return found

    def _insert(self, before: KVCacheBlock, blocks: list[KVCacheBlock]) -> None:
        after = before.next_free_block
        for block in blocks:
            self._join(before, block)
            before = block
        self._join(before, after)
        self.num_free_blocks += len(blocks)

    def _join(self, left: KVCacheBlock, right: KVCacheBlock) -> None:
        left.next_free_block, right.prev_free_block = right, left


class BlockPool:
    """Blocks with reference counts; what is cached is found by its hash."""

    def __init__(self, count: int) -> None:
        self.blocks = [KVCacheBlock(i) for i in range(count)]
        self.free_block_queue: Any = FreeKVCacheBlockQueue(list(self.blocks))

    def touch(self, blocks: Sequence[Any]) -> None:
        for block in blocks:
            if block.ref_cnt == 0:
                self.free_block_queue.remove(block)
            block.ref_cnt += 1

    def free_blocks(self, ordered_blocks: Iterable[Any]) -> None:
        blocks = list(ordered_blocks)
        for block in blocks:
            block.ref_cnt -= 1
        free = [block for block in blocks if block.ref_cnt == 0]
        self.free_block_queue.prepend_n([block for block in free if block.block_hash is None])
        self.free_block_queue.append_n([block for block in free if block.block_hash is not None])

    def evict_blocks(self, block_ids: set[int]) -> None:
        for block_id in block_ids:
            self.blocks[block_id].block_hash = None

    def allocate(self, hashes: Sequence[str]) -> list[KVCacheBlock]:
        """The blocks of a context with these contents: cached ones, and new ones for the rest."""
        cached = self.cached(hashes)
        self.touch(cached)
        new: list[KVCacheBlock] = self.free_block_queue.popleft_n(len(hashes) - len(cached))
        for block, content in zip(new, hashes[len(cached) :], strict=True):
            block.ref_cnt, block.block_hash = 1, content.encode()
        return [*cached, *new]

    def cached(self, hashes: Sequence[str]) -> list[KVCacheBlock]:
        by_hash = {block.block_hash: block for block in self.blocks if block.block_hash is not None}
        found = []
        for content in hashes:
            block = by_hash.get(content.encode())
            if block is None:
                break
            found.append(block)
        return found

    @property
    def free_ids(self) -> list[int]:
        """In the order in which they will be taken."""
        return [block.block_id for block in self.free_block_queue.get_all_free_blocks()]


class KVCacheCoordinator:
    """Which request has which blocks."""

    def __init__(self) -> None:
        self.of: dict[str, list[KVCacheBlock]] = {}

    def get_blocks(self, request_id: str) -> tuple[list[KVCacheBlock], ...]:
        return (self.of.get(request_id, []),)


class FullAttentionSpec:
    block_size = 4


class KVCacheManager:
    """One request's blocks are freed, its context's end first."""

    def __init__(self, count: int = 12, groups: int = 1) -> None:
        self.enable_caching = True
        self.block_pool = BlockPool(count)
        self.coordinator = KVCacheCoordinator()
        group = SimpleNamespace(kv_cache_spec=FullAttentionSpec())
        self.kv_cache_config = SimpleNamespace(kv_cache_groups=[group] * groups)

    def free(self, request: Any) -> None:
        self.block_pool.free_blocks(reversed(self.pop_blocks_for_free(request)))

    def pop_blocks_for_free(self, request: Any) -> list[KVCacheBlock]:
        return self.coordinator.of.pop(request.request_id, [])

    def new_step_starts(self) -> None:
        return


class Request:
    def __init__(self, request_id: str, session_id: str | None = None) -> None:
        self.request_id, self.session_id, self.has_ended = request_id, session_id, False
        self.mm_features: list[Any] = []
        self.cache_salt = self.lora_request = self.prompt_embeds = None
        self.block_hashes: list[bytes] = []
        self.all_token_ids: list[int] = []

    def is_finished(self) -> bool:
        return self.has_ended


class EngineCore:
    """Has the scheduler that the hooks look for."""

    def __init__(self, manager: KVCacheManager) -> None:
        self.scheduler = SimpleNamespace(kv_cache_manager=manager, requests={})


def fake_vllm() -> dict[str, SimpleNamespace]:
    """The modules that the plugin loads, by name; classes are new each time, to be hooked."""

    def own(cls: type[Any]) -> type[Any]:
        return type(cls.__name__, (cls,), {})

    return {
        "vllm.v1.core.kv_cache_manager": SimpleNamespace(KVCacheManager=own(KVCacheManager)),
        "vllm.v1.core.kv_cache_coordinator": SimpleNamespace(KVCacheCoordinator=KVCacheCoordinator),
        "vllm.v1.core.block_pool": SimpleNamespace(BlockPool=own(BlockPool)),
        "vllm.v1.core.kv_cache_utils": SimpleNamespace(
            KVCacheBlock=KVCacheBlock, FreeKVCacheBlockQueue=own(FreeKVCacheBlockQueue)
        ),
        "vllm.v1.request": SimpleNamespace(Request=Request),
        "vllm.v1.engine.core": SimpleNamespace(EngineCore=own(EngineCore)),
    }
