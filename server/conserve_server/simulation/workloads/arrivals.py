"""Arrival processes: when conversations come. Seeded: the same seed, the same workload."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from conserve_server.core.errors import ConfigError

from ..workload import Arrival, ConversationShape, Workload


def poisson(
    conversations: Sequence[ConversationShape], *, rate_per_s: float, count: int, seed: int, name: str
) -> Workload:
    """`count` conversations at `rate_per_s`, each as likely at any moment."""
    return bursty(conversations, rate_per_s=rate_per_s, count=count, seed=seed, name=name, variation=1.0)


def bursty(
    conversations: Sequence[ConversationShape],
    *,
    rate_per_s: float,
    count: int,
    seed: int,
    name: str,
    variation: float = 3.0,
) -> Workload:
    """`count` conversations at `rate_per_s` on average, in bursts.

    Times between arrivals have a gamma distribution, `variation` is their standard deviation over
    their mean: 1 is Poisson, more is burstier. Conversations are drawn without repetition; when all
    were drawn they begin again, under new ids.
    """
    if rate_per_s <= 0 or variation <= 0:
        raise ConfigError(f"rate and variation must be above 0, got {rate_per_s:g} and {variation:g}")
    rng = random.Random(seed)  # noqa: S311  a workload is repeatable, not secret
    shape = 1 / variation**2
    scale_s = 1 / (rate_per_s * shape)
    at_s, arrivals = 0.0, []
    for conversation in itertools.islice(drawn(conversations, rng), count):
        arrivals.append(Arrival(at_s, conversation))
        at_s += rng.gammavariate(shape, scale_s)
    return Workload(name, tuple(arrivals))


def evenly(
    conversations: Sequence[ConversationShape], *, rate_per_s: float, count: int, seed: int, name: str
) -> Workload:
    """`count` conversations, one every `1 / rate_per_s` seconds."""
    if rate_per_s <= 0:
        raise ConfigError(f"the rate must be above 0, got {rate_per_s:g}")
    rng = random.Random(seed)  # noqa: S311  a workload is repeatable, not secret
    chosen = itertools.islice(drawn(conversations, rng), count)
    return Workload(name, tuple(Arrival(i / rate_per_s, each) for i, each in enumerate(chosen)))


def drawn(conversations: Sequence[ConversationShape], rng: random.Random) -> Iterator[ConversationShape]:
    """The conversations in random order, round after round, each under an id of its own. Endless."""
    if not conversations:
        raise ConfigError("there is no conversation to draw from")
    for round_number in itertools.count(1):
        order = rng.sample(conversations, len(conversations))
        yield from order if round_number == 1 else (replace(c, id=f"{c.id}#{round_number}") for c in order)


def paced(workload: Workload, speed: float) -> Workload:
    """The same arrivals `speed` times as fast; the gaps inside conversations stay as they are."""
    if speed <= 0:
        raise ConfigError(f"the speed must be above 0, got {speed:g}")
    arrivals = tuple(replace(each, at_s=each.at_s / speed) for each in workload.arrivals)
    return replace(workload, arrivals=arrivals)
