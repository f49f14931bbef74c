"""Run by a Python that has vLLM: random lives of conversations on vLLM's own KV cache classes.

No model and no engine: requests allocate, finish, abort and are preempted as vLLM's scheduler
has it, while conversations are released, refreshed and kept. After each step the queue of free
blocks must be what vLLM's own rules and ours make of it. Prints one JSON document.
"""

from __future__ import annotations

import inspect
import json
import random
import sys
from typing import Any

import torch  # type: ignore[import-not-found]
import vllm  # type: ignore[import-not-found]
from vllm.sampling_params import SamplingParams  # type: ignore[import-not-found]
from vllm.utils.hashing import sha256  # type: ignore[import-not-found]
from vllm.v1.core import kv_cache_utils  # type: ignore[import-not-found]
from vllm.v1.core.kv_cache_manager import KVCacheManager  # type: ignore[import-not-found]
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec  # type: ignore[import-not-found]
from vllm.v1.kv_offload.base import ReqContext, make_offload_key  # type: ignore[import-not-found]
from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager  # type: ignore[import-not-found]
from vllm.v1.request import Request, RequestStatus  # type: ignore[import-not-found]

from conserve_vllm import kv_guard, kv_hooks
from conserve_vllm.kv_calls import answer_call

BLOCK, BLOCKS, STEPS = 4, 40, 120
NAMES = [f"conversation-{i}" for i in range(5)]


def fitting(function: Any, **arguments: Any) -> dict[str, Any]:
    """Those of the arguments that this version's function takes."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in known}


def new_manager(groups: int = 1) -> Any:
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
    config = KVCacheConfig(
        num_blocks=BLOCKS,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec([f"layer{i}"], spec) for i in range(groups)],
    )
    sizes = fitting(KVCacheManager.__init__, scheduler_block_size=BLOCK, hash_block_size=BLOCK)
    return KVCacheManager(config, max_model_len=BLOCK * BLOCKS, enable_caching=True, **sizes)


class Engine:
    """One KV cache with what vLLM's scheduler does to it, and the conversations that use it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.manager = new_manager()
        self.pool = self.manager.block_pool
        self.requests: dict[str, Any] = {}
        self.leased: dict[str, Any] = {}
        self.deferred: list[list[Any]] = []
        self.contexts: dict[str | None, list[int]] = {}
        self.kept: set[str] = set()
        self.number = 0
        self.hash = kv_cache_utils.get_request_block_hasher(BLOCK, sha256)

    def step(self) -> None:
        self.manager.new_step_starts()
        act = self.random.choice(
            [self.begin, self.begin, self.begin, self.end, self.end, self.end, self.signal, self.drain]
        )
        act()
        self.check()

    def begin(self) -> None:
        name = self.random.choice([*NAMES, None])
        shared = list(range(BLOCK * 2))
        context = self.contexts.get(name) or shared
        tokens = [*context, *(self.random.randrange(100, 10**6) for _ in range(self.random.randrange(1, 20)))]
        if len(tokens) > BLOCK * 16:
            tokens = tokens[: BLOCK * 2]
        self.number += 1
        request = Request(
            request_id=str(self.number),
            prompt_token_ids=tokens,
            sampling_params=SamplingParams(max_tokens=1),
            pooling_params=None,
            block_hasher=self.hash,
            session_id=name,
            **fitting(Request.__init__, eos_token_id=0),
        )
        found = self.manager.get_computed_blocks(request)
        blocks, computed = found[0], found[1]
        new = len(tokens) - computed
        if self.manager.allocate_slots(request, new, computed, blocks) is None:
            return
        request.num_computed_tokens = len(tokens)
        request.status = RequestStatus.RUNNING
        self.contexts[name] = tokens
        self.requests[request.request_id] = request

    def end(self) -> None:
        """Finish or abort a request, preempt it, or leave it to a transfer's lease or a later free."""
        if not self.requests:
            return
        request = self.requests.pop(self.random.choice(list(self.requests)))
        how = self.random.choice(["finish", "finish", "preempt", "lease", "defer"])
        if how == "preempt":
            self.manager.free(request)
            request.status = RequestStatus.PREEMPTED
            request.num_computed_tokens = 0
            return
        request.status = self.random.choice([RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_ABORTED])
        if how == "lease":
            self.leased[request.request_id] = request
        elif how == "defer":
            self.deferred.append(self.manager.pop_blocks_for_free(request))
        else:
            self.manager.free(request)

    def drain(self) -> None:
        for request in self.leased.values():
            self.manager.free(request)
        self.leased.clear()
        for blocks in self.deferred:
            self.pool.free_blocks(reversed(blocks))
        self.deferred.clear()

    def signal(self) -> None:
        name = self.random.choice(NAMES)
        call = self.random.choice(["release", "refresh", "keep", "keep"])
        timeout_s = self.random.choice([0.0, 60.0])
        self.call(call, [name], timeout_s)
        if call == "keep" and timeout_s:
            self.kept.add(name)
        elif call != "refresh":
            self.kept.discard(name)
        if call == "release":
            self.contexts.pop(name, None)

    def call(self, call: str, names: list[str], number: float = 0.0) -> dict[str, Any]:
        ledger = kv_hooks.ledger_of(self.manager)
        assert ledger is not None
        alive = [*self.requests.values(), *self.leased.values()]
        return answer_call(ledger, alive, call, names, number)

    def check(self) -> None:
        free = self.pool.free_block_queue.get_all_free_blocks()
        ids = [block.block_id for block in free]
        assert len(ids) == len(set(ids)) == self.pool.get_num_free_blocks()
        assert all(block.ref_cnt == 0 for block in free)
        held = sum(1 for block in self.pool.blocks if block.ref_cnt > 0)
        assert held + len(ids) == BLOCKS - 1 or held + len(ids) == BLOCKS, (held, len(ids))
        ledger = kv_hooks.ledger_of(self.manager)
        assert ledger is not None
        kept = [ledger.keeps(block) for block in free]
        assert kept == sorted(kept), "a kept block would be taken before one that is not"
        for request in (*self.requests.values(), *self.leased.values()):
            for block in self.manager.coordinator.get_blocks(request.request_id)[0]:
                assert block.ref_cnt > 0, "a block was freed under a request"

    def close(self) -> None:
        """Everything ends and everybody is released: no conversation's block is left behind."""
        for request in self.requests.values():
            request.status = RequestStatus.FINISHED_STOPPED
            self.manager.free(request)
        self.requests.clear()
        self.drain()
        self.call("release", NAMES)
        self.manager.new_step_starts()
        assert self.pool.get_num_free_blocks() == BLOCKS - 1
        assert self.call("resident", [], -1.0)["tokens"] == {}
        assert self.manager.reset_prefix_cache()


