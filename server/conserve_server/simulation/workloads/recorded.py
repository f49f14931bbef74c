"""From recorded requests to turns: what each prompt adds to the conversation so far, or rewrites of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..workload import ConversationShape, TurnShape

# Prompts are recorded rounded to blocks, and an answer is not always sent back as it was counted:
# a prompt that is shorter than its history by less than this was appended to, not rewritten.
_ROUNDING_TOKENS = 64


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request of a conversation: its whole prompt, its answer, the time between the answer before and it.

    `kept_tokens`: how much of the prompt before this one is still its beginning, where that was
    recorded (by the hashes of its blocks); None where it was not.
    """

    input_tokens: int
    output_tokens: int
    gap_s: float = 0.0
    kept_tokens: int | None = None


def turns_of(requests: Iterable[RecordedRequest], *, rewritten_from: int = 0) -> tuple[TurnShape, ...]:
    """The requests as turns. Where a history was rewritten and nothing says from where, what was kept of
    it are its first `rewritten_from` tokens.
    """
    turns: list[TurnShape] = []
    before: RecordedRequest | None = None
    for request in requests:
        turns.append(_turn(before, request, rewritten_from))
        before = request
    return tuple(turns)


def _turn(before: RecordedRequest | None, request: RecordedRequest, rewritten_from: int) -> TurnShape:
    if before is None:
        return TurnShape(max(request.input_tokens, 1), request.output_tokens, request.gap_s)
    kept = _kept(before, request, rewritten_from)
    history = before.input_tokens + before.output_tokens if kept is None else kept
    appended = max(request.input_tokens - history, 1)
    return TurnShape(appended, request.output_tokens, request.gap_s, kept)


def _kept(before: RecordedRequest, request: RecordedRequest, rewritten_from: int) -> int | None:
    """The tokens that survive of the history, or None where all of it does."""
    recorded = request.kept_tokens
    if recorded is not None and recorded < before.input_tokens - _ROUNDING_TOKENS:
        return min(recorded, request.input_tokens - 1)
    if request.input_tokens >= before.input_tokens + before.output_tokens - _ROUNDING_TOKENS:
        return None
    if request.input_tokens > before.input_tokens:
        return before.input_tokens  # the answer was not sent back whole
    return min(rewritten_from if recorded is None else recorded, request.input_tokens - 1)


def common_blocks(one: Sequence[int], other: Sequence[int]) -> int:
    """How many blocks two prompts begin with in common."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


def cut(
    conversation: ConversationShape,
    *,
    max_turns: int | None = None,
    max_context_tokens: int | None = None,
    max_gap_s: float | None = None,
) -> ConversationShape | None:
    """The conversation up to its first turn that goes beyond a limit; None where the first one does.

    A gap that is longer than `max_gap_s` is shortened to it: nobody waits hours in a benchmark.
    """
    kept: list[TurnShape] = []
    context = 0
    for turn in conversation.turns[:max_turns]:
        history = context if turn.rewrites_from_tokens is None else min(context, turn.rewrites_from_tokens)
        context = history + turn.appended_tokens + turn.output_tokens
        if max_context_tokens is not None and context > max_context_tokens:
            break
        kept.append(turn if max_gap_s is None else replace(turn, gap_s=min(turn.gap_s, max_gap_s)))
    return replace(conversation, turns=tuple(kept)) if kept else None


def scaled(conversation: ConversationShape, factor: float) -> ConversationShape:
    """The conversation with all lengths multiplied, none below 1: a large workload on small engines."""
    turns = tuple(
        replace(
            turn,
            appended_tokens=max(round(turn.appended_tokens * factor), 1),
            output_tokens=max(round(turn.output_tokens * factor), 1),
            rewrites_from_tokens=None
            if turn.rewrites_from_tokens is None
            else round(turn.rewrites_from_tokens * factor),
        )
        for turn in conversation.turns
    )
    shared = min(round(conversation.shared_prefix_tokens * factor), turns[0].appended_tokens)
    return replace(conversation, turns=turns, shared_prefix_tokens=shared)
