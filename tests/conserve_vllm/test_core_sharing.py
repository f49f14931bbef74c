"""Engines that share cores, on a stand-in for vLLM's worker."""

from __future__ import annotations

import os

import pytest

from conserve_vllm.core_sharing import SHARE, is_wanted, keeping_affinity, share_cores


class Worker:
    """Takes the last core for itself, as vLLM's NIXL worker does."""

    def __init__(self, name: str, *, fails: bool = False) -> None:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        if fails:
            raise ValueError(name)
        self.name = name


def test_a_worker_keeps_the_cores_that_it_was_given() -> None:
    cores = os.sched_getaffinity(0)
    begin = keeping_affinity(Worker.__init__)
    worker = Worker.__new__(Worker)
    begin(worker, "w")
    assert worker.name == "w"
    assert os.sched_getaffinity(0) == cores


def test_it_keeps_them_where_it_fails() -> None:
    cores = os.sched_getaffinity(0)
    with pytest.raises(ValueError, match="w"):
        keeping_affinity(Worker.__init__)(Worker.__new__(Worker), "w", fails=True)
    assert os.sched_getaffinity(0) == cores


@pytest.mark.parametrize(("text", "wanted"), [("1", True), ("0", False), ("", False)])
def test_only_engines_that_are_told_to_share(
    monkeypatch: pytest.MonkeyPatch, text: str, wanted: bool
) -> None:
    monkeypatch.setenv(SHARE, text)
    assert is_wanted() is wanted


def test_without_vllm_it_says_what_is_missing() -> None:
    with pytest.raises(ImportError, match="vllm"):
        share_cores()
