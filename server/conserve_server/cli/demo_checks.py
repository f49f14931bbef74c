"""What must hold after the demo: the gateway's account of each conversation, and the engines' own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from conserve_sdk.protocol import ConversationReport, Outcome, TurnReport

BLOCK_TOKENS: Final = 32
"""vLLM's largest usual KV block (the CPU's): a prefix is cached in whole blocks."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What the engines themselves have counted: moves into decoders, requests of prefillers."""

    kv_transfers: int
    prefill_requests: int

    def __sub__(self, before: Counted) -> Counted:
        return Counted(
            self.kv_transfers - before.kv_transfers, self.prefill_requests - before.prefill_requests
        )


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold; `summary` says in a few words what was seen."""

    holds: bool
    summary: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def checks(reports: Sequence[ConversationReport], counted: Counted) -> dict[str, Check]:
    """Every check by its name, in the order in which a person reads them."""
    return {
        "every_turn_completed": _all([t.outcome is Outcome.COMPLETED for r in reports for t in r.turns]),
        "one_kv_transfer_each": _all([report.kv_transfers == 1 for report in reports]),
        "one_decoder_each": _one_decoder_each(reports),
        "decoders_counted_the_same_transfers": _same(
            counted.kv_transfers, sum(report.kv_transfers for report in reports)
        ),
        "prefillers_served_first_turns_only": _same(counted.prefill_requests, len(reports)),
        "later_turns_reuse_the_previous_prompt": _all(
            [_reuses(*pair) for report in reports for pair in itertools.pairwise(report.turns)]
        ),
        "released_at_the_end": _all([r.state == "ended" and r.reserved_kv_tokens == 0 for r in reports]),
    }


def _all(facts: Sequence[bool]) -> Check:
    """Holds if there is something to look at and all of it is so."""
    return Check(bool(facts) and all(facts), f"{sum(facts)} of {len(facts)}")


def _same(counted: int, expected: int) -> Check:
    return Check(counted == expected > 0, f"{counted}, expected {expected}")


def _one_decoder_each(reports: Sequence[ConversationReport]) -> Check:
    check = _all([len(report.decoders) == 1 for report in reports])
    share = Counter(name for report in reports for name in report.decoders)
    where = ", ".join(f"{name} {count}" for name, count in sorted(share.items()))
    return Check(check.holds, f"{check.summary} ({where})" if where else check.summary)


def _reuses(before: TurnReport, later: TurnReport) -> bool:
    """Whether at least the previous prompt, up to its last block, came from the cache."""
    if before.prompt_tokens is None or later.cached_tokens is None:
        return False
    return later.cached_tokens >= before.prompt_tokens - BLOCK_TOKENS
