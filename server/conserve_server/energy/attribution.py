"""Whose joules an interval's are. Pure and exact: the shares and what nobody caused add up to the meter.

Two parts. What the device draws when idle belongs to the conversations that hold KV there, by
KV tokens at each instant: a conversation in a tool gap pays for keeping its place. The rest
belongs to the work done, by its marginal cost. What has no holder, or no work, is unallocated
and never smeared over those who were there at another time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from conserve_server.energy.work import Weights, Work

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Joules:
    """Energy by what it was for. `idle_j`: the idle device's, for holding KV on it."""

    prefill_j: float = 0.0
    transfer_j: float = 0.0
    decode_j: float = 0.0
    idle_j: float = 0.0

    @property
    def total_j(self) -> float:
        return self.prefill_j + self.transfer_j + self.decode_j + self.idle_j

    def __add__(self, other: Joules) -> Joules:
        return Joules(
            self.prefill_j + other.prefill_j,
            self.transfer_j + other.transfer_j,
            self.decode_j + other.decode_j,
            self.idle_j + other.idle_j,
        )


NOTHING: Final = Joules()


@dataclass(frozen=True, slots=True)
class Metered:
    """One interval of one device, or of several that work as one: joules and seconds.

    `idle_w`: what it draws with nothing to do.
    """

    energy_j: float
    duration_s: float
    idle_w: float

    @property
    def idle_j(self) -> float:
        """The part that it would have drawn anyway; never more than was metered."""
        return min(self.energy_j, self.idle_w * self.duration_s)

    @property
    def dynamic_j(self) -> float:
        return self.energy_j - self.idle_j


@dataclass(frozen=True, slots=True)
class Attribution(Generic[P]):
    """Joules by payer, and what nobody caused: idle while nobody held KV, dynamic without known work."""

    shares: tuple[tuple[P, Joules], ...]
    unallocated_idle_j: float
    unallocated_dynamic_j: float

    @property
    def charged_j(self) -> float:
        return sum(joules.total_j for _, joules in self.shares)

    @property
    def unallocated_j(self) -> float:
        return self.unallocated_idle_j + self.unallocated_dynamic_j


def attribute(
    interval: Metered,
    *,
    held: Mapping[P, float],
    held_s: float,
    work: Sequence[tuple[P, Work]],
    weights: Weights,
) -> Attribution[P]:
    """Split an interval. One payer may have several shares.

    `held`: seconds of the idle device by payer, which add up to `held_s`, the seconds in which
    anybody held KV (`SharedTime.close`). `work`: what was done within the interval.
    """
    idle_w = interval.idle_j / interval.duration_s if interval.duration_s > 0 else 0.0
    idle = [(payer, Joules(idle_j=idle_w * seconds)) for payer, seconds in held.items()]
    dynamic, unexplained_j = _by_work(interval.dynamic_j, work, weights)
    return Attribution(
        shares=(*idle, *dynamic),
        unallocated_idle_j=interval.idle_j - idle_w * held_s,
        unallocated_dynamic_j=unexplained_j,
    )


def _by_work(
    dynamic_j: float, work: Sequence[tuple[P, Work]], weights: Weights
) -> tuple[list[tuple[P, Joules]], float]:
    """The shares, and what is left where no work is known."""
    parts = [(payer, weights.prefill(w), weights.transfer(w), weights.decode(w)) for payer, w in work]
    total = sum(prefill + transfer + decode for _, prefill, transfer, decode in parts)
    if total <= 0:
        return [], dynamic_j
    return [
        (payer, Joules(dynamic_j * (p / total), dynamic_j * (t / total), dynamic_j * (d / total)))
        for payer, p, t, d in parts
    ], 0.0
