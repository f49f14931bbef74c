"""A vLLM that is not as expected is left alone, and the reason is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from conserve_vllm.kv_guard import SWITCH, Vllm, why_not
from tests.conserve_vllm.fake_kv import FreeKVCacheBlockQueue, KVCacheManager, fake_vllm


def load_from(modules: dict[str, SimpleNamespace]) -> Any:
    def load(name: str) -> SimpleNamespace:
        if name not in modules:
            raise ImportError(name)
        return modules[name]

    return load


def test_a_vllm_as_expected_gives_no_reason() -> None:
    assert why_not(load_from(fake_vllm())) is None


@pytest.mark.parametrize("value", ["0", "off", "False"])
def test_the_switch_is_a_reason(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(SWITCH, value)
    assert why_not(load_from(fake_vllm())) == f"switched off by {SWITCH}"


def test_a_method_that_is_gone_is_named() -> None:
    modules = fake_vllm()
    modules["vllm.v1.core.block_pool"].BlockPool = object
    assert "BlockPool.free_blocks is not there" in (why_not(load_from(modules)) or "")


def test_other_parameters_are_named() -> None:
    class Changed(KVCacheManager):
        def free(self, request: Any, now: bool = True) -> None:  # noqa: ARG002
            super().free(request)

    modules = fake_vllm()
    modules["vllm.v1.core.kv_cache_manager"].KVCacheManager = Changed
    assert why_not(load_from(modules)) == "KVCacheManager.free takes (request, now), expected (request)"


def test_requests_without_a_session_are_a_reason() -> None:
    class Old:
        def __init__(self, request_id: str) -> None: ...
        def is_finished(self) -> bool:
            return True

    modules = fake_vllm()
    modules["vllm.v1.request"].Request = Old
    assert "no session_id" in (why_not(load_from(modules)) or "")


def test_a_queue_of_another_behaviour_is_a_reason() -> None:
    class Stack(FreeKVCacheBlockQueue):
        def popleft_n(self, n: int) -> list[Any]:
            return super().popleft_n(n)[::-1]

        def popleft(self) -> Any:
            return super().popleft_n(1)[0]

    modules = fake_vllm()
    modules["vllm.v1.core.kv_cache_utils"].FreeKVCacheBlockQueue = Stack
    assert "the free queue" in (why_not(load_from(modules)) or "")


def test_a_queue_without_the_links_is_a_reason() -> None:
    class Closed(FreeKVCacheBlockQueue):
        def get_all_free_blocks(self) -> list[Any]:
            raise AttributeError("links")

    modules = fake_vllm()
    modules["vllm.v1.core.kv_cache_utils"].FreeKVCacheBlockQueue = Closed
    assert "does not behave as expected: AttributeError" in (why_not(load_from(modules)) or "")


def test_no_vllm_at_all_is_a_reason() -> None:
    assert "KVCacheManager.free is not there" in (why_not(load_from({})) or "")


@pytest.mark.parametrize(
    ("version", "is_tested"), [("0.31.0", True), ("0.33.1+cpu", True), ("0.40.0", False), (None, False)]
)
def test_tested_versions_are_known(version: str | None, is_tested: bool) -> None:
    assert Vllm(version).is_tested is is_tested
