"""The requests of a batch that decode, advanced together in constant time.

All of them gain one token a step. So their end is a step number, their KV a sum that grows by
their count, and their next block is due when the step number meets their place in a block.
"""

from __future__ import annotations

from heapq import heappop, heappush

from conserve_server.simulation.kv_blocks import BLOCK_TOKENS
from conserve_server.simulation.request import Request


class Decoding:
    """Decoding requests of one engine: `count` of them; the next step reads `context_tokens` of KV."""

    def __init__(self) -> None:
        self.count = 0
        self.context_tokens = 0
        self._step = 0
        self._requests: dict[int, Request] = {}
        self._ends: list[tuple[int, int, Request]] = []
        self._places = [0] * BLOCK_TOKENS  # requests by (KV tokens − step number) modulo the block

    @property
    def requests(self) -> list[Request]:
        return list(self._requests.values())

    @property
    def steps_to_first_end(self) -> int:
        """Steps until the first request has all its tokens."""
        ends = self._ends
        while not self._is_current(ends[0]):
            heappop(ends)
        return ends[0][0] - self._step

    def join(self, request: Request, kv_tokens: int) -> None:
        """The request decodes from the next step on, with so many tokens in KV."""
        request.joined_step = self._step
        request.joined_tokens = kv_tokens
        self._requests[request.order] = request
        self.count += 1
        end = self._step + request.output_tokens - request.produced
        heappush(self._ends, (end, request.order, request))
        self._places[(kv_tokens - self._step) % BLOCK_TOKENS] += 1
        self.context_tokens += kv_tokens

    def leave(self, request: Request) -> int:
        """The request stops before its end; its tokens in KV."""
        steps = self._step - request.joined_step
        request.produced += steps
        return self._remove(request)

    def pop_ended(self) -> list[Request]:
        """Take out the requests that have all their tokens now, in order of submission."""
        ended = []
        while self._ends and (self._ends[0][0] <= self._step or not self._is_current(self._ends[0])):
            entry = heappop(self._ends)
            if self._is_current(entry):
                self._remove(entry[2])
                ended.append(entry[2])
        return ended

    def advance(self, steps: int) -> None:
        self._step += steps
        self.context_tokens += steps * self.count

    # -- blocks --------------------------------------------------------------------------------

    @property
    def next_blocks(self) -> int:
        """Blocks that the next step needs."""
        return self._places[-self._step % BLOCK_TOKENS]

    def blocks_for(self, steps: int) -> int:
        """Blocks that the next steps need."""
        whole, rest = divmod(steps, BLOCK_TOKENS)
        need = whole * self.count
        for step in range(self._step, self._step + rest):
            need += self._places[-step % BLOCK_TOKENS]
        return need

    def steps_within(self, blocks: int, most: int) -> int:
        """How many of the next `most` steps so many blocks are enough for; at least one is assumed."""
        if (most // BLOCK_TOKENS + 1) * self.count <= blocks:
            return most
        steps = min(most, blocks // self.count * BLOCK_TOKENS)
        left = blocks - self.blocks_for(steps)
        while steps < most:
            left -= self._places[-(self._step + steps) % BLOCK_TOKENS]
            if left < 0:
                break
            steps += 1
        return max(1, steps)

    def _is_current(self, entry: tuple[int, int, Request]) -> bool:
        """Whether the entry tells the end of a request that is still in the batch."""
        end, order, request = entry
        is_in = self._requests.get(order) is request
        return is_in and request.joined_step + request.output_tokens - request.produced == end

    def _remove(self, request: Request) -> int:
        steps = self._step - request.joined_step
        kv_tokens = request.joined_tokens + steps
        del self._requests[request.order]
        self.count -= 1
        self._places[(kv_tokens - self._step) % BLOCK_TOKENS] -= 1
        self.context_tokens -= kv_tokens
        return kv_tokens
