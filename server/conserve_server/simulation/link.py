"""KV transfers between engines: one at a time on each engine's way out and way in."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """How long one transfer takes: `latency_s`, and its bytes at `bytes_per_s`.

    Transfers of at most `short_tokens` take `short_s` instead (the paper's measurements have
    such a step; 0 tokens for none).
    """

    latency_s: float
    bytes_per_s: float
    short_tokens: int = 0
    short_s: float = 0.0

    def transfer_s(self, tokens: int, bytes_per_token: int) -> float:
        """Seconds to move the KV of so many tokens over an idle link."""
        if tokens <= self.short_tokens:
            return self.short_s
        return self.latency_s + tokens * bytes_per_token / self.bytes_per_s


class Links:
    """The links of a fleet. First come, first served, by source and by target."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._out_free_s: defaultdict[str, float] = defaultdict(float)
        self._in_free_s: defaultdict[str, float] = defaultdict(float)

    def begin(self, source: str, target: str, tokens: int, bytes_per_token: int, now_s: float) -> float:
        """Begin a transfer as soon as both ends are free; when it will have ended."""
        begins_s = max(now_s, self._out_free_s[source], self._in_free_s[target])
        ends_s = begins_s + self._link.transfer_s(tokens, bytes_per_token)
        self._out_free_s[source] = self._in_free_s[target] = ends_s
        return ends_s
