"""One request as an engine sees it: a turn's prefill leg, or the leg that decodes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Request:
    """A request from its submission to its end. Lengths are in tokens, times in seconds.

    `turn_id` says whose it is. `order` numbers requests by submission; lower `priority` goes
    first. `is_leased`: a prefill leg, whose KV stays held after its end until it was fetched.
    `is_pulled`: its KV comes from another engine before it runs; `load_tokens` of it come from
    the engine's host tier.
    `computed` tokens of the `length` known ones are in KV; `produced` output tokens came, the
    last of them not in KV yet. While it decodes, `joined_step` and `joined_tokens` say since
    which step of the engine, and with how many tokens in KV. `waits_since_s`: when the engine first
    looked for a step for its prompt.
    """

    turn_id: int
    conversation: str
    prompt_tokens: int
    output_tokens: int
    order: int
    priority: int = 0
    prefix: str | None = None
    shared_tokens: int = 0
    is_leased: bool = False
    is_pulled: bool = False
    computed: int = 0
    produced: int = 0
    hit_tokens: int = 0
    prompt_hit_tokens: int | None = None
    load_tokens: int = 0
    shared_blocks: int = 0
    joined_step: int = 0
    joined_tokens: int = 0
    last_token_s: float | None = None
    waits_since_s: float | None = None
    is_over: bool = False

    @property
    def length(self) -> int:
        """Known tokens: the prompt, and what was produced before a preemption."""
        return self.prompt_tokens + self.produced

    @property
    def reusable_tokens(self) -> int:
        """Tokens whose KV may come from a cache; at least the last one is computed."""
        return self.length - 1
