"""How many prompt tokens a step may prefill beside decodes: few while there is time, more under load.

Small chunks keep the gaps between tokens short and cost throughput; no fixed size is right for a
light and for a heavy load. The rule knows no model and no GPU: it watches how much of the time
goes to steps that prefill, and how long prompts have waited. vLLM's scheduler is told what it
answers, and so are the engines of the simulator.
"""

from __future__ import annotations

from math import exp
from typing import Final, NamedTuple

SMALLEST_TOKENS: Final = 256
LARGEST_TOKENS: Final = 2048
"""Larger chunks beside decodes make gaps of a tenth of a second and more on an H100."""
WINDOW_S: Final = 30.0
"""How far back busy time counts, with weights that fall off exponentially."""
HOLD_S: Final = 4.5
"""Least time between two changes of the size: busy time follows a change with a lag."""
PATIENCE_S: Final = 1.0
"""Chunks double when a prompt has waited for so long, and after twice and four times that."""
CROWD: Final = (6, 12, 24)
"""Chunks double, too, when so many prompts are there at once: a burst is seen before any has waited."""
URGENT_X: Final = 1.5
"""Waits of prompts that go first, those of later turns, count so much more: users allow them less."""
_UP: Final = (0.55, 0.95)
"""Busy shares beyond which chunks double: from the smallest size, and from larger ones."""
_DOWN: Final = (0.36, 0.6)
"""Busy shares under which they are halved again: to the smallest size, and to larger ones. Twice the
size takes about two thirds of the time, so that no load asks for both."""
_OF_ONE: Final = 0.75
"""Share of a chunk that one prompt may take: the rest stays free for short appends beside it."""


class Chunk(NamedTuple):
    """Prompt tokens for one step, and those that a single prompt may take of them (0: all)."""

    tokens: int
    of_one_prompt: int


def felt_wait_s(waited_s: float, priority: int) -> float:
    """The wait of a prompt of this vLLM priority, as `next` takes it. The lowest number goes first."""
    return waited_s * URGENT_X if priority <= 0 else waited_s


class ChunkRule:
    """The rule for one engine, whose steps take at most `step_tokens`. Times are the caller's seconds."""

    def __init__(self, step_tokens: int, smallest_tokens: int = SMALLEST_TOKENS) -> None:
        self._step_tokens = step_tokens
        self._largest_tokens = min(step_tokens, max(smallest_tokens, LARGEST_TOKENS))
        self._smallest_tokens = min(smallest_tokens, step_tokens)
        self._level = 0
        self._changed_s: float | None = None
        self._began_s: float | None = None
        self._busy_s = 0.0
        self._seen_s = 0.0

    def ran(self, began_s: float, ended_s: float) -> None:
        """A step that prefilled ran from `began_s` to `ended_s`."""
        if self._began_s is None:
            self._began_s = began_s
        self._busy_s = self._busy_at(began_s) + ended_s - began_s
        self._seen_s = began_s

    def next(self, now_s: float, *, decoding: int, waited_s: float, prompts: int = 1) -> Chunk:
        """The chunk of a step that is about to begin, beside so many decodes.

        `waited_s` is the longest wait that a prompt feels (`felt_wait_s`), `prompts` how many are
        waiting or half done. Where nothing decodes nobody waits for a token: the chunk is as large as can be.
        """
        if not decoding:
            return Chunk(self._step_tokens, 0)
        self._follow(now_s)
        patience = sum(waited_s > PATIENCE_S * times for times in (1, 2, 4))
        haste = max(patience, sum(prompts >= crowd for crowd in CROWD))
        tokens = min(self._largest_tokens, self._smallest_tokens << (self._level + haste))
        return Chunk(tokens, max(1, int(_OF_ONE * tokens)))

    def busy_share(self, now_s: float) -> float:
        """Share of the window that went to steps which prefilled; at least a quarter of a window counts."""
        if self._began_s is None:
            return 0.0
        seen = 1 - exp(-(now_s - self._began_s) / WINDOW_S)
        return self._busy_at(now_s) / (WINDOW_S * max(seen, 0.25))

    def _follow(self, now_s: float) -> None:
        if self._changed_s is not None and now_s - self._changed_s <= HOLD_S:
            return
        share = self.busy_share(now_s)
        if share > _UP[min(self._level, 1)] and self._smallest_tokens << self._level < self._largest_tokens:
            self._level += 1
        elif self._level and share < _DOWN[min(self._level - 1, 1)]:
            self._level -= 1
        else:
            return
        self._changed_s = now_s

    def _busy_at(self, now_s: float) -> float:
        return self._busy_s * exp(-max(0.0, now_s - self._seen_s) / WINDOW_S)
