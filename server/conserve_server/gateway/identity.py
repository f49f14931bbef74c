"""Whose turn a request is: the conversation's identity, read from headers, ours first."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from conserve_sdk.protocol import AGENT, CONVERSATION_ID, FINAL, PARENT_ID, clean_id

ID_HEADERS: Final = (CONVERSATION_ID, "x-session-id")
"""First match wins. `x-session-id` is what vLLM ≥ 0.31 and other routers read."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The conversation of a request. A synthetic one was made up for a request that named none."""

    conversation_id: str
    is_synthetic: bool
    agent: str | None = None
    parent_id: str | None = None
    is_final: bool = False


def read_identity(headers: Mapping[str, str]) -> Identity:
    """The identity that the headers (lower-case names) carry. Identifiers are untrusted text."""
    agent, parent = (clean_id(headers.get(name, "")) for name in (AGENT, PARENT_ID))
    named = next((found for name in ID_HEADERS if (found := clean_id(headers.get(name, "")))), None)
    is_final = headers.get(FINAL, "").strip().lower() == "true"
    if named is None:
        # A conversation of one turn: nothing could tell that a later request belongs to it.
        return Identity(f"anonymous-{uuid.uuid4().hex}", True, agent, parent, is_final=True)
    return Identity(named, False, agent, parent, is_final)
