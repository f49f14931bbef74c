"""The policies as their users would set them up, on fleets of GPUs that serve Qwen3-8B.

Baselines are not held back by a KV budget: the engines that they stand for have none. ConServe+
has one setting for everything. Speeds of the GPUs are configured (`tiers`), for all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from conserve_server.core.policy_config import SchedulerConfig
from conserve_server.energy.modelled import A100, H100_QWEN3_8B, GpuPower
from conserve_server.scheduling.policies import POLICIES
from conserve_server.scheduling.policy import Policy
from conserve_server.simulation.engine_model import EngineSettings
from conserve_server.simulation.fleet import Fleet, Options, SimulatedEngine
from conserve_server.simulation.timing import EngineTiming, Step
from conserve_server.simulation.timing_grid import grid_timing

MODEL = "qwen3-8b"
FLEETS: Final[Mapping[str, tuple[str, ...]]] = {
    "4xH100": ("h100",) * 4,
    "8xH100": ("h100",) * 8,
    "1xH100+3xA100": ("h100", "a100", "a100", "a100"),
    "2xH100+4xA100": ("h100", "h100", "a100", "a100", "a100", "a100"),
}
POWER: Final[Mapping[str, GpuPower]] = {"h100": H100_QWEN3_8B, "a100": A100}
UNBOUNDED = 1e3
"""A KV budget that never holds anybody back."""
FIRST_TURN_PRIORITY = 10
"""What a front end gives first turns so that continuations go first (0 is vLLM's default)."""

_PREFILL_STEP, _DECODE_STEP = Step(1, 512, 8192), Step(0, 0, 0, 8, 8 * 16_384)
"""What the speeds of a GPU's tier are read from, as a user would configure them."""

Kind = Literal["baseline", "conserve", "conserve_plus"]

_PREFILLS = EngineSettings(max_num_batched_tokens=8192)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy, how many of the fleet's first engines only prefill, and how the others are set.

    `prefillers` of None gives every engine both roles. `kind` tells baselines from ConServe as
    published and from ConServe+.
    """

    name: str
    policy: Callable[[], Policy]
    settings: EngineSettings
    prefillers: Callable[[int], int] | None = lambda _: 0
    first_turn_priority: int | None = None
    kind: Kind = "baseline"
    kv_budget_fraction: float = UNBOUNDED
    tells_resident: bool = False

    def fleet(self, name: str) -> Fleet:
        gpus = FLEETS[name]
        only_prefill = self.prefillers(len(gpus)) if self.prefillers else 0
        return Fleet(
            tuple(
                SimulatedEngine(
                    name=f"{gpu}-{number}",
                    timing=timing(gpu),
                    power=POWER[gpu],
                    takes_prefills=self.prefillers is None or number < only_prefill,
                    takes_conversations=number >= only_prefill,
                    settings=_PREFILLS if number < only_prefill else self.settings,
                    prefill_tokens_per_s=_PREFILL_STEP.prefill_tokens / timing(gpu).step_s(_PREFILL_STEP),
                    decode_step_s=timing(gpu).step_s(_DECODE_STEP),
                )
                for number, gpu in enumerate(gpus)
            )
        )

    @property
    def options(self) -> Options:
        return Options(
            first_turn_priority=self.first_turn_priority,
            kv_budget_fraction=self.kv_budget_fraction,
            tells_resident=self.tells_resident,
        )


_TIMINGS: dict[str, EngineTiming] = {}


def timing(gpu: str) -> EngineTiming:
    """The GPU's grid, read once."""
    if gpu not in _TIMINGS:
        _TIMINGS[gpu] = grid_timing(gpu, MODEL)
    return _TIMINGS[gpu]


def chunked(tokens: int) -> EngineSettings:
    """Small steps, half of one free for short appends, continuations first."""
    return EngineSettings(
        max_num_batched_tokens=tokens,
        long_prefill_token_threshold=tokens // 2,
        schedules_by_priority=True,
    )


def named(policy: str, **parts: object) -> Callable[[], Policy]:
    """The served policy of that name, with its configuration's defaults but for `parts`."""
    return lambda: POLICIES[policy](SchedulerConfig.model_validate(parts))


def _sticky(tokens: int) -> Candidate:
    return Candidate(
        f"sticky, chunk {tokens}",
        named("collocated_sticky"),
        chunked(tokens),
        first_turn_priority=FIRST_TURN_PRIORITY,
    )


def _quarter(engines: int) -> int:
    return max(1, engines // 4)


def _half(engines: int) -> int:
    return engines // 2


FULL_DISAGGREGATION: Final = "full disaggregation, half prefill"
BASELINES: Final = (
    Candidate("least loaded", named("collocated"), chunked(512), first_turn_priority=FIRST_TURN_PRIORITY),
    Candidate("sticky, vLLM's defaults", named("collocated_sticky"), EngineSettings()),
    _sticky(1024),
    _sticky(512),
    _sticky(256),
    Candidate(
        FULL_DISAGGREGATION,
        named("full_disaggregation", full_disaggregation={"is_sticky": True}),
        EngineSettings(),
        _half,
    ),
    Candidate("conditional, half prefill", named("conditional"), chunked(512), _half),
    Candidate("PPD, half prefill", named("ppd"), chunked(512), _half),
)
PUBLISHED: Final = (
    Candidate(
        "ConServe, a quarter prefills",
        named("conserve"),
        chunked(512),
        _quarter,
        kind="conserve",
        kv_budget_fraction=0.9,
    ),
    Candidate(
        "ConServe, half prefill",
        named("conserve"),
        chunked(512),
        _half,
        kind="conserve",
        kv_budget_fraction=0.9,
    ),
)
OURS: Final = Candidate(
    "ConServe+",
    named(
        "conserve_plus",
        conserve_plus={"first_turn_priority": FIRST_TURN_PRIORITY},
        estimates={"chunk_tokens": 512},
    ),
    EngineSettings(schedules_by_priority=True, adapts_chunks=True),
    None,
    kind="conserve_plus",
    kv_budget_fraction=2.0,
    tells_resident=True,
)
LARGER_CHUNKS: Final = replace(
    OURS, name="ConServe+, chunks from 512", settings=replace(OURS.settings, smallest_chunk_tokens=512)
)
"""The same for users who allow longer gaps; `OURS` is what is compared with the baselines."""
CANDIDATES: Final = (OURS, *BASELINES, *PUBLISHED, LARGER_CHUNKS)
