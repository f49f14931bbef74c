"""A turn as the scheduler sees it, and where it was put."""

from __future__ import annotations

from dataclasses import dataclass

from conserve_sdk.protocol import Path


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a conversation, at its arrival.

    `prompt_tokens` is the whole prompt's length as far as it can be known before the engine
    has tokenised it: an estimate from its bytes, replaced once the engine has counted.
    """

    id: int
    conversation_id: str
    prompt_tokens: int
    total_tokens: int | None = None
    """Tokens that the conversation will have held at its end: known in the replay of a trace alone."""
    tenant: str = ""
    """Whose it is: turns of several tenants take turns where they wait for room."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a turn runs. `prefiller` is None exactly when no KV is moved.

    `priority` is vLLM's (lower goes first; None leaves the engine's order). `reserve_tokens`
    is what to hold on the decoder if it is not the prompt's length; it is never lowered.
    """

    path: Path
    decoder: str
    prefiller: str | None = None
    priority: int | None = None
    reserve_tokens: int | None = None
