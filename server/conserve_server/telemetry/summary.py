"""What a conversation came to, once it has ended: its times, transfers and cache hits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry.util.types import AttributeValue

from conserve_sdk.protocol import ConversationReport, ConversationTotals, Outcome, TurnReport
from conserve_server.telemetry import names


@dataclass(slots=True)
class TurnSums:
    """A conversation's turns added up as they end: reports are kept of the latest alone.

    Tokens are None where no turn's were counted. `looked_up_tokens`: prompt tokens of the turns of
    which it is known how many were cached.
    """

    turns: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    looked_up_tokens: int = 0

    def add(self, turn: TurnReport) -> None:
        """One more turn has ended."""
        self.turns += 1
        self.prompt_tokens = _sum(self.prompt_tokens, turn.prompt_tokens)
        self.output_tokens = _sum(self.output_tokens, turn.completion_tokens)
        self.cached_tokens = _sum(self.cached_tokens, turn.cached_tokens)
        if turn.cached_tokens is not None and turn.prompt_tokens:
            self.looked_up_tokens += turn.prompt_tokens

    @property
    def cached_share(self) -> float | None:
        return (self.cached_tokens or 0) / self.looked_up_tokens if self.looked_up_tokens else None


@dataclass(frozen=True, slots=True)
class ConversationSummary:
    """An ended conversation's figures; None where nothing was observed.

    `ttfet_s` and `last_turn_tbt_s` are the paper's metrics (ConServe, arXiv 2606.01839): the
    first token of the last turn with tool time left out, and the mean time between the last
    turn's tokens. `e2e_s` runs from the first turn's arrival to the last turn's end, tool time
    included. `cached_share` is the part of all prompt tokens that engines had in their caches.
    """

    turns: int
    tool_calls: int
    kv_transfers: int
    rebinds: int
    e2e_s: float
    ttfet_s: float | None
    last_turn_tbt_s: float | None
    cached_share: float | None
    prompt_tokens: int | None
    output_tokens: int | None
    energy_j: float | None = None
    with_branches: ConversationTotals | None = None

    @classmethod
    def of(
        cls,
        report: ConversationReport,
        sums: TurnSums,
        *,
        e2e_s: float,
        rebinds: int,
        energy_j: float | None = None,
    ) -> ConversationSummary:
        """The figures of a report, with what a report does not hold."""
        return cls(
            turns=sums.turns,
            tool_calls=len(report.tools),
            kv_transfers=report.kv_transfers,
            rebinds=rebinds,
            e2e_s=e2e_s,
            ttfet_s=report.ttfet_s,
            last_turn_tbt_s=_last_turn_tbt_s(report.turns),
            cached_share=sums.cached_share,
            prompt_tokens=sums.prompt_tokens,
            output_tokens=sums.output_tokens,
            energy_j=energy_j,
            with_branches=report.with_branches,
        )

    def attributes(self) -> dict[str, AttributeValue]:
        """As a span's attributes. Ours alone: `gen_ai.usage.*` here would be added up twice."""
        found: dict[str, AttributeValue | None] = {
            names.CONVERSATION_TURNS: self.turns,
            names.CONVERSATION_TOOL_CALLS: self.tool_calls,
            names.CONVERSATION_TRANSFERS: self.kv_transfers,
            names.CONVERSATION_REBINDS: self.rebinds,
            names.CONVERSATION_E2E_S: self.e2e_s,
            names.CONVERSATION_TTFET_S: self.ttfet_s,
            names.CONVERSATION_LAST_TBT_S: self.last_turn_tbt_s,
            names.CONVERSATION_CACHED_SHARE: self.cached_share,
            names.CONVERSATION_PROMPT_TOKENS: self.prompt_tokens,
            names.CONVERSATION_OUTPUT_TOKENS: self.output_tokens,
            names.CONVERSATION_ENERGY_J: self.energy_j,
        }
        if self.with_branches is not None:
            found |= _with_branches(self.with_branches)
        return {name: value for name, value in found.items() if value is not None}


def _with_branches(totals: ConversationTotals) -> dict[str, AttributeValue | None]:
    sums = {
        "turns": totals.turns,
        "tool_calls": totals.tools,
        "kv_transfers": totals.kv_transfers,
        "rebinds": totals.rebinds,
        "prompt_tokens": totals.prompt_tokens,
        "output_tokens": totals.completion_tokens,
        "energy_j": totals.energy.total_j,
    }
    found = {names.WITH_BRANCHES + name: value for name, value in sums.items()}
    return {names.CONVERSATION_BRANCHES: totals.branches, **found}


def _last_turn_tbt_s(turns: Sequence[TurnReport]) -> float | None:
    """Seconds between the last answered turn's tokens, on the mean; None for a single token."""
    answered = [turn for turn in turns if turn.outcome is Outcome.COMPLETED]
    if not answered:
        return None
    last = answered[-1]
    if last.ttft_s is None or last.duration_s is None or (last.completion_tokens or 0) < 2:
        return None
    return max(0.0, last.duration_s - last.ttft_s) / ((last.completion_tokens or 0) - 1)


def _sum(so_far: int | None, more: int | None) -> int | None:
    return so_far if more is None else (so_far or 0) + more
