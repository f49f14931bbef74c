"""What a conversation and its branches came to, together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from conserve_sdk.protocol import ConversationTotals
from conserve_server.energy.accounts import ConversationAccount, Factors
from conserve_server.serving.records.record import NO_FACTORS, ConversationRecord


def with_branches(
    record: ConversationRecord,
    branches: Sequence[ConversationRecord],
    *,
    reserved_kv_tokens: int = 0,
    factors: Factors = NO_FACTORS,
) -> ConversationTotals | None:
    """The sums, `reserved_kv_tokens` those of all of them; None for a conversation without branches."""
    if not branches:
        return None
    every = (record, *branches)
    return ConversationTotals(
        branches=len(branches),
        turns=sum(each.sums.turns for each in every),
        tools=sum(len(each.tools) for each in every),
        kv_transfers=sum(each.kv_transfers for each in every),
        rebinds=sum(len(each.rebinds) for each in every),
        reserved_kv_tokens=reserved_kv_tokens,
        prompt_tokens=_sum(each.sums.prompt_tokens for each in every),
        cached_tokens=_sum(each.sums.cached_tokens for each in every),
        completion_tokens=_sum(each.sums.output_tokens for each in every),
        emulated=any(each.is_emulated for each in every),
        energy=ConversationAccount.together([each.energy for each in every]).report(factors),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    seen = [count for count in counts if count is not None]
    return sum(seen) if seen else None
