"""The engine's loop: admit in arrival order, prefill in chunks, decode all together.

Unlike vLLM it takes the blocks of the whole answer at admission, so that nothing is ever
preempted: a request waits until prompt and answer fit.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from conserve_server.core.clock import Clock
from conserve_server.engines.emulated.answer import FinishReason
from conserve_server.engines.emulated.config import EmulatedConfig
from conserve_server.engines.emulated.conversation_kv import ConversationKv
from conserve_server.engines.emulated.handover import LeaseBook, Puller
from conserve_server.engines.emulated.kv_cache import BlockPool
from conserve_server.engines.emulated.metrics import EngineMetrics
from conserve_server.engines.emulated.sequence import KvLoadFailed, Sequence

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Share:
    """What a sequence gets of one step."""

    sequence: Sequence
    tokens: int


class EngineLoop:
    """Queues, running sequences and the KV cache of one engine."""

    def __init__(self, config: EmulatedConfig, clock: Clock, metrics: EngineMetrics, puller: Puller) -> None:
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._puller = puller
        self._pool = BlockPool(config.kv_blocks)
        self._wake = asyncio.Event()
        self._waiting: deque[Sequence] = deque()
        self._loading: set[Sequence] = set()
        self._running: list[Sequence] = []
        self._group: asyncio.TaskGroup | None = None
        self.leases = LeaseBook(config, clock, self._pool, metrics, self._lease_freed)
        self.conversations = ConversationKv(config, clock, self._pool, self._sessions)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests without room and, as in vLLM, those whose KV is on its way."""
        return len(self._waiting) + len(self._loading)

    @property
    def kv_usage(self) -> float:
        return self._pool.usage

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Step for ever; pulls and leases run in `group`."""
        self._group = group
        while True:
            self._admit()
            shares = self._share_out()
            if not shares:
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._clock.sleep(self._step_s(shares))
            for share in shares:
                self._apply(share)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; its tokens come by iterating it."""
        self._waiting.append(sequence)
        if sequence.is_pull:
            self._spawn().create_task(self._puller.keep(sequence))
        self._wake.set()

    def refuse(self, kv_params: Mapping[str, object]) -> None:
        """A request was refused before it was queued: the KV that waits for it elsewhere is not wanted."""
        if kv_params.get("do_remote_prefill"):
            self._spawn().create_task(self._puller.release(kv_params))

    def drop(self, sequence: Sequence) -> None:
        """The client is gone: end the sequence wherever it is, and any lease that it left."""
        self.leases.free(sequence.id)
        if sequence.finish_reason is not None:
            return
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            self.refuse(sequence.kv_params)
        elif sequence in self._running:
            self._running.remove(sequence)
            self._free(sequence)
        self._end(sequence, "abort")
        self._wake.set()

    def _spawn(self) -> asyncio.TaskGroup:
        if self._group is None:
            raise RuntimeError("the emulated engine is not running: enter the app's lifespan first")
        return self._group

    def _admit(self) -> None:
        while self._waiting and len(self._running) + len(self._loading) < self._config.max_num_seqs:
            if not self._place(self._waiting[0]):
                return
            sequence = self._waiting.popleft()
            if sequence.is_pull:
                self._loading.add(sequence)
                self._spawn().create_task(self._load(sequence))
            else:
                self._start(sequence)

    def _place(self, sequence: Sequence) -> bool:
        """Take the sequence's blocks, cached ones first; at least its last token is left to compute."""
        usable = (len(sequence.prompt) - 1) // self._config.block_size
        cached = self._pool.cached(sequence.digests[:usable])
        blocks = self._pool.take(cached, sequence.needed_blocks)
        if blocks is None:
            return False
        sequence.blocks = blocks
        sequence.published_blocks = len(cached)
        sequence.local_tokens = sequence.computed_tokens = len(cached) * self._config.block_size
        self._metrics.placed(len(sequence.prompt), sequence.local_tokens)
        return True

    async def _load(self, sequence: Sequence) -> None:
        """Pull the prompt's KV, then run; by policy fail, or compute it here, where that can't be done."""
        error = await self._pull(sequence)
        self._loading.discard(sequence)
        if sequence.finish_reason is not None:
            self._pool.release(sequence.blocks)
        elif error is not None and self._config.kv_load_failure_policy == "fail":
            self._pool.release(sequence.blocks)
            self._end(sequence, "error", error=error)
        else:
            self._start(sequence)
        self._wake.set()

    async def _pull(self, sequence: Sequence) -> KvLoadFailed | None:
        tokens = len(sequence.prompt) - 1 - sequence.local_tokens
        began_s = self._clock.now_s()
        self._metrics.transfer_asked(tokens)
        try:
            await self._puller.pull(sequence, tokens)
        except KvLoadFailed as error:
            _log.warning("request %s: KV load failed: %s", sequence.id, error)
            self._metrics.transfer_failed()
            return error
        sequence.external_tokens = tokens
        sequence.computed_tokens += tokens
        moved_bytes = tokens * self._config.kv_bytes_per_token
        self._metrics.transferred(tokens, self._clock.now_s() - began_s, moved_bytes)
        return None

    def _start(self, sequence: Sequence) -> None:
        sequence.scheduled_s = self._clock.now_s()
        self._running.append(sequence)

    def _share_out(self) -> list[_Share]:
        """One token for each decode, then prompts in arrival order while the step's budget lasts."""
        shares = [_Share(sequence, 1) for sequence in self._running if sequence.is_decoding]
        budget = self._config.max_num_batched_tokens - len(shares)
        for sequence in self._running:
            if not sequence.is_decoding and budget > 0:
                tokens = min(budget, len(sequence.prompt) - sequence.computed_tokens)
                shares.append(_Share(sequence, tokens))
                budget -= tokens
        return shares

    def _step_s(self, shares: list[_Share]) -> float:
        decodes = [share.sequence for share in shares if share.sequence.is_decoding]
        return self._config.timing.step_s(
            sequences=len(shares),
            prefill_tokens=sum(share.tokens for share in shares) - len(decodes),
            batch=len(decodes),
            context_tokens=sum(sequence.computed_tokens for sequence in decodes),
        )

    def _apply(self, share: _Share) -> None:
        sequence = share.sequence
        if sequence.finish_reason is not None:
            return
        sequence.computed_tokens += share.tokens
        if sequence.is_decoding:
            self._produce(sequence)
        self._publish(sequence)
        if sequence.produced_tokens == len(sequence.answer.tokens):
            self._finish(sequence)

    def _produce(self, sequence: Sequence) -> None:
        now_s = self._clock.now_s()
        is_first = sequence.first_token_s is None
        sequence.produce(now_s)
        self._metrics.generated()
        if is_first:
            computed = len(sequence.prompt) - sequence.local_tokens - sequence.external_tokens
            self._metrics.prefilled(sequence.local_tokens, sequence.external_tokens, computed)
            queue_s = (sequence.scheduled_s or now_s) - sequence.arrived_s
            self._metrics.first_token(now_s - sequence.arrived_s, queue_s)

    def _publish(self, sequence: Sequence) -> None:
        """Let others find the blocks that are full now."""
        full = min(sequence.computed_tokens // self._config.block_size, len(sequence.digests))
        for index in range(sequence.published_blocks, full):
            self._pool.publish(sequence.blocks[index], sequence.digests[index])
        sequence.published_blocks = max(sequence.published_blocks, full)

    def _finish(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        if sequence.is_prefill_leg:
            self.conversations.freed(sequence.session, sequence.digests[: sequence.published_blocks])
            sequence.transfer_params = self.leases.hold(sequence)
            self._spawn().create_task(self.leases.watch(sequence.id))
        else:
            self._free(sequence)
        self._end(sequence, sequence.answer.finish_reason)

    def _free(self, sequence: Sequence) -> None:
        self._pool.release(sequence.blocks)
        self.conversations.freed(sequence.session, sequence.digests[: sequence.published_blocks])

    def _lease_freed(self) -> None:
        self.conversations.freed(None, ())
        self._wake.set()

    def _sessions(self) -> set[str | None]:
        """Conversations with a request in the engine, or with blocks that a lease holds."""
        requests = {sequence.session for sequence in (*self._waiting, *self._loading, *self._running)}
        return requests | self.leases.sessions

    def _end(self, sequence: Sequence, reason: FinishReason, *, error: KvLoadFailed | None = None) -> None:
        sequence.end(reason, error=error)
        self._metrics.finished(reason, self._clock.now_s() - sequence.arrived_s)
