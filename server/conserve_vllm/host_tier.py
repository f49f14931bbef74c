"""What vLLM's `OffloadingConnector` loads from here, in an engine that has a host tier.

`ConversationPolicy` is a cache policy for the stock manager, on any device. `PlainCopySpec`
is for CPU builds only, where the stock spec refuses to run: copies between two tensors in
ordinary memory, so that everything around them is exercised as on a GPU.
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any

from conserve_vllm.host_order import HostOrder

if TYPE_CHECKING:

    class CachePolicy: ...

    class CPUOffloadingSpec: ...

    class OffloadingWorker: ...

else:
    CachePolicy = importlib.import_module("vllm.v1.kv_offload.cpu.policies.base").CachePolicy
    CPUOffloadingSpec = importlib.import_module("vllm.v1.kv_offload.cpu.spec").CPUOffloadingSpec
    OffloadingWorker = importlib.import_module("vllm.v1.kv_offload.base").OffloadingWorker


class ConversationPolicy(HostOrder, CachePolicy):
    """`eviction_policy` with `cache_policy_module_path`: ended conversations go first."""


class PlainCopySpec(CPUOffloadingSpec):
    """`spec_name` with `spec_module_path`: the stock manager, and copies that need no GPU."""

    num_chunks: int
    blocks_per_chunk: int

    def get_worker(self, kv_caches: Any) -> PlainCopyWorker:
        """Raises ValueError for chunks of several blocks."""
        if self.blocks_per_chunk != 1:
            raise ValueError(
                f"PlainCopySpec copies single blocks, blocks_per_chunk is {self.blocks_per_chunk}"
            )
        if self._worker is None:
            self._worker: PlainCopyWorker | None = PlainCopyWorker(kv_caches, self.num_chunks)
        return self._worker


class PlainCopyWorker(OffloadingWorker):
    """Copies at once, in the worker's thread: each is done when it has been asked for."""

    def __init__(self, kv_caches: Any, chunks: int) -> None:
        torch = importlib.import_module("torch")
        self._as_indices = torch.from_numpy
        self._pairs = []
        for each in kv_caches.tensors:
            device = each.tensor.view(torch.int8).view((-1, each.page_size_bytes))
            self._pairs.append((device, torch.zeros((chunks, each.page_size_bytes), dtype=torch.int8)))
        self._result = importlib.import_module("vllm.v1.kv_offload.base").TransferResult
        self._done: list[Any] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """From the engine's cache to the host."""
        return self._copy(job_id, [(host, device) for device, host in self._pairs], src_spec, dst_spec)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """From the host to the engine's cache."""
        return self._copy(job_id, self._pairs, src_spec, dst_spec)

    def get_finished(self) -> list[Any]:
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        """Nothing is ever under way."""

    def _copy(self, job_id: int, pairs: list[tuple[Any, Any]], src_spec: Any, dst_spec: Any) -> bool:
        started_s, copied = time.monotonic(), 0
        to = self._as_indices(dst_spec.block_ids).long()
        of = self._as_indices(src_spec.block_ids).long()
        for target, source in pairs:
            target[to] = source[of]
            copied += to.numel() * target.shape[1]
        took_s = time.monotonic() - started_s
        self._done.append(self._result(job_id, True, transfer_size=copied, transfer_time=took_s))
        return True
