"""vLLM's scheduler, told before each step how many prompt tokens to take: see `chunk_rule.py`.

`--max-num-batched-tokens` stays what the engine was started with, and is the most that a step takes.
vLLM reads its budget and its `long_prefill_token_threshold` anew in each step, so that both may change.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from conserve_vllm.chunk_rule import ChunkRule, felt_wait_s
from conserve_vllm.settings import positive

SMALLEST: Final = "CONSERVE_SMALLEST_CHUNK"
"""Environment variable: prompt tokens of the smallest chunks; unset leaves vLLM's chunks as they are."""
_SCHEDULER: Final = "vllm.v1.core.sched.scheduler"
_PACER: Final = "_conserve_pacer"
_MOST_STEPS: Final = 16
"""Steps in flight that are remembered: vLLM has two at once, or one for each pipeline stage."""

log = logging.getLogger("vllm.conserve")


def smallest_tokens() -> int | None:
    """The asked-for size, None if none is. Raises ValueError for one that is no positive number."""
    return positive(SMALLEST)


def adapt_chunks(smallest: int) -> None:
    """Let every scheduler of this process follow the rule.

    Raises ImportError or AttributeError where vLLM has changed.
    """
    follow(importlib.import_module(_SCHEDULER).Scheduler, smallest)


def follow(scheduler: Any, smallest: int) -> None:
    """Hook into the class. Raises AttributeError if it does not schedule as the rule expects."""
    if hasattr(scheduler, _PACER):
        return
    written = inspect.getsource(scheduler)
    for attribute in ("max_num_scheduled_tokens", "long_prefill_token_threshold", "num_computed_tokens"):
        if attribute not in written:
            raise AttributeError(f"{scheduler.__name__} reads no {attribute}")
    schedule, update = scheduler.schedule, scheduler.update_from_output
    setattr(scheduler, _PACER, None)
    scheduler.schedule = _around_schedule(schedule, smallest)
    scheduler.update_from_output = _around_update(update)


class Pacer:
    """One scheduler's rule, its steps in flight, and the prompts that wait for a step."""

    def __init__(self, scheduler: Any, smallest: int) -> None:
        self._config = scheduler.scheduler_config
        self._most = scheduler.max_num_scheduled_tokens
        self._threshold = self._config.long_prefill_token_threshold
        self._rule = ChunkRule(self._most, smallest)
        self._waits_since_s: dict[str, float] = {}
        self._began_s: dict[int, float] = {}
        self._ended_s = 0.0

    def before(self, scheduler: Any, now_s: float) -> None:
        """A step is about to be scheduled: set what it may take."""
        prompts = [r for r in scheduler.running if r.num_computed_tokens < r.num_prompt_tokens]
        decoding = len(scheduler.running) - len(prompts)
        there = len(prompts) + len(scheduler.waiting)
        if scheduler.waiting:
            prompts.append(scheduler.waiting.peek_request())
        since_s = {r.request_id: self._waits_since_s.get(r.request_id, now_s) for r in prompts}
        self._waits_since_s = since_s
        if not prompts:
            self.restore(scheduler)
            return
        waited_s = max(felt_wait_s(now_s - since_s[r.request_id], r.priority) for r in prompts)
        tokens, of_one = self._rule.next(now_s, decoding=decoding, waited_s=waited_s, prompts=there)
        scheduler.max_num_scheduled_tokens = min(self._most, tokens + decoding)
        self._config.long_prefill_token_threshold = of_one

    def restore(self, scheduler: Any) -> None:
        """Give the scheduler back what it was started with."""
        scheduler.max_num_scheduled_tokens = self._most
        self._config.long_prefill_token_threshold = self._threshold

    def scheduled(self, output: Any, now_s: float) -> None:
        """The step was scheduled: remember when, if it prefills."""
        drafts = sum(map(len, output.scheduled_spec_decode_tokens.values()))
        if output.total_num_scheduled_tokens > len(output.num_scheduled_tokens) + drafts:
            self._began_s[id(output)] = now_s
            while len(self._began_s) > _MOST_STEPS:
                del self._began_s[next(iter(self._began_s))]

    def ended(self, output: Any, now_s: float) -> None:
        """The step's result came; what was scheduled ahead of that began after the step before."""
        began_s = self._began_s.pop(id(output), None)
        if began_s is not None:
            self._rule.ran(max(began_s, self._ended_s), now_s)
        self._ended_s = now_s


def _around_schedule(schedule: Callable[..., Any], smallest: int) -> Callable[..., Any]:
    @functools.wraps(schedule)
    def scheduled(self: Any, *args: Any, **kwargs: Any) -> Any:
        pacer = _pacer_of(self, smallest)
        _guarded(self, pacer, lambda p: p.before(self, time.monotonic()))
        began_s = time.monotonic()
        output = schedule(self, *args, **kwargs)
        _guarded(self, pacer, lambda p: p.scheduled(output, began_s))
        return output

    return scheduled


def _around_update(update: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(update)
    def updated(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        pacer = self.__dict__.get(_PACER)
        _guarded(self, pacer, lambda p: p.ended(scheduler_output, time.monotonic()))
        return update(self, scheduler_output, *args, **kwargs)

    return updated


def _pacer_of(scheduler: Any, smallest: int) -> Pacer | None:
    if _PACER not in scheduler.__dict__:
        try:
            found = Pacer(scheduler, smallest)
        except Exception:
            log.exception("chunks stay as they are: the scheduler is unlike that of the tested versions")
            found = None
        setattr(scheduler, _PACER, found)
    pacer: Pacer | None = scheduler.__dict__[_PACER]
    return pacer


def _guarded(scheduler: Any, pacer: Pacer | None, act: Callable[[Pacer], None]) -> None:
    """Act with the pacer. What fails there must not fail a request: chunks are then as they were."""
    if pacer is None:
        return
    try:
        act(pacer)
    except Exception:
        log.exception("chunks no longer follow the load")
        setattr(scheduler, _PACER, None)
        pacer.restore(scheduler)
