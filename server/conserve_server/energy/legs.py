"""What one leg of a turn did on its engine, and how much of that within an interval. Pure.

What an engine has counted is known when the leg has ended, and is spread evenly over the times
that were observed: prefill from the leg's start (after the transfer) to its first token, decode
from there to its end. Where nothing was counted, because the leg broke or still runs, its time
says how much it can have been, at the pace of the legs before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from conserve_server.energy.accounts import TurnAccount
from conserve_server.energy.work import Work, WorkTimes


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens as the engine counted them.

    `prefill_tokens` were computed here, `context_tokens` were there before (cached or moved in),
    `transfer_tokens` of those were moved in.
    """

    prefill_tokens: int
    context_tokens: int = 0
    transfer_tokens: int = 0
    decode_tokens: int = 0


@dataclass(slots=True, eq=False)
class Leg:
    """One leg between its start and its end, in the gateway's monotonic seconds.

    `expected_tokens` and `expected_context` are what it was sent with, by what was known then.
    `first_s`: when its first token came, None until then, and for good where it was not seen.
    `transfer_s`: how long after its start its KV had come. A leg that is not streamed counts as
    decoding from its start, until the engine has told when its first token came.
    """

    turn: TurnAccount
    engine: str
    started_s: float
    expected_tokens: int
    expected_context: int = 0
    decodes: bool = True
    is_streamed: bool = True
    first_s: float | None = None
    ended_s: float | None = None
    transfer_s: float = 0.0
    counted: Counted | None = None


class Pace:
    """Seconds a token, as legs that were counted took: smoothed over the last few."""

    _NEWEST = 0.2

    def __init__(self, times: WorkTimes) -> None:
        self.prefill_s = times.prefill_token_s
        self.decode_s = times.decode_step_s + times.decode_token_s

    def learn(self, leg: Leg) -> None:
        counted, first_s = leg.counted, leg.first_s if leg.decodes else leg.ended_s
        if counted is None or first_s is None or leg.ended_s is None:
            return
        if counted.prefill_tokens > counted.context_tokens:
            taken_s = max(first_s - leg.started_s - leg.transfer_s, 0.0)
            self.prefill_s += self._NEWEST * (taken_s / counted.prefill_tokens - self.prefill_s)
        if counted.decode_tokens > 1:
            taken_s = leg.ended_s - first_s
            self.decode_s += self._NEWEST * (taken_s / counted.decode_tokens - self.decode_s)

    def estimate(self, leg: Leg, now_s: float) -> Counted:
        """What the leg can have done by now."""
        end_s = now_s if leg.ended_s is None else leg.ended_s
        first_s = end_s if leg.first_s is None else leg.first_s
        most = (first_s - leg.started_s) / self.prefill_s if self.prefill_s > 0 else leg.expected_tokens
        has_answered = leg.decodes and leg.first_s is not None
        decoded = (end_s - first_s) / self.decode_s if has_answered and self.decode_s > 0 else 0.0
        prefilled = leg.expected_tokens if has_answered else min(leg.expected_tokens, max(0, round(most)))
        return Counted(prefilled, leg.expected_context, decode_tokens=round(decoded))


def work_between(
    leg: Leg, counted: Counted, start_s: float, end_s: float, *, until_s: float, batched_s: float
) -> Work:
    """The part of the leg's work that fell into an interval.

    `until_s`: where a leg that still runs is taken to end. `batched_s`: its share of the
    interval's decoding time, split evenly among those that decoded at the same time.
    """
    ended_s = until_s if leg.ended_s is None else leg.ended_s
    ready_s = min(leg.started_s + leg.transfer_s, ended_s)
    prefilled_s = ended_s if leg.first_s is None else max(leg.first_s, ready_s)
    decode_from_s = ready_s if leg.first_s is None else prefilled_s
    prefill = _part(ready_s, prefilled_s, start_s, end_s)
    decode = _part(decode_from_s, ended_s, start_s, end_s)
    moved_by_s = ready_s if leg.transfer_s else prefilled_s
    moved = _part(leg.started_s, moved_by_s, start_s, end_s)
    prompt_tokens = counted.prefill_tokens + counted.context_tokens
    decoded = counted.decode_tokens * decode
    decoding_s = max(min(ended_s, end_s) - max(decode_from_s, start_s), 0.0)
    share = min(batched_s / decoding_s, 1.0) if decoding_s > 0 and batched_s > 0 else 1.0
    return Work(
        prefill_tokens=counted.prefill_tokens * prefill,
        # Each token attends to the context and to those prefilled before it: half of them on average.
        prefill_context=counted.prefill_tokens
        * prefill
        * (counted.context_tokens + counted.prefill_tokens / 2),
        transfer_tokens=counted.transfer_tokens * moved,
        decode_tokens=decoded,
        decode_steps=decoded * share,
        decode_context=decoded * (prompt_tokens + counted.decode_tokens / 2),
    )


def _part(from_s: float, to_s: float, start_s: float, end_s: float) -> float:
    """The share of [from, to) that lies in [start, end); an instant lies in one interval alone."""
    if to_s <= from_s:
        return 1.0 if start_s <= from_s < end_s else 0.0
    return max(min(to_s, end_s) - max(from_s, start_s), 0.0) / (to_s - from_s)
