"""The KV cache: blocks, which of them hold which prefix, and which may be taken next."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b


def chain_digest(previous: int, tokens: Sequence[int]) -> int:
    """Identity of a block: its tokens and everything before it."""
    content = previous.to_bytes(8) + array("q", tokens).tobytes()
    return int.from_bytes(blake2b(content, digest_size=8).digest())


def salted(salt: str | None) -> int:
    """What a prompt's first block has before it: one salt's blocks are none that another finds."""
    return int.from_bytes(blake2b(salt.encode(), digest_size=8).digest()) if salt else 0


def digest_blocks(
    tokens: Sequence[int], block_size: int, *, with_tail: bool = False, salt: str | None = None
) -> list[int]:
    """One digest for each full block of `tokens`, and with `with_tail` one for what is left over."""
    digests: list[int] = []
    previous = salted(salt)
    end = len(tokens) if with_tail else len(tokens) // block_size * block_size
    for start in range(0, end, block_size):
        previous = chain_digest(previous, tokens[start : start + block_size])
        digests.append(previous)
    return digests


class BlockPool:
    """Blocks by number. A free block keeps its prefix until it is taken for another, oldest first."""

    def __init__(self, blocks: int) -> None:
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        self._uses = [0] * blocks
        self._digest_of: dict[int, int] = {}
        self._block_of: dict[int, int] = {}
        self.is_kept: Callable[[int], bool] | None = None
        """Whether the block of a digest is taken after all that are not; None: none is."""

    @property
    def usage(self) -> float:
        """Share of the blocks that running or leased sequences hold, 0 to 1."""
        return 1.0 - len(self._free) / len(self._uses)

    def cached(self, digests: Sequence[int]) -> list[int]:
        """The blocks that hold the longest cached prefix of `digests`."""
        found: list[int] = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def take(self, cached: Sequence[int], count: int) -> list[int] | None:
        """`count` blocks of which the first are `cached`, or None when that many are not free."""
        fresh = count - len(cached)
        idle = sum(1 for block in cached if not self._uses[block])
        if len(self._free) - idle < fresh:
            return None
        for block in cached:
            self._uses[block] += 1
            self._free.pop(block, None)
        return [*cached, *(self._take_oldest() for _ in range(fresh))]

    def publish(self, block: int, digest: int) -> None:
        """Let later sequences find `block` by its content; the first holder of a content keeps it."""
        if digest not in self._block_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def release(self, blocks: Sequence[int]) -> None:
        """Give blocks back, a sequence's end first: its beginning is the likelier to be asked for."""
        for block in reversed(blocks):
            self._uses[block] -= 1
            if self._uses[block]:
                continue
            self._free[block] = None
            if block not in self._digest_of:
                self._free.move_to_end(block, last=False)

    def forget(self, digests: Iterable[int]) -> None:
        """Let the free blocks of these digests be the next to be taken, and found no more."""
        for digest in digests:
            block = self._block_of.get(digest)
            if block is not None and not self._uses[block]:
                del self._block_of[digest], self._digest_of[block]
                self._free.move_to_end(block, last=False)

    def refresh(self, digests: Iterable[int]) -> int:
        """Let the blocks of these digests be the last to be taken; how many there are."""
        found = [block for digest in digests if (block := self._block_of.get(digest)) is not None]
        for block in reversed(found):
            if not self._uses[block]:
                self._free.move_to_end(block)
        return len(found)

    def count(self, digests: Iterable[int]) -> int:
        """How many of these digests are cached."""
        return sum(digest in self._block_of for digest in digests)

    def _take_oldest(self) -> int:
        block = self._oldest()
        del self._free[block]
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]
        self._uses[block] = 1
        return block

    def _oldest(self) -> int:
        if self.is_kept is not None:
            for block in self._free:
                digest = self._digest_of.get(block)
                if digest is None or not self.is_kept(digest):
                    return block
        return next(iter(self._free))
