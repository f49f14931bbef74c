"""An engine with continuous batching, as vLLM's scheduler does it.

Each step decodes one token of every running request and fills the rest of its token budget with
chunks of prompts: those already begun first, then waiting ones while there is room for them. A
request is admitted when the KV of its whole context fits; when a decoding one finds no block, the
latest is preempted and later computes again what is no longer cached. Decode steps of an
unchanged batch are taken in one run (`runs.py`). It knows no clock: the caller says when.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

from conserve_server.simulation.activity import Activity
from conserve_server.simulation.decoding import Decoding
from conserve_server.simulation.host_tier import HostMemory
from conserve_server.simulation.kv_blocks import KVBlocks, blocks_of
from conserve_server.simulation.request import Request
from conserve_server.simulation.runs import Run
from conserve_server.simulation.timing import EngineTiming, Step
from conserve_vllm.chunk_rule import SMALLEST_TOKENS, ChunkRule, felt_wait_s


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """vLLM's own settings, by their names there. A `long_prefill_token_threshold` of 0 sets none.

    `schedules_by_priority` is `--scheduling-policy priority`. `adapts_chunks`: `conserve_vllm` sets
    how much of `max_num_batched_tokens` a step takes, and the threshold (`chunk_rule.py`), from
    `smallest_chunk_tokens` on.
    `most_steps` bounds one run of decode steps: 1 computes every step by itself.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    long_prefill_token_threshold: int = 0
    schedules_by_priority: bool = False
    adapts_chunks: bool = False
    smallest_chunk_tokens: int = SMALLEST_TOKENS
    most_steps: int = 4096


