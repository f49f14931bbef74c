"""A workload replayed against a running gateway: real turns, the simulator's records.

Each conversation is sent turn by turn as its shape says: prompts of token ids that contain the
turns before, answers of exactly the length asked for, tools that take their time. What came of
it goes into the same records that the simulator writes, so the metrics are the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from conserve_sdk.protocol import Path

from ..gaps import Gaps
from ..records import LiveTurn, Records
from ..workload import Arrival, ConversationShape, TurnShape, Workload
from .token_client import Answer, LiveError, TokenClient, random_tokens


@dataclass(slots=True)
class Replayed:
    """What came of a replay. `failures`: what was said for each conversation that broke off."""

    records: Records = field(default_factory=Records)
    gaps: Gaps = field(default_factory=Gaps)
    failures: list[str] = field(default_factory=list)
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Told:
    """Progress: turns that ended, conversations that ended or broke off, those on their way."""

    turns: int
    conversations: int
    running: int


async def replay(
    workload: Workload,
    client: TokenClient,
    *,
    speed: float = 1.0,
    run_name: str = "replay",
    tell: Callable[[Told], None] = lambda _: None,
) -> Replayed:
    """Send the whole workload, arrivals and gaps `speed` times as fast as it says.

    Conversations are called `run_name` and a number at the gateway, so that two replays don't meet.
    One that fails is over: its error is kept and its later turns are not sent.
    """
    run = _Replay(client, speed, run_name, tell)
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number, arrival in enumerate(workload.arrivals):
            group.create_task(run.converse(number, arrival, began_s))
    run.found.duration_s = time.monotonic() - began_s
    return run.found


class _Replay:
    def __init__(
        self, client: TokenClient, speed: float, run_name: str, tell: Callable[[Told], None]
    ) -> None:
        self._client, self._speed, self._name, self._tell = client, speed, run_name, tell
        self._running = self._ended = 0
        self.found = Replayed()

    async def converse(self, number: int, arrival: Arrival, began_s: float) -> None:
        """One conversation, from its arrival to its last turn or its first failure."""
        await asyncio.sleep(max(began_s + arrival.at_s / self._speed - time.monotonic(), 0.0))
        self._running += 1
        name = f"{self._name}-{number}"
        try:
            await self._turns(number, name, arrival.conversation, began_s)
            await self._client.release(name)
        except LiveError as error:
            self.found.failures.append(f"{arrival.conversation.id}: {error}")
        finally:
            self._running -= 1
            self._ended += 1
            self._say()

    async def _turns(self, number: int, name: str, shape: ConversationShape, began_s: float) -> None:
        history: list[int] = []
        for index, turn in enumerate(shape.turns):
            await asyncio.sleep(turn.gap_s / self._speed)
            history = prompt_of(shape, name, index, history)
            answer = await self._client.stream(history, turn.output_tokens, conversation=name)
            is_last = index + 1 == len(shape.turns)
            self._note(_live_turn(number, index, turn, answer, began_s, is_last=is_last), answer, began_s)
            history = history + _said(answer, turn.output_tokens, f"{name}/{index}")

    def _note(self, live: LiveTurn, answer: Answer, began_s: float) -> None:
        self.found.records.add(live, answer.last_s - began_s)
        for before, after in zip(answer.token_s, answer.token_s[1:], strict=False):
            self.found.gaps.add(after - before)
        self._say()

    def _say(self) -> None:
        self._tell(Told(len(self.found.records), self._ended, self._running))


def prompt_of(shape: ConversationShape, name: str, index: int, history: list[int]) -> list[int]:
    """The turn's prompt: the history, or what a rewrite kept of it, and new tokens of its own."""
    turn = shape.turns[index]
    kept = history if turn.rewrites_from_tokens is None else history[: turn.rewrites_from_tokens]
    if index or shape.prefix is None:
        return kept + random_tokens(f"{name}/{index}", turn.appended_tokens)
    shared = random_tokens(shape.prefix, min(shape.shared_prefix_tokens, turn.appended_tokens))
    return shared + random_tokens(f"{name}/0", turn.appended_tokens - len(shared))


def _said(answer: Answer, tokens: int, seed: str) -> list[int]:
    """The answer's tokens, for the next prompt. A target that tells none gets others, and caches less."""
    return answer.token_ids if len(answer.token_ids) == tokens else random_tokens(seed, tokens)


def _live_turn(
    number: int, index: int, turn: TurnShape, answer: Answer, began_s: float, *, is_last: bool
) -> LiveTurn:
    path = answer.path or Path.PINNED
    prompt_tokens = answer.prompt_tokens or 0
    return LiveTurn(
        conversation=number,
        index=index,
        is_last=is_last,
        prompt_tokens=prompt_tokens,
        output_tokens=turn.output_tokens,
        arrived_s=answer.sent_s - began_s,
        first_token_s=answer.first_s - began_s,
        moved_tokens=prompt_tokens if path is Path.REMOTE_PREFILL else turn.appended_tokens * path.moves_kv,
        # After a transfer the decoder reports what it pulled as cached.
        cached_tokens=0 if path.moves_kv else (answer.cached_tokens or 0),
        path=path,
    )
