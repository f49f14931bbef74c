"""What a planner weighs: offers of GPUs, objectives, candidate fleets, and what was found of each."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from conserve_server.core.errors import ConfigError
from conserve_server.core.policy_config import ConServePlusConfig, SchedulerConfig
from conserve_server.energy.modelled import H100, GpuPower, gpu_power, scaled
from conserve_server.simulation.calibration import read_calibration
from conserve_server.simulation.engine_model import EngineSettings
from conserve_server.simulation.fleet import Fleet, SimulatedEngine
from conserve_server.simulation.metrics import Metrics
from conserve_server.simulation.power_cap import CappedTiming
from conserve_server.simulation.timing import EngineTiming, Step
from conserve_server.simulation.timing_grid import grid_timing
from conserve_vllm.chunk_rule import SMALLEST_TOKENS

# Limits of GPUs whose watts by phase nobody published: they are scaled from an H100's, an assumption.
_LIMITS_W: Final[Mapping[str, float]] = {"h200": 700, "b200": 1000, "rtx-pro-6000": 600}
_PREFILL = EngineSettings(max_num_batched_tokens=8192)
_DECODE = EngineSettings(max_num_batched_tokens=512)
_PROMPT_TOKENS = 2048
_DECODES, _CONTEXT_TOKENS = 16, 8192
"""The batch whose step is told as a GPU's: policies want one figure."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A kind of GPU that may be used: at most `count` of them, at a price an hour each.

    `timing_file`: a calibration in place of the shipped grid. `cap_w`: a power cap.
    """

    gpu: str
    count: int
    price_per_h: float
    timing_file: pathlib.Path | None = None
    cap_w: float | None = None

    @property
    def label(self) -> str:
        return self.gpu if self.cap_w is None else f"{self.gpu} at {self.cap_w:g} W"

    @property
    def power(self) -> GpuPower:
        """The GPU's watts, without the cap. Raises ConfigError for a GPU of which no limit is known."""
        return self.power_with("")

    def power_with(self, model: str) -> GpuPower:
        """The same, as fitted to the model where that is known."""
        tail = model.lower().rpartition("/")[2]
        found = gpu_power(f"{self.gpu}-{tail}") or gpu_power(self.gpu)
        if found is not None:
            return found
        if self.gpu not in _LIMITS_W:
            raise ConfigError(f"nothing is known of the watts of {self.gpu!r}: name a GPU of docs/timing.md")
        return scaled(H100, self.gpu, _LIMITS_W[self.gpu])

    def prefill_tokens_per_s(self, model: str) -> float:
        """Of one prompt by itself."""
        return _PROMPT_TOKENS / self.timing(model).step_s(Step(1, _PROMPT_TOKENS))

    def decode_step_s(self, model: str) -> float:
        """Of a middling batch."""
        return self.timing(model).step_s(Step(0, 0, 0, _DECODES, _DECODES * _CONTEXT_TOKENS))

    def timing(self, model: str) -> EngineTiming:
        """The model's timing on this GPU, under the cap."""
        if self.timing_file is not None:
            timing: EngineTiming = read_calibration(self.timing_file).timing
        else:
            timing = grid_timing(self.gpu, model)
        limit_w = self.power.limit_w
        if self.cap_w is None or self.cap_w >= limit_w:
            return timing
        return CappedTiming(timing, self.cap_w / limit_w)


