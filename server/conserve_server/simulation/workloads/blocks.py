"""What conversations begin with in common, read from the hashes of their first prompts' blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


class SharedBlocks:
    """How many conversations have each block at the beginning of their first prompt.

    A block's hash stands for all blocks before it too, so one hash names a whole beginning.
    """

    def __init__(self, first_prompts: Iterable[Sequence[int]]) -> None:
        self._conversations: Counter[int] = Counter()
        for hashes in first_prompts:
            self._conversations.update(set(hashes))

    def prefix_of(self, hashes: Sequence[int]) -> tuple[str | None, int]:
        """A name for the beginning that saves most, and its length in blocks; None and 0 if none is shared.

        What it saves is its blocks times the other conversations that have them: conversations that
        share a long beginning with few and a short one with many get one name only.
        """
        best, blocks, saved = None, 0, 0
        for index, block in enumerate(hashes, 1):
            others = self._conversations[block] - 1
            if others * index > saved:
                best, blocks, saved = f"block-{block}", index, others * index
        return best, blocks