class EngineModel:
    """One engine. `plan` begins what it does next, `finish` ends it; `shorten` lets an arrival in."""

    def __init__(
        self,
        name: str,
        timing: EngineTiming,
        settings: EngineSettings,
        *,
        kv_capacity_tokens: int | None = None,
        host: HostMemory | None = None,
    ) -> None:
        capacity = kv_capacity_tokens or timing.kv_capacity_tokens
        self.name = name
        self.timing = timing
        self.settings = settings
        self.host = host
        self.kv = KVBlocks(capacity, host)
        self.activity = Activity()
        self.run: Run | None = None
        self.runs = 0
        """How many runs were begun or shortened: tells a run's end from one that was superseded."""
        self.pulls: list[Request] = []
        """Requests admitted since the caller last looked, whose KV has to come from another engine."""
        self.loads: list[Request] = []
        """The same, whose KV has to come from the host."""
        self.loaded_tokens = 0
        self._waiting: list[tuple[tuple[int, int], Request]] = []
        self._receiving: dict[int, Request] = {}
        self._prefilling: list[Request] = []
        self._decoding = Decoding()
        self._rule = (
            ChunkRule(settings.max_num_batched_tokens, settings.smallest_chunk_tokens)
            if settings.adapts_chunks
            else None
        )

    @property
    def capacity_tokens(self) -> int:
        return self.kv.total * 16

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._prefilling) + self._decoding.count

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    # -- requests come and go ------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """A request has arrived. Raises ValueError for one that could never run here."""
        if blocks_of(request.prompt_tokens + request.output_tokens) > self.kv.total:
            raise ValueError(
                f"a turn of {request.conversation!r} needs {request.prompt_tokens + request.output_tokens} "
                f"tokens of KV, engine {self.name!r} has {self.capacity_tokens}: cut the workload or use a "
                "larger GPU"
            )
        self._wait(request)

    def received(self, request: Request, *, has_come: bool = True, left_tokens: int = 1) -> None:
        """The KV that an admitted request waited for has come: its last token is left to compute.

        If it never comes, the engine computes what it has not cached.
        """
        if has_come:
            request.computed = request.length - left_tokens
        del self._receiving[request.order]
        self._prefilling.append(request)

    def begin_load(self, tokens: int, now_s: float) -> float:
        """Load so many tokens from the host; when they are on the device."""
        if self.kv.host is None:
            raise RuntimeError(f"engine {self.name!r} has no host tier to load from")
        self.loaded_tokens += tokens
        return self.kv.host.load(tokens, self.timing.kv_bytes_per_token, now_s)

    def loaded(self, request: Request) -> None:
        """What an admitted request waited for has come from the host."""
        request.computed = request.hit_tokens
        del self._receiving[request.order]
        self._prefilling.append(request)

    def end_lease(self, request: Request) -> None:
        """The KV of a finished prefill leg was fetched, or never will be: only the cache remembers it."""
        self.kv.release(request, request.prompt_tokens, held_tokens=request.prompt_tokens)

    def lose_all(self) -> list[Request]:
        """The engine has died: every request that it had, in order of submission; it starts empty again."""
        lost = [request for _, request in self._waiting]
        lost += [*self._receiving.values(), *self._prefilling, *self._decoding.requests]
        for request in lost:
            request.is_over = True
        self.kv = KVBlocks(self.capacity_tokens, self.host)
        self._waiting, self._receiving, self._prefilling, self._decoding = [], {}, [], Decoding()
        self.pulls.clear()
        self.loads.clear()
        self.run = None
        self.runs += 1
        return sorted(lost, key=lambda request: request.order)

    # -- runs ----------------------------------------------------------------------------------

    def plan(self, now_s: float) -> float | None:
        """Begin the next run; when it ends, None while there is nothing to do or a run goes on."""
        if self.run is not None:
            return None
        if self._decoding.count:
            self._make_room(now_s)
        chunks = self._chunks(now_s)
        if chunks:
            self.run = self._mixed(chunks, now_s)
        elif self._decoding.count:
            self.run = self._decode(now_s)
        else:
            return None
        self.runs += 1
        return self.run.ends_s

    def shorten(self, now_s: float) -> float | None:
        """End a run of many steps with the one in flight; its new end, None if it stays as it was."""
        if self.run is None or self.run.steps == 1 or not self.run.shorten(now_s):
            return None
        self.runs += 1
        return self.run.ends_s

    def finish(self, now_s: float) -> tuple[list[Request], list[Request]]:
        """The run is over: requests that have their first token now, and those that are done."""
        run, self.run = self.run, None
        if run is None:
            raise RuntimeError(f"engine {self.name!r} has no run to finish")
        done = self._step_decoding(run, now_s)
        firsts: list[Request] = []
        for request, tokens in run.chunks:
            request.computed += tokens
            if request.computed >= request.length:
                self._produce(request, now_s, firsts, done)
        return firsts, done

    # -- planning ------------------------------------------------------------------------------

    def _chunks(self, now_s: float) -> list[tuple[Request, int]]:
        budget, longest = self._budget(now_s)
        chunks: list[tuple[Request, int]] = []
        for request in self._prefilling:
            tokens = min(request.length - request.computed, longest, budget)
            if tokens <= 0:
                return chunks
            chunks.append((request, tokens))
            budget -= tokens
        while budget > 0 and self._waiting and self.running < self.settings.max_num_seqs:
            request = self._waiting[0][1]
            if not self._admit(request, now_s):
                break
            if request.order in self._receiving:
                continue
            tokens = min(request.length - request.computed, longest, budget)
            chunks.append((request, tokens))
            budget -= tokens
        return chunks

    def _budget(self, now_s: float) -> tuple[int, int]:
        """Prompt tokens that the next step may take, of all prompts and of one."""
        budget = self.settings.max_num_batched_tokens - self._decoding.count
        if self._rule is None:
            return budget, self.settings.long_prefill_token_threshold or budget
        if not self._prefilling and not self._waiting:
            return budget, budget
        prompts = [*self._prefilling, *(request for _, request in self._waiting[:1])]
        waited_s = 0.0
        for request in prompts:
            if request.waits_since_s is None:
                request.waits_since_s = now_s
            waited_s = max(waited_s, felt_wait_s(now_s - request.waits_since_s, request.priority))
        tokens, of_one = self._rule.next(
            now_s,
            decoding=self._decoding.count,
            waited_s=waited_s,
            prompts=len(self._prefilling) + len(self._waiting),
        )
        budget = min(tokens, budget)
        return budget, of_one or budget

    def _admit(self, request: Request, now_s: float) -> bool:
        if not self.kv.admit(request, now_s):
            return False
        heappop(self._waiting)
        if request.prompt_hit_tokens is None:
            request.prompt_hit_tokens = request.hit_tokens
        if not request.is_pulled and not request.load_tokens:
            self._prefilling.append(request)
        else:
            self._receiving[request.order] = request
            (self.pulls if request.is_pulled else self.loads).append(request)
        return True

    def _mixed(self, chunks: list[tuple[Request, int]], now_s: float) -> Run:
        """One step of prefill chunks and one token of each decoding request."""
        count, context = self._decoding.count, self._decoding.context_tokens
        tokens = held = 0
        for request, each in chunks:
            tokens += each
            held += request.computed
        step_s = self.timing.step_s(Step(len(chunks), tokens, held, count, context))
        decode_s = self.timing.step_s(Step(0, 0, 0, count, context)) if count else 0.0
        if self._rule is not None:
            self._rule.ran(now_s, now_s + step_s)
        return Run(now_s, 1, step_s, 0.0, min(decode_s, step_s), chunks, tokens)

    def _decode(self, now_s: float) -> Run:
        """Decode steps until the first request is done, or finds no block."""
        count, context = self._decoding.count, self._decoding.context_tokens
        steps = min(self._decoding.steps_to_first_end, self.settings.most_steps, _near_linear(count, context))
        steps = self._decoding.steps_within(self.kv.available + self._decoding.next_blocks, steps)
        first_s = self.timing.step_s(Step(0, 0, 0, count, context))
        slope_s = 0.0
        if steps > 1:
            last = Step(0, 0, 0, count, context + count * (steps - 1))
            slope_s = (self.timing.step_s(last) - first_s) / (steps - 1)
        return Run(now_s, steps, first_s, slope_s, first_s, [])

    def _make_room(self, now_s: float) -> None:
        """Take the blocks of the next token of each decoding request; the latest are preempted for them."""
        while self._decoding.next_blocks > self.kv.available:
            running = self._prefilling + self._decoding.requests
            self._preempt(max(running, key=self._rank))
        if self._decoding.next_blocks:
            self.kv.take(self._decoding.next_blocks, now_s)

    def _preempt(self, request: Request) -> None:
        if request in self._prefilling:
            self._prefilling.remove(request)
            self.kv.release(request, request.computed, held_tokens=request.length)
        else:
            held = self._decoding.leave(request)
            self.kv.release(request, held, held_tokens=held)
        self.activity.preemptions += 1
        request.computed = 0
        request.is_pulled = False  # what was pulled is recomputed, or still cached
        self._wait(request)

    def _wait(self, request: Request) -> None:
        heappush(self._waiting, (self._rank(request), request))

    def _rank(self, request: Request) -> tuple[int, int]:
        return (request.priority if self.settings.schedules_by_priority else 0), request.order

    # -- finishing -----------------------------------------------------------------------------

    def _step_decoding(self, run: Run, now_s: float) -> list[Request]:
        """Advance the decoding requests by the run's steps; those that are done."""
        decoding = self._decoding
        self.activity.add(run, decoding.count)
        if not decoding.count:
            return []
        if run.steps > 1:  # the first step's blocks are taken
            self.kv.take(decoding.blocks_for(run.steps) - decoding.next_blocks, now_s)
        decoding.advance(run.steps)
        done = decoding.pop_ended()
        for request in done:
            request.produced = request.output_tokens
            request.last_token_s = now_s
            request.is_over = True
            kv_tokens = request.prompt_tokens + request.output_tokens - 1
            self.kv.release(request, kv_tokens, held_tokens=kv_tokens)
        return done

    def _produce(self, request: Request, now_s: float, firsts: list[Request], done: list[Request]) -> None:
        """The request's context is in KV and its next token comes out of it."""
        self._prefilling.remove(request)
        request.waits_since_s = None
        self.kv.prefilled(request)
        if request.produced == 0:
            firsts.append(request)
        elif request.last_token_s is not None:
            self.activity.gaps.add(now_s - request.last_token_s)
        request.produced += 1
        request.last_token_s = now_s
        self.activity.output_tokens += 1
        if request.produced < request.output_tokens:
            self._decoding.join(request, request.length - 1)
            return
        request.is_over = True
        done.append(request)
        if not request.is_leased:
            self.kv.release(request, request.length - 1, held_tokens=request.length - 1)


def _near_linear(count: int, context_tokens: int) -> int:
    """Steps over which the context grows by at most an eighth, and at least 64."""
    return max(64, context_tokens // (8 * count))
