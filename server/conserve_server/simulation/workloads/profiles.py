"""Synthetic conversations with published statistics, for those who have no trace of their own.

Each quantity is drawn from a log-normal distribution through the published median and 95th
percentile; docs/workloads.md compares what comes out with what was published, means included.
Nothing is correlated: real conversations are less even than these.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from conserve_server.core.errors import ConfigError

from ..workload import ConversationShape, TurnShape

_Z95 = 1.6448536269514722
"""Standard deviations from the median to the 95th percentile of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A log-normal quantity by its median and its 95th percentile, cut off at `most`."""

    p50: float
    p95: float
    most: float = math.inf

    def draw(self, rng: random.Random) -> float:
        sigma = math.log(self.p95 / self.p50) / _Z95
        return min(rng.lognormvariate(math.log(self.p50), sigma), self.most)


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of agent. Lengths are tokens, gaps seconds; `max_context_tokens` ends a conversation."""

    name: str
    source: str
    turns: Spread
    first_input: Spread
    shared_prefix_tokens: int
    appended: Spread
    output: Spread
    gap_s: Spread
    max_context_tokens: int = 128_000


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "coding-agent",
            "Claude Code on SWE-rebench with a self-hosted GLM-4.7-Flash, 111 conversations (agentcgroup); "
            "of its gaps 60 % are under 0.1 s, the mean is 3.4 s; the shared prefix is assumed",
            turns=Spread(45, 112),
            first_input=Spread(13_400, 14_100),
            shared_prefix_tokens=11_000,
            appended=Spread(180, 2_173),
            output=Spread(145, 784),
            # Its median is not published: this one gives 60 % under 0.1 s and 11 s at the 95th percentile.
            gap_s=Spread(0.0425, 11.0, most=150.0),
        ),
        Profile(
            "interactive-coding",
            "Claude Code sessions that start fresh, cut at 128k tokens, 379 conversations "
            "(github.com/callanjfox/kv-cache-tester)",
            turns=Spread(52, 118),
            first_input=Spread(19_000, 27_700),
            shared_prefix_tokens=14_700,
            appended=Spread(203, 5_684),
            output=Spread(204, 1_339),
            gap_s=Spread(7.0, 130.0, most=3600.0),
        ),
        Profile(
            "tool-chat",
            "tau-bench airline with gpt-4o, 200 conversations; its gaps were not recorded and are assumed, "
            "as are the shared prefix and the spread of the first input",
            turns=Spread(11, 23),
            first_input=Spread(1_300, 1_600),
            shared_prefix_tokens=1_200,
            appended=Spread(36, 417),
            output=Spread(66, 221),
            gap_s=Spread(0.5, 10.0, most=120.0),
        ),
        Profile(
            "deep-research",
            "assumed: no statistics by turn were found published; searches that add much and take seconds, "
            "and a prefix of tools that is short",
            turns=Spread(15, 40),
            first_input=Spread(3_000, 6_000),
            shared_prefix_tokens=2_000,
            appended=Spread(2_500, 9_000),
            output=Spread(250, 1_200),
            gap_s=Spread(3.0, 20.0, most=120.0),
        ),
    )
}
"""The profiles by name."""


def profile_conversations(name: str, *, count: int, seed: int) -> list[ConversationShape]:
    """`count` conversations of a profile; the same seed, the same conversations."""
    if name not in PROFILES:
        raise ConfigError(f"there is no profile {name!r}; there are: {', '.join(PROFILES)}")
    rng = random.Random(seed)  # noqa: S311  a workload is repeatable, not secret
    return [_conversation(PROFILES[name], f"{name}-{index}", rng) for index in range(count)]


def _conversation(profile: Profile, name: str, rng: random.Random) -> ConversationShape:
    shared = profile.shared_prefix_tokens
    first = max(round(profile.first_input.draw(rng)), shared + 1)
    turns = [TurnShape(first, _at_least_one(profile.output, rng))]
    context = first + turns[0].output_tokens
    for _ in range(round(profile.turns.draw(rng)) - 1):
        turn = TurnShape(
            _at_least_one(profile.appended, rng), _at_least_one(profile.output, rng), profile.gap_s.draw(rng)
        )
        context += turn.appended_tokens + turn.output_tokens
        if context > profile.max_context_tokens:
            break
        turns.append(turn)
    return ConversationShape(name, tuple(turns), profile.name, shared)


def _at_least_one(spread: Spread, rng: random.Random) -> int:
    return max(round(spread.draw(rng)), 1)
