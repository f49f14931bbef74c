"""Chunks that follow the load, on a stand-in for vLLM's scheduler."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest

from conserve_vllm.adaptive_chunks import SMALLEST, adapt_chunks, follow, smallest_tokens


@dataclass
class Request:
    request_id: str
    num_prompt_tokens: int
    num_computed_tokens: int = 0
    priority: int = 0


@dataclass
class Settings:
    long_prefill_token_threshold: int = 0


@dataclass
class Output:
    """A step's tokens, by request."""

    num_scheduled_tokens: dict[str, int]
    scheduled_spec_decode_tokens: dict[str, list[int]] = field(default_factory=dict)

    @property
    def total_num_scheduled_tokens(self) -> int:
        return sum(self.num_scheduled_tokens.values())


class Waiting(deque[Request]):
    def peek_request(self) -> Request:
        return self[0]


class FakeScheduler:
    """Decodes one token of each running request and prefills with what is left, as vLLM does."""

    def __init__(self, step_tokens: int = 2048) -> None:
        self.max_num_scheduled_tokens = step_tokens
        self.scheduler_config = Settings()
        self.running: list[Request] = []
        self.waiting = Waiting()
        self.updated: list[Any] = []

    def schedule(self) -> Output:
        budget = self.max_num_scheduled_tokens
        taken: dict[str, int] = {}
        while self.waiting:
            self.running.append(self.waiting.popleft())
        for request in sorted(self.running, key=lambda r: r.num_computed_tokens < r.num_prompt_tokens):
            left = max(1, request.num_prompt_tokens - request.num_computed_tokens)
            most = self.scheduler_config.long_prefill_token_threshold or left
            taken[request.request_id] = tokens = min(left, most, budget)
            request.num_computed_tokens += tokens
            budget -= tokens
        return Output(taken)

    def update_from_output(self, scheduler_output: Output, result: object) -> object:
        self.updated.append(scheduler_output)
        return result


@pytest.fixture
def scheduler() -> FakeScheduler:
    class Hooked(FakeScheduler):
        schedule = FakeScheduler.schedule
        update_from_output = FakeScheduler.update_from_output
        reads = ("max_num_scheduled_tokens", "long_prefill_token_threshold", "num_computed_tokens")

    follow(Hooked, 256)
    return Hooked()


def step(scheduler: FakeScheduler) -> dict[str, int]:
    output = scheduler.schedule()
    assert scheduler.update_from_output(output, "result") == "result"
    return output.num_scheduled_tokens


def test_alone_a_prompt_has_the_whole_step(scheduler: FakeScheduler) -> None:
    scheduler.waiting.append(Request("a", 5000))
    assert step(scheduler) == {"a": 2048}


def test_beside_a_decode_it_has_a_small_chunk(scheduler: FakeScheduler) -> None:
    scheduler.running.append(Request("decoding", 10, 10))
    scheduler.waiting.append(Request("a", 5000))
    assert step(scheduler) == {"decoding": 1, "a": 192}


def test_two_prompts_share_the_chunk_and_decodes_come_on_top(scheduler: FakeScheduler) -> None:
    scheduler.running += [Request(f"decoding {i}", 10, 10) for i in range(3)]
    scheduler.waiting += [Request("a", 5000), Request("b", 5000)]
    taken = step(scheduler)
    assert (taken["a"], taken["b"]) == (192, 64)
    assert sum(taken.values()) == 256 + 3


def test_without_prompts_the_engine_has_its_own_settings(scheduler: FakeScheduler) -> None:
    scheduler.running.append(Request("decoding", 10, 10))
    scheduler.waiting.append(Request("a", 100))
    step(scheduler)
    step(scheduler)
    assert scheduler.max_num_scheduled_tokens == 2048
    assert scheduler.scheduler_config.long_prefill_token_threshold == 0


def test_six_prompts_at_once_get_larger_chunks(scheduler: FakeScheduler) -> None:
    scheduler.running += [Request("decoding", 10, 10), Request("half done", 5000, 1000)]
    scheduler.waiting += [Request(name, 5000) for name in "abcde"]
    assert sum(step(scheduler).values()) == 512 + 1


@pytest.mark.parametrize(("priority", "tokens"), [(10, 384), (0, 768)])
def test_a_prompt_that_waits_long_gets_larger_chunks_sooner_where_it_goes_first(
    scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch, priority: int, tokens: int
) -> None:
    now_s = 100.0
    monkeypatch.setattr("conserve_vllm.adaptive_chunks.time.monotonic", lambda: now_s)
    scheduler.running.append(Request("decoding", 10, 10))
    scheduler.waiting.append(Request("a", 50_000, priority=priority))
    assert step(scheduler)["a"] == 192
    now_s = 101.5
    assert step(scheduler)["a"] == tokens
    now_s = 110.0
    assert step(scheduler)["a"] == 1536


def test_steps_that_prefill_count_as_busy_once_though_they_overlap(
    scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr("conserve_vllm.adaptive_chunks.time.monotonic", lambda: now_s)
    scheduler.running.append(Request("decoding", 10, 10))
    scheduler.waiting.append(Request("a", 50_000))
    first = scheduler.schedule()
    ahead = scheduler.schedule()
    now_s = 101.0
    scheduler.update_from_output(first, None)
    now_s = 102.0
    scheduler.update_from_output(ahead, None)
    pacer = scheduler.__dict__["_conserve_pacer"]
    assert pacer._rule._busy_s == pytest.approx(2.0, rel=0.05)


def test_decodes_and_their_drafts_are_no_prefill(scheduler: FakeScheduler) -> None:
    step(scheduler)
    pacer = scheduler.__dict__["_conserve_pacer"]
    pacer.scheduled(Output({"a": 4, "b": 1}, {"a": [1, 2, 3]}), 0.0)
    assert not pacer._began_s


def test_steps_whose_result_never_came_are_forgotten(scheduler: FakeScheduler) -> None:
    kept = []
    scheduler.running.append(Request("decoding", 10, 10))
    for number in range(40):
        scheduler.waiting.append(Request(f"{number}", 300))
        kept.append(scheduler.schedule())
    assert len(scheduler.__dict__["_conserve_pacer"]._began_s) <= 16


def test_what_fails_in_the_rule_fails_no_request(
    scheduler: FakeScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    step(scheduler)
    scheduler.running.append(Request("odd", None))  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR, "vllm.conserve"), pytest.raises(TypeError):
        step(scheduler)  # the stand-in itself can't take it either
    assert "chunks no longer follow the load" in caplog.text
    scheduler.running.clear()
    scheduler.running.append(Request("decoding", 10, 10))
    scheduler.waiting.append(Request("a", 5000))
    assert step(scheduler)["a"] == 2047


def test_a_scheduler_without_the_known_parts_is_left_alone() -> None:
    class Other:
        def schedule(self) -> None: ...
        def update_from_output(self) -> None: ...

    with pytest.raises(AttributeError, match="Other reads no max_num_scheduled_tokens"):
        follow(Other, 256)


def test_without_vllm_it_says_what_is_missing() -> None:
    with pytest.raises(ImportError, match="vllm"):
        adapt_chunks(256)


def test_the_size_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SMALLEST, raising=False)
    assert smallest_tokens() is None
    monkeypatch.setenv(SMALLEST, "128")
    assert smallest_tokens() == 128
    monkeypatch.setenv(SMALLEST, "0")
    with pytest.raises(ValueError, match="greater than 0"):
        smallest_tokens()
