"""Settings run over all seeds, and what is kept of each: a row of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, log, sqrt

import numpy as np

from bench.reproduce.experiment import SEEDS, Experiment, Result, Setting
from conserve_server.simulation.metrics import XAlone, conversation_times

CDF_POINTS = 100


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over the seeds, and half of its 95 % interval (normal, as seeds are few)."""

    mean: float
    plus_minus: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        mean = sum(values) / len(values)
        if len(values) == 1:
            return cls(mean, 0.0)
        variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        return cls(mean, 1.96 * sqrt(variance / len(values)))


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting over its seeds. Ratios are to the same conversation alone on an idle engine."""

    p95_ttfet_x_alone: Estimate
    geometric_mean_ttfet_x_alone: float
    p95_last_tbt_x_alone: Estimate
    p95_e2e_x_alone: Estimate
    violations: Mapping[str, float]
    tokens_per_joule: Estimate
    tokens_per_joule_range: tuple[float, float]
    output_tokens_per_joule: float
    p95_wait_s: float
    p95_first_ttft_s: float
    p95_later_ttft_s: float
    cached_share: float
    duration_s: float
    ttft_by_turn_s: Sequence[float]
    ttfet_cdf: Sequence[float]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def run_cell(experiment: Experiment, setting: Setting, seeds: Sequence[int] = SEEDS) -> Cell:
    """The setting over the seeds."""
    results = [experiment.run(setting, seed) for seed in seeds]

    def over(read: Callable[[Result], float]) -> Estimate:
        return Estimate.of([read(result) for result in results])

    return Cell(
        p95_ttfet_x_alone=over(lambda r: _alone(r).ttfet.p95),
        geometric_mean_ttfet_x_alone=exp(
            sum(log(_alone(r).ttfet_geometric_mean) for r in results) / len(results)
        ),
        p95_last_tbt_x_alone=over(lambda r: _alone(r).last_tbt.p95),
        p95_e2e_x_alone=over(lambda r: _alone(r).e2e.p95),
        violations={
            "ttfet": over(lambda r: _alone(r).ttfet_violations).mean,
            "last_tbt": over(lambda r: _alone(r).last_tbt_violations).mean,
            "e2e": over(lambda r: _alone(r).e2e_violations).mean,
        },
        tokens_per_joule=over(lambda r: r.tokens_per_joule(r.energy.modelled.total_j)),
        tokens_per_joule_range=(
            over(lambda r: r.tokens_per_joule(r.energy.most.total_j)).mean,
            over(lambda r: r.tokens_per_joule(r.energy.least.total_j)).mean,
        ),
        output_tokens_per_joule=over(lambda r: r.metrics.output_tokens / r.energy.modelled.total_j).mean,
        p95_wait_s=over(lambda r: r.metrics.wait_s.p95).mean,
        p95_first_ttft_s=over(lambda r: r.metrics.first_ttft_s.p95).mean,
        p95_later_ttft_s=over(lambda r: r.metrics.later_ttft_s.p95).mean,
        cached_share=over(lambda r: r.metrics.cached_share).mean,
        duration_s=over(lambda r: r.metrics.duration_s).mean,
        ttft_by_turn_s=_ttft_by_turn(results[0]),
        ttfet_cdf=_cdf(results[0]),
    )


def _alone(result: Result) -> XAlone:
    if result.metrics.x_alone is None:
        raise RuntimeError("the experiment compares with conversations alone")
    return result.metrics.x_alone


def _ttft_by_turn(result: Result) -> list[float]:
    """p95 TTFT by the turn's number, of one seed."""
    records = result.outcome.records
    index = np.asarray(records.index)
    ttft = np.asarray(records.first_token_s) - np.asarray(records.arrived_s)
    return [float(np.percentile(ttft[index == number], 95)) for number in range(index.max() + 1)]


def _cdf(result: Result) -> list[float]:
    """TTFET of one seed in seconds, at each percent."""
    times = conversation_times(result.outcome.records, result.setting.clock)
    return [float(value) for value in np.percentile(times.ttfet_s, np.linspace(0, 100, CDF_POINTS + 1))]
