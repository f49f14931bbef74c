"""The metrics, each defined once: what the simulator, live benchmarks and the documentation mean by them.

- TTFT: a turn's first token minus its arrival. TBT of a turn: the mean gap between its output tokens.
- TTFET, time to first effective token: the first token of a conversation's *last* turn minus its
  arrival, without the time in its tools. E2E: the end of that turn minus the arrival, likewise.
- x alone: the ratio to the same conversation's value alone on an idle engine.
- SLO: a conversation violates it where it takes more than 5 × its value alone (arXiv 2606.01839).
- Goodput: conversations a second that violate none of the three.
- Cached share: prompt tokens that no engine had to compute, of all prompt tokens.

The clock starts at arrival and every queue counts, unless `Clock.ADMISSION` leaves the wait for
room on a decoder out, as the paper does for some policies. Times are in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from conserve_server.simulation.gaps import Gaps
from conserve_server.simulation.records import Records

SLO_FACTOR = 5.0

Values = NDArray[np.float64]


class Clock(StrEnum):
    """When a turn's time begins: when it arrives, or when it is first sent to an engine."""

    ARRIVAL = "arrival"
    ADMISSION = "admission"


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles; all 0 of nothing."""

    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0

    @classmethod
    def of(cls, values: Values) -> Spread:
        """That of the values, percentiles interpolated linearly."""
        if not len(values):
            return cls()
        p50, p95, p99 = np.percentile(values, (50, 95, 99))
        return cls(float(values.mean()), float(p50), float(p95), float(p99))


@dataclass(frozen=True, slots=True)
class Alone:
    """One conversation's values alone on an idle engine, in seconds. `last_tbt_s` is 0 without a gap."""

    ttfet_s: float
    last_tbt_s: float
    e2e_s: float


@dataclass(frozen=True, slots=True)
class ConversationTimes:
    """One row a conversation, by its number, in seconds; those that did not end are left out."""

    numbers: NDArray[np.int64]
    ttfet_s: Values
    last_tbt_s: Values
    e2e_s: Values


@dataclass(frozen=True, slots=True)
class XAlone:
    """Ratios to the same conversations alone, and the share of them that violate the SLO."""

    ttfet: Spread
    ttfet_geometric_mean: float
    last_tbt: Spread
    e2e: Spread
    ttfet_violations: float
    last_tbt_violations: float
    e2e_violations: float
    goodput_per_s: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a workload saw of a fleet. `gap_*`: over all gaps between output tokens, to one percent."""

    conversations: int
    turns: int
    duration_s: float
    ttfet_s: Spread
    last_tbt_s: Spread
    e2e_s: Spread
    ttft_s: Spread
    first_ttft_s: Spread
    later_ttft_s: Spread
    wait_s: Spread
    tbt_s: Spread
    gap_p50_s: float
    gap_p95_s: float
    gap_p99_s: float
    conversations_per_s: float
    output_tokens_per_s: float
    prompt_tokens: int
    output_tokens: int
    cached_share: float
    transfers: int
    moved_tokens: int
    retried_turns: int
    x_alone: XAlone | None = None

    def to_json(self) -> dict[str, object]:
        """As a JSON object."""
        return asdict(self)


def metrics(
    records: Records,
    gaps: Sequence[Gaps],
    duration_s: float,
    *,
    clock: Clock = Clock.ARRIVAL,
    alone: Mapping[int, Alone] | None = None,
) -> Metrics:
    """The metrics of all ended turns. `alone`: by the conversation's number; `gaps` by engine."""
    times = conversation_times(records, clock)
    index, output = _integers(records.index), _integers(records.output_tokens)
    prompt, moved = _integers(records.prompt_tokens), _integers(records.moved_tokens)
    begins = _begins(records, clock)
    ttft = _floats(records.first_token_s) - begins
    decoded = output > 1
    tbt = (_floats(records.ended_s) - _floats(records.first_token_s))[decoded] / (output[decoded] - 1)
    all_gaps = Gaps().merge(gaps)
    return Metrics(
        conversations=len(times.numbers),
        turns=len(records),
        duration_s=duration_s,
        ttfet_s=Spread.of(times.ttfet_s),
        last_tbt_s=Spread.of(times.last_tbt_s[times.last_tbt_s > 0]),
        e2e_s=Spread.of(times.e2e_s),
        ttft_s=Spread.of(ttft),
        first_ttft_s=Spread.of(ttft[index == 0]),
        later_ttft_s=Spread.of(ttft[index > 0]),
        wait_s=Spread.of(_floats(records.wait_s)),
        tbt_s=Spread.of(tbt),
        gap_p50_s=all_gaps.quantile_s(0.5) or 0.0,
        gap_p95_s=all_gaps.quantile_s(0.95) or 0.0,
        gap_p99_s=all_gaps.quantile_s(0.99) or 0.0,
        conversations_per_s=len(times.numbers) / duration_s if duration_s else 0.0,
        output_tokens_per_s=float(output.sum()) / duration_s if duration_s else 0.0,
        prompt_tokens=int(prompt.sum()),
        output_tokens=int(output.sum()),
        cached_share=_share(int(_integers(records.cached_tokens).sum()), int(prompt.sum())),
        transfers=int((moved > 0).sum()),
        moved_tokens=int(moved.sum()),
        retried_turns=int((_integers(records.tries) > 1).sum()),
        x_alone=_x_alone(times, alone, duration_s) if alone is not None else None,
    )


