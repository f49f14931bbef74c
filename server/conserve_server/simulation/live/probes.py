"""What a live engine takes for steps of known sizes: prefills, appends to a cached context, decodes.

The engine should have nothing else to do. Each probe is a request (or some at once) whose steps
are known: a prompt of n new tokens and one token of answer is one step, as long as n fits the
engine's step budget; b answers at once are steps of b decodes.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..calibration import Observation
from ..timing import Step
from .token_client import Answer, LiveError, TokenClient, random_tokens

_ENOUGH_GAPS = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. Lengths in tokens; each point is measured `repeats` times, the median counts."""

    prefills: tuple[int, ...] = (16, 64, 128, 256, 512, 1024)
    contexts: tuple[int, ...] = (256, 1024)
    appends: tuple[int, ...] = (16, 64, 256)
    batches: tuple[int, ...] = (1, 2, 4, 8)
    decode_contexts: tuple[int, ...] = (64, 512)
    decoded: int = 24
    longest: int = 2048
    repeats: int = 3

    def within(self, longest: int) -> Plan:
        """The same without what is longer than the engine takes, or the caller wants to wait for."""

        def short(lengths: tuple[int, ...], more: int) -> tuple[int, ...]:
            return tuple(each for each in lengths if each + more <= longest)

        return Plan(
            prefills=short(self.prefills, 1),
            contexts=short(self.contexts, max(self.appends) + 1),
            appends=self.appends,
            batches=self.batches,
            decode_contexts=short(self.decode_contexts, self.decoded),
            decoded=self.decoded,
            longest=longest,
            repeats=self.repeats,
        )

    @property
    def points(self) -> int:
        appends = len(self.contexts) * len(self.appends)
        return len(self.prefills) + appends + len(self.batches) * len(self.decode_contexts)


class Prober:
    """Measures a plan's points on one engine; `tell` hears of each point that is done."""

    def __init__(
        self, client: TokenClient, plan: Plan, *, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self._client, self._plan, self._tell = client, plan, tell
        self._seeds = (f"probe-{number}" for number in itertools.count())

    async def measure(self) -> list[Observation]:
        """All points. Raises LiveError where the engine refuses one."""
        if not (self._plan.prefills and self._plan.decode_contexts):
            raise LiveError("the engine's longest sequence is too short to measure anything")
        await self._prefill(self._plan.prefills[0])  # what an engine does once, it does here
        found = [await self._prefill(tokens) for tokens in self._plan.prefills]
        for context, tokens in itertools.product(self._plan.contexts, self._plan.appends):
            found.append(await self._append(context, tokens))
        for batch, context in itertools.product(self._plan.batches, self._plan.decode_contexts):
            found.append(await self._decode(batch, context))
        return found

    async def _prefill(self, tokens: int) -> Observation:
        answers = [await self._ask(self._fresh(tokens), 1) for _ in range(self._plan.repeats)]
        self._tell(f"prefill of {tokens}")
        return _request(Step(1, tokens), answers)

    async def _append(self, context: int, tokens: int) -> Observation:
        answers, computed = [], []
        for _ in range(self._plan.repeats):
            history = self._fresh(context)
            await self._ask(history, 1)
            answers.append(await self._ask(history + self._fresh(tokens), 1))
            # Whole blocks are cached: the rest of the context is computed with what was appended.
            cached = answers[-1].cached_tokens
            computed.append(context + tokens - (context if cached is None else cached))
        new = int(statistics.median(computed))
        self._tell(f"append of {tokens} to {context}")
        return _request(Step(1, new, context + tokens - new), answers)

    async def _decode(self, batch: int, context: int) -> Observation:
        found = [await self._gap(batch, context) for _ in range(self._plan.repeats)]
        self._tell(f"{batch} decodes at {context}")
        seconds, tokens = (statistics.median(column) for column in zip(*found, strict=True))
        read = batch * int(context + tokens / 2)
        return Observation(Step(0, 0, 0, batch, read), seconds, is_request=False)

    async def _gap(self, batch: int, context: int) -> tuple[float, int]:
        """The gap between tokens while so many decode, and the answers' length: as long as it takes
        for all to overlap."""
        tokens = self._plan.decoded
        while context + tokens <= self._plan.longest:
            prompts = [self._fresh(context) for _ in range(batch)]
            answers = await asyncio.gather(*(self._ask(prompt, tokens) for prompt in prompts))
            found = _shared_gaps_s(answers)
            if len(found) >= _ENOUGH_GAPS:
                return statistics.median(found), tokens
            tokens *= 2
        raise LiveError(f"the engine does not decode {batch} answers at once: measure smaller batches")

    async def _ask(self, prompt: Sequence[int], tokens: int) -> Answer:
        return await self._client.stream(prompt, tokens)

    def _fresh(self, tokens: int) -> list[int]:
        return random_tokens(next(self._seeds), tokens)


def _request(step: Step, answers: Sequence[Answer]) -> Observation:
    seconds = statistics.median(answer.first_s - answer.sent_s for answer in answers)
    return Observation(step, seconds, is_request=True)


def _shared_gaps_s(answers: Sequence[Answer]) -> list[float]:
    """The gaps between tokens while all answers were decoding."""
    begin_s = max(answer.first_s for answer in answers)
    end_s = min(answer.last_s for answer in answers)
    return [
        after - before
        for answer in answers
        for before, after in itertools.pairwise(answer.token_s)
        if before >= begin_s and after <= end_s
    ]