@dataclass(frozen=True, slots=True)
class Objectives:
    """What users must get; None leaves one out. Seconds; the gap is that between output tokens."""

    first_ttft_p95_s: float | None = 3.0
    later_ttft_p95_s: float | None = 1.5
    gap_p99_s: float | None = 0.04
    ttfet_p95_s: float | None = None

    def missed(self, found: Metrics) -> list[str]:
        """The objectives that are not met, with what was found."""
        checks = (
            ("first TTFT p95", found.first_ttft_s.p95, self.first_ttft_p95_s),
            ("later TTFT p95", found.later_ttft_s.p95, self.later_ttft_p95_s),
            ("gap p99", found.gap_p99_s, self.gap_p99_s),
            ("TTFET p95", found.ttfet_s.p95, self.ttfet_p95_s),
        )
        return [f"{name} {value:.3g} s" for name, value, most in checks if most is not None and value > most]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A fleet under a policy: `prefillers` of one offer, `decoders` of one.

    Without prefillers every engine has both roles, and under ConServe+ with them, too; its chunks
    grow with the load from `smallest_chunk_tokens` on.
    """

    policy: str
    decode: Offer
    decoders: int
    prefill: Offer | None = None
    prefillers: int = 0
    smallest_chunk_tokens: int = SMALLEST_TOKENS

    @property
    def is_plus(self) -> bool:
        return self.policy == "conserve_plus"

    @property
    def price_per_h(self) -> float:
        prefill = self.prefill.price_per_h * self.prefillers if self.prefill else 0.0
        return prefill + self.decode.price_per_h * self.decoders

    @property
    def engines(self) -> int:
        return self.prefillers + self.decoders

    @property
    def label(self) -> str:
        decode = f"{self.decoders} x {self.decode.label}"
        chunks = f", chunks from {self.smallest_chunk_tokens} tokens" if self.is_plus else ""
        if self.prefill is None:
            return f"{self.policy}: {decode}{chunks}"
        prefill = f"{self.prefillers} x {self.prefill.label}"
        if self.is_plus:
            return f"{self.policy}: {prefill} + {decode}{chunks}"
        return f"{self.policy}: {prefill} prefill + {decode} decode"

    @property
    def scheduler(self) -> SchedulerConfig:
        """The scheduler's part of the configuration."""
        if not self.is_plus:
            return SchedulerConfig(policy=self.policy)
        smallest = self.smallest_chunk_tokens
        plus = ConServePlusConfig(first_turn_priority=10, smallest_chunk_tokens=smallest)
        return SchedulerConfig(policy=self.policy, conserve_plus=plus)

    def fleet(self, model: str) -> Fleet:
        """Its engines."""
        both = self.is_plus or self.prefill is None
        settings = self._plus_settings if self.is_plus else _DECODE
        engines = []
        for number, offer in enumerate(self.prefill_offers):
            set_up = settings if both else _PREFILL
            engines.append(_engine(f"prefill-{number}", offer, model, set_up, prefills=True, decodes=both))
        for number in range(self.decoders):
            engine = _engine(f"decode-{number}", self.decode, model, settings, prefills=both, decodes=True)
            engines.append(engine)
        return Fleet(tuple(engines))

    @property
    def prefill_offers(self) -> tuple[Offer, ...]:
        """The offer of each prefiller."""
        return (self.prefill,) * self.prefillers if self.prefill is not None else ()

    @property
    def _plus_settings(self) -> EngineSettings:
        smallest = self.smallest_chunk_tokens
        return EngineSettings(schedules_by_priority=True, adapts_chunks=True, smallest_chunk_tokens=smallest)


def _engine(
    name: str, offer: Offer, model: str, settings: EngineSettings, *, prefills: bool, decodes: bool = False
) -> SimulatedEngine:
    return SimulatedEngine(
        name=name,
        timing=offer.timing(model),
        power=offer.power_with(model),
        settings=settings,
        takes_prefills=prefills,
        takes_conversations=decodes,
        power_cap_w=offer.cap_w,
        prefill_tokens_per_s=offer.prefill_tokens_per_s(model),
        decode_step_s=offer.decode_step_s(model),
    )


@dataclass(frozen=True, slots=True)
class Assessed:
    """What the simulator says of a candidate. `missed` says why it is no plan; joules are modelled.

    `joules_per_token`: of output, with the ends of the range that the model of watts errs in.
    """

    candidate: Candidate
    missed: list[str] = field(default_factory=list)
    joules_per_token: float = 0.0
    joules_range: tuple[float, float] = (0.0, 0.0)
    metrics: Metrics | None = None

    @property
    def is_plan(self) -> bool:
        return not self.missed
