"""Readers that sleep between two looks, on a stand-in for vLLM's queues."""

from __future__ import annotations

import time
from types import ModuleType

import pytest

from conserve_vllm.queue_waiting import WAIT_US, replace, sleep_between_looks, wait_us


def test_where_the_queues_yielded_they_sleep() -> None:
    queues = ModuleType("queues")
    queues.sched_yield = lambda: None  # type: ignore[attr-defined]
    replace(queues, 2_000)
    began_s = time.monotonic()
    queues.sched_yield()
    assert time.monotonic() - began_s >= 0.002


def test_queues_that_do_not_yield_are_not_known() -> None:
    with pytest.raises(AttributeError, match="queues has no sched_yield"):
        replace(ModuleType("queues"), 100)


def test_without_vllm_it_says_what_is_missing() -> None:
    with pytest.raises(ImportError, match="vllm"):
        sleep_between_looks(100)


def test_the_interval_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WAIT_US, raising=False)
    assert wait_us() is None
    monkeypatch.setenv(WAIT_US, "100")
    assert wait_us() == 100


@pytest.mark.parametrize("text", ["0", "-1", "soon"])
def test_an_interval_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(WAIT_US, text)
    with pytest.raises(ValueError, match=text):
        wait_us()
