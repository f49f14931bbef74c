"""Which turns are tried again after an engine failed them, and which are not: those that end engines.

Engines die of many causes, and sometimes of the request that they serve. Nobody can tell at the first
death. So a turn whose engine was lost is a *suspect*: it is tried once more, and until its first token no
other suspect runs on the same engine (the bulkhead). Whatever dies then died of it alone: its body's digest
is remembered and refused for a while, and one such request costs two engines at most, whoever sends it
again. A suspect that gets its first token is none any more.

All tries count in one budget for the turn (legs that failed, prefill and decode alike) and in one for the
gateway (a share of all turns): where most engines fail, trying again makes it worse.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import ClassVar, Final, Literal

import xxhash

from conserve_server.core.clock import Clock
from conserve_server.core.errors import DeadlyRequest, EngineFailed, NoCapacity
from conserve_server.serving.cluster.cluster import Cluster
from conserve_server.serving.turns.books import Ended, TurnBook
from conserve_server.serving.turns.live import LiveTurn, Loss
from conserve_server.telemetry.metrics import GatewayMetrics

MAX_LOSSES: Final = 2
"""Engines that one request may end: the first could have died of anything."""
REMEMBERED_S: Final = 600.0
"""How long a request is remembered after it lost an engine: longer than any client tries again."""
MAX_REMEMBERED: Final = 10_000
"""Digests; the oldest is forgotten."""
BURST: Final = 100.0
"""Tries that may come at once, as when an engine with many turns dies."""
_RETRY_AFTER_S: Final = 5.0

_NOT_LOST: Final = frozenset({"engine_error", "engine_protocol"})
"""Failures of an engine that goes on: another one may do better."""
_ANYWHERE: Final[AbstractAsyncContextManager[None]] = nullcontext()

Digest = bytes


class Retries:
    """Told of every leg that fails; says whether its turn goes on."""

    def __init__(
        self,
        cluster: Cluster,
        clock: Clock,
        metrics: GatewayMetrics,
        *,
        max_failures: int,
        share: float,
        max_wait_s: float,
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._metrics = metrics
        self._max_failures = max_failures
        self._share = share
        self._max_wait_s = max_wait_s
        self._left = BURST
        self._places: dict[str, asyncio.Lock] = {}
        self._losses: OrderedDict[Digest, tuple[float, tuple[Loss, ...]]] = OrderedDict()
        """By the body's digest: until when, and the engines that it may have ended."""

    def check(self, live: LiveTurn) -> None:
        """Remember what the request has done before. Raises DeadlyRequest where it ended engines."""
        self._left = min(BURST, self._left + self._share)
        self._forget_old()
        if not self._losses:
            return  # and nothing is made of the body
        known = self._losses.get(_digest(live))
        if known is not None:
            live.losses = known[1]
            if len(live.losses) >= MAX_LOSSES:
                raise _deadly(live)

    def apart(self, live: LiveTurn, engine: str) -> AbstractAsyncContextManager[None]:
        """A leg's block. A suspect has the engine to itself, among suspects, until `is_innocent` or its end.

        Entering raises NoCapacity (503) where others had it for too long.
        """
        return self._place(live, engine) if live.losses else _ANYWHERE

    @asynccontextmanager
    async def _place(self, live: LiveTurn, engine: str) -> AsyncIterator[None]:
        place = self._places.setdefault(engine, asyncio.Lock())
        try:
            async with asyncio.timeout(self._max_wait_s):
                await place.acquire()
        except TimeoutError as error:
            raise NoCapacity(
                f"turns that lost their engine are tried one by one, and others came first for "
                f"{self._max_wait_s:g} s: try again later",
                code="no_kv_capacity",
            ) from error
        live.place_apart = place
        try:
            yield
        finally:
            _leave(live)

    def is_innocent(self, live: LiveTurn) -> None:
        """It has its first token: no engine dies of it."""
        if live.losses:
            self._losses.pop(_digest(live), None)
            live.losses = ()
        _leave(live)

    async def failed(self, live: LiveTurn, error: EngineFailed, leg: Literal["prefill", "decode"]) -> None:
        """A leg failed. Returns where the turn may be placed again; else raises what its client is told."""
        live.failures += 1
        if live.is_lost_by(error) and error.was_asked:
            await self._lost(live, error.engine)
        may_go = leg == "prefill" or error.code in _NOT_LOST or live.is_lost_by(error)
        is_over = live.first_output_s is not None or live.is_passed_on or live.failures >= self._max_failures
        if is_over or not may_go:
            raise error
        if self._left < 1.0:
            raise NoCapacity(
                "engines fail more turns than may be tried again (gateway.retry_share): try again later",
                code="retry_budget_spent",
                retry_after_s=_RETRY_AFTER_S,
            ) from error
        self._left -= 1.0
        self._metrics.retried(leg)

    async def _lost(self, live: LiveTurn, engine: str) -> None:
        """The leg broke off with its engine, as it seems. Raises DeadlyRequest if two were lost so.

        It waits until a look knows, of this engine and of those beside it: what ended several at once is
        not met again by the next try, and not taken for the request's doing.
        """
        status = self._cluster.statuses.get(engine)
        losses = (*live.losses, Loss(engine, status.generation if status is not None else None))
        self._cluster.doubt_role_of(engine)
        live.losses = tuple([loss for loss in losses if not await self._cluster.survived(*loss)])
        self._remember(live)
        if len(live.losses) >= MAX_LOSSES:
            raise _deadly(live)

    def _forget_old(self) -> None:
        now_s = self._clock.now_s()
        while self._losses and next(iter(self._losses.values()))[0] <= now_s:
            self._losses.popitem(last=False)

    def _remember(self, live: LiveTurn) -> None:
        digest = _digest(live)
        if not live.losses:
            self._losses.pop(digest, None)
            return
        self._losses[digest] = self._clock.now_s() + REMEMBERED_S, live.losses
        self._losses.move_to_end(digest)
        if len(self._losses) > MAX_REMEMBERED:
            self._losses.popitem(last=False)


class RetriesBook(TurnBook):
    """Suspects that have answered are none any more."""

    name: ClassVar[str] = "retries"

    def __init__(self, retries: Retries) -> None:
        self._retries = retries

    def answered(self, live: LiveTurn, _now_s: float) -> None:
        self._retries.is_innocent(live)

    def ends(self, live: LiveTurn, _ended: Ended) -> None:
        _leave(live)


def _leave(live: LiveTurn) -> None:
    place, live.place_apart = live.place_apart, None
    if place is not None:
        place.release()


def _digest(live: LiveTurn) -> Digest:
    return xxhash.xxh3_128_digest(live.request.body)


def _deadly(live: LiveTurn) -> DeadlyRequest:
    engines = ", ".join(loss.engine for loss in live.losses)
    return DeadlyRequest(
        f"{len(live.losses)} engines that served this request ended ({engines}): it is refused for "
        f"{REMEMBERED_S / 60:g} minutes; change it before it is sent again",
        code="deadly_request",
    )
