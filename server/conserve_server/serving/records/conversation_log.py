"""Which conversations the gateway knows: the live ones, and the last of those that have ended."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from conserve_sdk.protocol import ToolEvent
from conserve_server.core.errors import InvalidRequest
from conserve_server.serving.asked.identity import Identity
from conserve_server.serving.records.record import ConversationRecord

MAX_TOOLS_OF_A_TENANT: Final = 1_000_000
"""Over all its conversations: some hundred MB."""


class _Shelf:
    """One tenant's conversations by key, each with the one whose latest turn is longest ago first."""

    def __init__(self) -> None:
        self.live: OrderedDict[str, ConversationRecord] = OrderedDict()
        self.ended: OrderedDict[str, ConversationRecord] = OrderedDict()
        # One id has a record for each model that it was used with; one conversation has branches.
        self.by_id: dict[str, dict[str, ConversationRecord]] = {}
        self.branches: dict[str, dict[str, ConversationRecord]] = {}
        self.live_branches: Counter[tuple[str, str]] = Counter()
        """By the conversation's id and the model: one may have very many."""
        self.tools = 0
        """Tool calls that its records hold."""

    def put(self, record: ConversationRecord) -> None:
        """Make it the latest of the live ones, new or not."""
        identity = record.identity
        self.ended.pop(identity.key, None)
        if identity.key not in self.live:
            self._count(identity, 1)
        self.live[identity.key] = record
        self.live.move_to_end(identity.key)
        for index, name in self._indexes(identity):
            same = index.setdefault(name, {})
            same.pop(identity.key, None)
            same[identity.key] = record

    def end(self, identity: Identity) -> ConversationRecord | None:
        """Take it from the live ones; None if it is none of them."""
        record = self.live.pop(identity.key, None)
        if record is not None:
            self.ended[identity.key] = record
            self._count(identity, -1)
        return record

    def _count(self, identity: Identity, change: int) -> None:
        if identity.branch_of is not None:
            key = (identity.branch_of, identity.model)
            self.live_branches[key] += change
            if not self.live_branches[key]:
                del self.live_branches[key]

    def forget(self, record: ConversationRecord) -> None:
        """Drop an ended one."""
        identity = record.identity
        del self.ended[identity.key]
        self.tools -= len(record.tools)
        for index, name in self._indexes(identity):
            del index[name][identity.key]
            if not index[name]:
                del index[name]

    def _indexes(self, identity: Identity) -> list[tuple[dict[str, dict[str, ConversationRecord]], str]]:
        own = [(self.by_id, identity.conversation_id)]
        return own if identity.branch_of is None else [*own, (self.branches, identity.branch_of)]


class ConversationLog:
    """Every tenant's live conversations, and the last `ended_kept` of each that have ended."""

    def __init__(self, ended_kept: int) -> None:
        self._ended_kept = ended_kept
        self._shelves: dict[str, _Shelf] = {}

    def open(self, identity: Identity, now_s: float) -> ConversationRecord:
        """The record of that conversation; one that had ended goes on."""
        shelf = self._shelves.setdefault(identity.tenant, _Shelf())
        record = shelf.live.get(identity.key) or shelf.ended.get(identity.key)
        if record is None:
            record = ConversationRecord(identity, now_s)
            if identity.branch_of is not None:
                self._open_root(shelf, identity, identity.branch_of, now_s)
        record.ended_as = None
        record.is_summed_up = False
        shelf.put(record)
        return record

    def note_tool(self, record: ConversationRecord, event: ToolEvent) -> None:
        """Note a tool boundary. Raises InvalidRequest where the conversation, or the tenant, has too many."""
        shelf = self._shelves[record.identity.tenant]
        if shelf.tools >= MAX_TOOLS_OF_A_TENANT and event.call_id not in record.tools:
            raise InvalidRequest(
                f"{MAX_TOOLS_OF_A_TENANT} tool calls are remembered already, more are not kept: "
                "end conversations that are done",
                code="too_many_tools",
            )
        before = len(record.tools)
        record.note_tool(event)
        shelf.tools += len(record.tools) - before

    def live(self, tenant: str, key: str) -> ConversationRecord | None:
        """The live conversation that the scheduler knows by this key."""
        shelf = self._shelves.get(tenant)
        return shelf.live.get(key) if shelf is not None else None

    def live_count(self, tenant: str) -> int:
        shelf = self._shelves.get(tenant)
        return len(shelf.live) if shelf is not None else 0

    def find(
        self, tenants: Sequence[str], conversation_id: str, model: str | None = None
    ) -> list[ConversationRecord]:
        """The records under this id, the one with the latest turn first: one a tenant and model."""
        shelves = [shelf for tenant in tenants if (shelf := self._shelves.get(tenant)) is not None]
        found = [record for shelf in shelves for record in shelf.by_id.get(conversation_id, {}).values()]
        if model is not None:
            found = [record for record in found if record.identity.model == model]
        return sorted(found, key=lambda record: record.last_turn_s, reverse=True)

    def branches(self, record: ConversationRecord) -> list[ConversationRecord]:
        """The branches of this conversation that are remembered, in the order of their latest turns."""
        shelf = self._shelves[record.identity.tenant]
        of_any_model = shelf.branches.get(record.identity.conversation_id, {}).values()
        return [branch for branch in of_any_model if branch.identity.model == record.identity.model]

    def has_live_branches(self, record: ConversationRecord) -> bool:
        """Whether a branch of this conversation has not ended."""
        identity = record.identity
        return (identity.conversation_id, identity.model) in self._shelves[identity.tenant].live_branches

    def root(self, branch: ConversationRecord) -> ConversationRecord | None:
        """The conversation that this is a branch of, while it is remembered."""
        identity = branch.identity
        if identity.branch_of is None:
            return None
        shelf = self._shelves[identity.tenant]
        key = replace(identity, conversation_id=identity.branch_of, branch_of=None).key
        return shelf.live.get(key) or shelf.ended.get(key)

    def recent(self, tenants: Sequence[str], limit: int) -> list[ConversationRecord]:
        """The `limit` conversations whose turns are the latest, latest first."""
        found: list[ConversationRecord] = []
        for tenant in tenants:
            shelf = self._shelves.get(tenant)
            if shelf is not None:
                found += [
                    record for _, record in zip(range(limit), reversed(shelf.live.values()), strict=False)
                ]
                found += [
                    record for _, record in zip(range(limit), reversed(shelf.ended.values()), strict=False)
                ]
        return sorted(found, key=lambda record: record.last_turn_s, reverse=True)[:limit]

    def end(self, record: ConversationRecord, ended_as: str) -> None:
        """Keep the record among the ended; nothing if it is not live."""
        shelf = self._shelves[record.identity.tenant]
        if shelf.end(record.identity) is None:
            return
        record.ended_as = ended_as
        while len(shelf.ended) > self._ended_kept:
            shelf.forget(next(iter(shelf.ended.values())))

    def _open_root(self, shelf: _Shelf, branch: Identity, root_id: str, now_s: float) -> None:
        """A conversation can be reported and released even if only its branches ever had a turn."""
        root = replace(branch, conversation_id=root_id, branch_of=None)
        known = shelf.live.get(root.key) or shelf.ended.get(root.key)
        if known is None or not known.turns_begun:
            record = known or ConversationRecord(root, now_s)
            record.ended_as = None
            record.is_summed_up = False
            shelf.put(record)