def conversation_times(records: Records, clock: Clock = Clock.ARRIVAL) -> ConversationTimes:
    """TTFET, last-turn TBT and E2E of each conversation that ended."""
    number, last = _integers(records.conversation), _integers(records.is_last).astype(bool)
    begins, ended = _begins(records, clock), _floats(records.ended_s)
    first, output = _floats(records.first_token_s), _integers(records.output_tokens)
    busy = np.zeros(int(number.max(initial=-1)) + 1)
    np.add.at(busy, number, ended - begins)
    numbers = number[last]
    e2e = busy[numbers]
    answer = (ended - first)[last]
    gaps = np.maximum(output[last] - 1, 1)
    return ConversationTimes(numbers, e2e - answer, answer / gaps, e2e)


def _x_alone(times: ConversationTimes, alone: Mapping[int, Alone], duration_s: float) -> XAlone:
    each = [alone[int(number)] for number in times.numbers]
    ttfet = times.ttfet_s / np.array([a.ttfet_s for a in each])
    e2e = times.e2e_s / np.array([a.e2e_s for a in each])
    tbt_alone = np.array([a.last_tbt_s for a in each])
    has_gaps = tbt_alone > 0
    tbt = np.ones(len(each))
    tbt[has_gaps] = times.last_tbt_s[has_gaps] / tbt_alone[has_gaps]
    kept = (ttfet <= SLO_FACTOR) & (tbt <= SLO_FACTOR) & (e2e <= SLO_FACTOR)
    return XAlone(
        ttfet=Spread.of(ttfet),
        ttfet_geometric_mean=float(np.exp(np.log(ttfet).mean())) if len(ttfet) else 0.0,
        last_tbt=Spread.of(tbt[has_gaps]),
        e2e=Spread.of(e2e),
        ttfet_violations=_violations(ttfet),
        last_tbt_violations=_violations(tbt),
        e2e_violations=_violations(e2e),
        goodput_per_s=float(kept.sum()) / duration_s if duration_s else 0.0,
    )


def _violations(ratios: Values) -> float:
    return float((ratios > SLO_FACTOR).mean()) if len(ratios) else 0.0


def _begins(records: Records, clock: Clock) -> Values:
    arrived = _floats(records.arrived_s)
    return arrived + _floats(records.wait_s) if clock is Clock.ADMISSION else arrived


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _floats(column: Sequence[float]) -> Values:
    return np.asarray(column, dtype=np.float64)


def _integers(column: Sequence[int]) -> NDArray[np.int64]:
    return np.asarray(column, dtype=np.int64)
