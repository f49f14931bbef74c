"""The hooks on a stand-in for vLLM's classes: what is recorded, refused and given up."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from conserve_vllm import kv_hooks
from conserve_vllm.host_hooks import keys_of, tokens_of
from conserve_vllm.host_order import HostOrder
from conserve_vllm.kv_ledger import Ledger
from tests.conserve_vllm.fake_kv import Request, fake_vllm
from tests.conserve_vllm.test_host_order import Chunk


class Hooked:
    """A hooked engine, and requests that live on it."""

    def __init__(self, modules: dict[str, Any], groups: int = 1) -> None:
        self.manager = modules["vllm.v1.core.kv_cache_manager"].KVCacheManager(groups=groups)
        self.core = modules["vllm.v1.engine.core"].EngineCore(self.manager)

    def begin(self, request_id: str, session: str, context: str) -> Request:
        request = Request(request_id, session)
        hashes = [context[: i + 1] for i in range(len(context))]
        self.manager.coordinator.of[request_id] = self.manager.block_pool.allocate(hashes)
        self.core.scheduler.requests[request_id] = request
        return request

    def end(self, request: Request, *, is_preempted: bool = False) -> None:
        request.has_ended = not is_preempted
        self.manager.free(request)
        self.core.scheduler.requests.pop(request.request_id)

    def call(self, call: str, *names: str, number: float = 0.0) -> dict[str, Any]:
        answer: dict[str, Any] = self.core.conserve_kv(call, list(names), number)
        return answer


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found = fake_vllm()
    monkeypatch.setattr(importlib, "import_module", found.__getitem__)
    kv_hooks.install()
    return found


@pytest.fixture
def hooked(modules: dict[str, Any]) -> Hooked:
    return Hooked(modules)


def test_a_finished_request_leaves_its_blocks_to_its_conversation(hooked: Hooked) -> None:
    hooked.end(hooked.begin("r", "a", "AAA"))
    assert hooked.call("resident", number=-1)["tokens"] == {"a": 12}


def test_a_release_of_a_running_conversation_waits_and_is_counted_at_its_end(hooked: Hooked) -> None:
    request = hooked.begin("r", "a", "AAA")
    assert hooked.call("release", "a")["waiting"] == ["a"]
    hooked.end(request)
    answer = hooked.call("resident", number=-1)
    assert (answer["tokens"], answer["counts"]["released"]) == ({}, 3)


def test_a_transfer_s_lease_holds_a_release_back(hooked: Hooked) -> None:
    request = hooked.begin("r", "a", "AAA")
    request.has_ended = True  # finished, its blocks leased to a decoder: vLLM has not freed them yet
    assert hooked.call("release", "a")["waiting"] == ["a"]
    assert hooked.manager.block_pool.blocks[0].ref_cnt == 1
    hooked.end(request)
    assert hooked.call("resident", number=-1)["tokens"] == {}


def test_a_preempted_request_does_not_set_off_a_release(hooked: Hooked) -> None:
    request = hooked.begin("r", "a", "AAA")
    hooked.call("release", "a")
    hooked.end(request, is_preempted=True)
    assert hooked.call("resident", number=-1)["tokens"] == {"a": 12}


def test_hooking_twice_hooks_once(modules: dict[str, Any]) -> None:
    before = modules["vllm.v1.core.kv_cache_manager"].KVCacheManager.free
    kv_hooks.install()
    assert modules["vllm.v1.core.kv_cache_manager"].KVCacheManager.free is before


def test_hybrid_models_are_refused_with_the_reason(modules: dict[str, Any]) -> None:
    engine = Hooked(modules, groups=2)
    assert "2 KV cache groups" in engine.call("release", "a")["refused"]


def test_an_engine_without_prefix_caching_is_refused(hooked: Hooked) -> None:
    hooked.manager.enable_caching = False
    assert hooked.call("capabilities")["refused"] == "prefix caching is off"


def test_what_fails_in_the_ledger_fails_no_request(
    hooked: Hooked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("broken")

    monkeypatch.setattr(Ledger, "record", broken)
    hooked.end(hooked.begin("r", "a", "AAA"))
    assert len(hooked.manager.block_pool.free_ids) == 12
    assert "given up: KeyError" in hooked.call("release", "a")["refused"]
    assert "conversation KV is off" in caplog.text


def test_an_unknown_call_is_an_error(hooked: Hooked) -> None:
    with pytest.raises(ValueError, match="no such call: forget"):
        hooked.call("forget")


def with_host_tier(hooked: Hooked, *, hashes_per_chunk: int = 1) -> HostOrder:
    """The engine's connector is NIXL with a host tier that has room for 20 blocks."""
    order = HostOrder(20)
    group = SimpleNamespace(hashes_per_chunk=hashes_per_chunk, group_idx=0)
    offloading = SimpleNamespace(
        manager=SimpleNamespace(_policy=order), config=SimpleNamespace(kv_group_configs=(group,))
    )
    children = [SimpleNamespace(), SimpleNamespace(connector_scheduler=offloading)]
    hooked.core.scheduler.connector = SimpleNamespace(sub_connectors=children)
    return order


def test_a_conversation_is_offloaded_fetched_and_released_on_the_host_too(hooked: Hooked) -> None:
    order = with_host_tier(hooked)
    assert hooked.call("capabilities")["host_blocks"] == 20
    request = hooked.begin("r", "a", "AAA")
    request.block_hashes = [b"A", b"AA", b"AAA"]
    request.all_token_ids = list(range(13))
    for block, key in zip(hooked.manager.block_pool.blocks, keys_of(request), strict=False):
        block.block_hash = key
        order.insert(key, Chunk())
        order.mark_evictable(key)
    hooked.end(request)
    assert hooked.call("context", "a")["contexts"] == {"a": []}
    assert hooked.call("offload", "a")["blocks"] == 3
    hooked.end(hooked.begin("s", "b", "B" * 11))
    assert hooked.call("context", "a")["contexts"] == {"a": list(range(13))}
    counts = hooked.call("release", "a")["counts"]
    assert (counts["fetched"], counts["host_released"]) == (0, 3)


def test_without_a_host_tier_that_can_be_followed_offloads_are_refused(hooked: Hooked) -> None:
    with_host_tier(hooked, hashes_per_chunk=4)
    assert hooked.call("capabilities")["host_blocks"] == 0
    for call in ("offload", "context"):
        assert "no host tier" in hooked.call(call, "a")["refused"]


def test_a_host_tier_unlike_the_known_ones_is_left_alone(hooked: Hooked) -> None:
    with_host_tier(hooked)
    del hooked.core.scheduler.connector.sub_connectors[1].connector_scheduler.config
    assert hooked.call("capabilities")["host_blocks"] == 0


@pytest.mark.parametrize("field", ["mm_features", "lora_request", "cache_salt", "prompt_embeds"])
def test_a_request_that_its_token_ids_do_not_tell_is_not_fetched(field: str) -> None:
    request = Request("r", "a")
    assert tokens_of(request) == []
    setattr(request, field, ["something"])
    assert tokens_of(request) is None