def table() -> dict[str, int]:
    """The three rows: cached tokens of A's next turn after others filled the cache and ended."""
    return {row: _cached_after(row) for row in ("stock", "released", "kept")}


def _cached_after(row: str) -> int:
    engine = Engine(0)
    a = list(range(1000, 1000 + BLOCK * 14))
    _serve(engine, "a", a)
    if row == "kept":
        engine.call("keep", ["a"], 60.0)
    for i, name in enumerate(("b", "c", "d")):
        _serve(engine, name, list(range(2000 * (i + 1), 2000 * (i + 1) + BLOCK * 14)))
        if row == "released":
            engine.call("release", [name])
    request = _request(engine, "a", [*a, 1])
    return int(engine.manager.get_computed_blocks(request)[1])


def _request(engine: Engine, name: str, tokens: list[int]) -> Any:
    engine.number += 1
    return Request(
        request_id=str(engine.number),
        prompt_token_ids=tokens,
        sampling_params=SamplingParams(max_tokens=1),
        pooling_params=None,
        block_hasher=engine.hash,
        session_id=name,
        **fitting(Request.__init__, eos_token_id=0),
    )


def _serve(engine: Engine, name: str, tokens: list[int]) -> None:
    request = _request(engine, name, tokens)
    assert engine.manager.allocate_slots(request, len(tokens), 0, engine.manager.empty_kv_cache_blocks)
    request.num_computed_tokens = len(tokens)
    request.status = RequestStatus.FINISHED_STOPPED
    engine.manager.new_step_starts()
    engine.manager.free(request)


def overwritten() -> list[str]:
    """The host copies that vLLM's own manager gives up under our policy: first those of `b`, which ended."""
    policy = {"cache_policy": "ConversationPolicy", "cache_policy_module_path": "conserve_vllm.host_tier"}
    manager = CPUOffloadingManager(num_chunks=4, **policy)
    for name in ("a", "b"):
        _offload(manager, name, [f"{name}1", f"{name}2"])
    manager._policy.release(_host_keys(["b2", "b1"]))
    gone = [_offload(manager, name, [name]) for name in ("c", "d", "e")]
    return [bytes(key[:-4]).decode() for keys in gone for key in keys]


def _offload(manager: Any, request_id: str, blocks: list[str]) -> list[Any]:
    context = ReqContext(req_id=request_id)
    manager.on_new_request(context)
    stored = manager.prepare_store(_host_keys(blocks), context)
    manager.complete_store(stored.keys_to_store, context)
    manager.on_request_finished(context)
    return list(stored.evicted_keys)


def _host_keys(blocks: list[str]) -> list[Any]:
    return [make_offload_key(block.encode(), 0) for block in blocks]


def main() -> None:
    """Usage: kv_interleavings.py SEEDS"""
    reason = kv_guard.why_not()
    if reason is None:
        kv_cache_utils.init_none_hash(sha256)
        kv_hooks.install()
        for seed in range(int(sys.argv[1])):
            engine = Engine(seed)
            for _ in range(STEPS):
                engine.step()
            engine.close()
    found = {"vllm": vllm.__file__, "reason": reason, "hybrid": kv_hooks.refused(new_manager(groups=2))}
    print(json.dumps({**found, "cached": table(), "overwritten": overwritten()}))


if __name__ == "__main__":
    main()
