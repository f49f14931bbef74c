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


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a turn runs. `prefiller` is None exactly when no KV is moved."""

    path: Path
    decoder: str
    prefiller: str | None = None
