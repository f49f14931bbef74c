"""Which conversation an answer of the Responses API belongs to, and which engine has it stored.

vLLM keeps stored answers in the engine that made them. So a request that goes on from one must go
to the decoder of its conversation, and a request for one to the engine that has it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from conserve_sdk.protocol import clean_id


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One answer's whereabouts."""

    conversation_id: str
    model: str
    engine: str
    is_synthetic: bool
    """Whether the conversation's id was made up: nothing but its answers' ids leads to it."""


class StoredResponses:
    """The latest answers of each tenant, at most `kept`; no tenant finds another's."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._of: dict[str, OrderedDict[str, StoredResponse]] = {}

    def note(self, tenant: str, response_id: str, response: StoredResponse) -> None:
        """Remember where an answer is; the tenant's oldest one is forgotten beyond `kept`."""
        name = clean_id(response_id)
        if name is None:
            return  # no client could ask for it
        known = self._of.setdefault(tenant, OrderedDict())
        known[name] = response
        known.move_to_end(name)
        if len(known) > self._kept:
            known.popitem(last=False)

    def find(self, tenant: str, response_id: str) -> StoredResponse | None:
        known = self._of.get(tenant)
        return known.get(clean_id(response_id) or "") if known is not None else None
