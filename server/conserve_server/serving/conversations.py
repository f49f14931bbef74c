"""The life of conversations in the gateway: begun within limits, at rest between turns, ended once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from conserve_server.core.config import GatewayConfig
from conserve_server.core.errors import LimitReached, NoCapacity
from conserve_server.serving.asked.identity import Identity, tenant_of
from conserve_server.serving.driving.coordinator import Coordinator
from conserve_server.serving.driving.telling import BookErrors, Event
from conserve_server.serving.kv.signals import KvSignals
from conserve_server.serving.recognition.recognition import Recognition
from conserve_server.serving.records.conversation_log import ConversationLog
from conserve_server.serving.records.endings import Endings
from conserve_server.serving.records.record import ENDED, EXPIRED, ConversationRecord
from conserve_server.serving.records.stored_responses import StoredResponses
from conserve_server.serving.turns.draining import Draining
from conserve_server.serving.turns.energy_books import GatewayEnergy

_RETRY_AFTER_S = 10.0
"""Conversations end less often than turns do."""

log = logging.getLogger(__name__)


class Conversations:
    """Opens and ends conversations everywhere at once: scheduler, log and recognition.

    No client counts on a synthetic conversation's binding: those at rest give up their room as
    soon as a turn waits for room or their tenant is at its limit.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        log: ConversationLog,
        recognition: Recognition,
        signals: KvSignals,
        stored_responses: StoredResponses,
        *,
        idle_timeout_s: float,
        synthetic_idle_timeout_s: float,
        limit: int,
        own_limits: Mapping[str, int],
        endings: Endings,
        max_waiting_turns: int,
        draining: Draining,
        energy: GatewayEnergy,
        errors: BookErrors,
    ) -> None:
        self._coordinator = coordinator
        self.log = log
        self.recognition = recognition
        self.signals = signals
        self.stored_responses = stored_responses
        self._idle_timeout_s = idle_timeout_s
        self._synthetic_idle_timeout_s = synthetic_idle_timeout_s
        self._limit = limit
        self._own_limits = dict(own_limits)
        self._tell_summary = Event[ConversationRecord, Sequence[ConversationRecord]](
            "conversation ended", [("summary", endings.ended)], errors
        )
        self._max_waiting_turns = max_waiting_turns
        self._draining = draining
        self._tell_end = Event[ConversationRecord, str](
            "conversation ended",
            [
                ("scheduler", lambda record, _: coordinator.end_conversation(record.identity.key)),
                ("record", self.log.end),
                ("recognition", lambda record, _: recognition.forget(record.identity)),
                ("energy", lambda record, _: energy.conversation_ended(record.energy)),
                ("kv_signals", lambda record, _: signals.conversation_ended(record)),
            ],
            errors,
        )
        # Several end at once: what one of them raises must not keep the others.
        self._end_for_its_time = Event[ConversationRecord, str](
            "conversation ended", [("conversations", self.end)], errors
        )
        self._resting: dict[str, OrderedDict[str, float]] = {}
        """By tenant: synthetic conversations without a turn, and since when."""

    @classmethod
    def from_config(
        cls,
        gateway: GatewayConfig,
        coordinator: Coordinator,
        signals: KvSignals,
        draining: Draining,
        endings: Endings,
        energy: GatewayEnergy,
        errors: BookErrors,
    ) -> Conversations:
        return cls(
            coordinator,
            ConversationLog(gateway.ended_kept),
            Recognition(gateway.recognised_kept, lambda error: errors.note("recognition", "reads", error)),
            signals,
            StoredResponses(gateway.responses_kept),
            idle_timeout_s=gateway.idle_timeout_s,
            synthetic_idle_timeout_s=gateway.synthetic_idle_timeout_s,
            limit=gateway.max_conversations,
            own_limits=_own_limits(gateway),
            endings=endings,
            max_waiting_turns=gateway.max_waiting_turns,
            draining=draining,
            energy=energy,
            errors=errors,
        )

    def become(self, gateway: GatewayConfig) -> None:
        """Take the tenants' own limits, as they were read anew; conversations that live go on."""
        self._own_limits = _own_limits(gateway)

    # -- turns ---------------------------------------------------------------------------------

    def open(self, identity: Identity, now_s: float) -> ConversationRecord:
        """The record for a turn.

        Raises for a new conversation: LimitReached (429) beyond the limit, NoCapacity (503) where
        too many wait already, and while draining.
        """
        tenant, key = identity.tenant, identity.key
        if self.log.live(tenant, key) is None:
            self._draining.check_new()
            self._check_queue()
            self._check_limit(tenant)
        record = self.log.open(identity, now_s)
        self._resting.get(tenant, OrderedDict()).pop(key, None)
        return record

    def make_room(self) -> None:
        """If a turn waits for room, synthetic conversations at rest give theirs up, the longest idle first.

        Those of tenants that give room (`Scheduler.giving_tenants`) before any other's.
        """
        scheduler = self._coordinator.scheduler
        while scheduler.waiting_turns and scheduler.pools.ledgers:
            firsts = [(tenant, *oldest) for tenant, keys in self._resting.items() for oldest in _oldest(keys)]
            if not firsts:
                return
            tenants = scheduler.giving_tenants()
            giving = [first for first in firsts if first[0] in tenants]
            tenant, key, _ = min(giving or firsts, key=lambda first: first[2])
            self._end_resting(tenant, key)

    def turn_ended(
        self,
        identity: Identity,
        record: ConversationRecord,
        *,
        can_go_on: bool,
        now_s: float,
    ) -> None:
        """A turn is over, and the scheduler knows. The conversation rests, or is over as well.

        `can_go_on`: whether a later turn can be known as one of the same conversation.
        """
        if record.ended_as is not None:
            self._sum_up(record)
            return
        is_known = self._coordinator.scheduler.find(identity.key) is not None
        if identity.is_final:
            self.release(record)
        elif not can_go_on or not is_known:
            self.end(record, ENDED)
        elif identity.is_synthetic and not record.has_turns:
            self._resting.setdefault(identity.tenant, OrderedDict())[identity.key] = now_s
            self.make_room()

    # -- ends ----------------------------------------------------------------------------------

    def end(self, record: ConversationRecord, ended_as: str) -> None:
        """The conversation is over: its reservation is freed once its running turns have ended."""
        identity = record.identity
        self._resting.get(identity.tenant, OrderedDict()).pop(identity.key, None)
        self._tell_end(record, ended_as)
        self._sum_up(record)
        root = self.log.root(record)
        if root is not None and self._was_kept_by_branches(root):
            self.end(root, ended_as)

    def release(self, record: ConversationRecord) -> None:
        """End it by its client's wish, and its branches with it."""
        for each in (*self.log.branches(record), record):
            self.end(each, ENDED)

    def expire(self, now_s: float) -> None:
        """End what has been without a turn for too long."""
        for key in self._coordinator.scheduler.idle_since(now_s - self._idle_timeout_s):
            record = self.log.live(tenant_of(key), key)
            if record is None:
                self._coordinator.expire_conversation(key)
                continue
            name = record.identity.conversation_id
            log.info("conversation %r expired after %g s without a turn", name, self._idle_timeout_s)
            self._end_for_its_time(record, EXPIRED)
        for tenant, keys in self._resting.items():
            limit_s = now_s - self._synthetic_idle_timeout_s
            while (oldest := next(_oldest(keys), None)) is not None and oldest[1] <= limit_s:
                self._end_resting(tenant, oldest[0])

    def _was_kept_by_branches(self, root: ConversationRecord) -> bool:
        """Whether it lives by its branches alone, and the last of them has ended."""
        is_bare = root.ended_as is None and not root.turns_begun
        return is_bare and not self.log.has_live_branches(root)

    def _sum_up(self, record: ConversationRecord) -> None:
        """Tell its summary, once nothing of it or its branches runs; then that of what it is a branch of."""
        if record.ended_as is None or record.is_summed_up or record.has_turns:
            return
        branches = self.log.branches(record)
        if any(branch.has_turns for branch in branches):
            return
        record.is_summed_up = True
        self._tell_summary(record, branches)
        root = self.log.root(record)
        if root is not None:
            self._sum_up(root)

    def _end_resting(self, tenant: str, key: str) -> None:
        del self._resting[tenant][key]
        record = self.log.live(tenant, key)
        if record is not None:
            self._end_for_its_time(record, EXPIRED)

    def _check_queue(self) -> None:
        if self._coordinator.scheduler.waiting_turns >= self._max_waiting_turns:
            raise NoCapacity(
                f"{self._max_waiting_turns} turns wait for room already (gateway.max_waiting_turns): "
                "try again later",
                code="too_many_waiting",
                retry_after_s=_RETRY_AFTER_S,
            )

    def _check_limit(self, tenant: str) -> None:
        limit = self._own_limits.get(tenant, self._limit)
        if self.log.live_count(tenant) < limit:
            return
        oldest = next(_oldest(self._resting.get(tenant, OrderedDict())), None)
        if oldest is None:
            raise LimitReached(
                f"{limit} conversations are live already: end those that are done "
                "(DELETE /v1/conversations/{id}), or raise gateway.max_conversations or the tenant's own",
                code="too_many_conversations",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._end_resting(tenant, oldest[0])


def _own_limits(gateway: GatewayConfig) -> dict[str, int]:
    return {
        name: tenant.max_conversations
        for name, tenant in gateway.tenants.items()
        if tenant.max_conversations is not None
    }


def _oldest(resting: OrderedDict[str, float]) -> Iterator[tuple[str, float]]:
    """The first key and since when it rests, or nothing."""
    return islice(resting.items(), 1)
