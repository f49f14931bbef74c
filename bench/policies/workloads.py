"""The workloads that policies are compared on, and how their conversations arrive.

| name | what it is |
| --- | --- |
| A | the paper's trace: 5 turns, 67 tokens appended, no tool time |
| A2 | the same with appended tokens of median 870 (log-normal, sigma 1) |
| B | real coding sessions (Claude Code), cut at 40k tokens of context, nothing shared |
| BS | the same, whose tools and system prompt are one shared prefix |
| C | short tool chat (the `tool-chat` profile, tau-bench's statistics) |
| S | self-hosted coding agents (the `coding-agent` profile), cut at 40k tokens of context |
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final, Literal

from conserve_server.simulation.workload import ConversationShape, Workload
from conserve_server.simulation.workloads.arrivals import bursty, poisson
from conserve_server.simulation.workloads.artifact import artifact_conversations
from conserve_server.simulation.workloads.profiles import profile_conversations
from conserve_server.simulation.workloads.recorded import cut
from conserve_server.simulation.workloads.sessions import coding_sessions

MAX_CONTEXT_TOKENS = 40_000
MAX_GAP_S = 600.0
"""Longer absences are cut to this: a run would otherwise measure its stragglers."""
Kind = Literal["poisson", "bursty"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where conversations come from, and how many a run on four engines takes, in proportion on more.

    Enough for a p95 that settles, and for arrivals that go on for longer than a conversation does.
    """

    conversations: Callable[[], Sequence[ConversationShape]]
    count: int


def _paper() -> list[ConversationShape]:
    return [replace(c, turns=c.turns[:5]) for c in artifact_conversations() if len(c.turns) >= 5]


def _paper_with_appends() -> list[ConversationShape]:
    draw = random.Random(7)

    def appended() -> int:
        return max(1, round(870 * draw.lognormvariate(0, 1)))

    return [
        replace(c, turns=(c.turns[0], *(replace(t, appended_tokens=appended()) for t in c.turns[1:])))
        for c in _paper()
    ]


def _cut(conversations: Sequence[ConversationShape]) -> list[ConversationShape]:
    found = (cut(c, max_context_tokens=MAX_CONTEXT_TOKENS, max_gap_s=MAX_GAP_S) for c in conversations)
    return [c for c in found if c is not None]


SOURCES: Final[Mapping[str, Source]] = {
    "A": Source(_paper, 300),
    "A2": Source(_paper_with_appends, 300),
    "B": Source(lambda: _cut(coding_sessions(shares_prefix=False)), 150),
    "BS": Source(lambda: _cut(coding_sessions()), 600),
    "C": Source(lambda: profile_conversations("tool-chat", count=2000, seed=1), 2000),
    "S": Source(lambda: _cut(profile_conversations("coding-agent", count=200, seed=1)), 150),
}


@cache
def conversations(name: str) -> Sequence[ConversationShape]:
    """The workload's conversations, read once."""
    return SOURCES[name].conversations()


def workload(name: str, rate_per_s: float, seed: int, kind: Kind, *, engines: int) -> Workload:
    """So many of them at that rate as so many engines take."""
    arrive = poisson if kind == "poisson" else bursty
    count = SOURCES[name].count * engines // 4
    return arrive(conversations(name), rate_per_s=rate_per_s, count=count, seed=seed, name=name)
