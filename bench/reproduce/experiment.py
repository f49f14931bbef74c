"""The paper's experiment as data: its fleet, its conversations, its policies, and one run of them.

vLLM 0.11 with Qwen3-0.6B on 4 x A40, 255 conversations of exactly 5 turns from the artifact's trace
(arXiv 2606.01839). Constants are the artifact's own measurements (`simulation/timing_paper.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.reproduce.stitched import StitchedSimulator, Stitching
from conserve_server.core.policy_config import (
    AMPDEmulatedConfig,
    ConServeConfig,
    FullDisaggregationConfig,
    SchedulerConfig,
)
from conserve_server.energy.modelled import A40
from conserve_server.scheduling.policies import POLICIES
from conserve_server.scheduling.policies.ampd_emulated import AMPDEmulated
from conserve_server.scheduling.policies.conserve import ConServe
from conserve_server.scheduling.policy import Policy
from conserve_server.simulation.engine_model import EngineSettings
from conserve_server.simulation.fleet import Fleet, Options, SimulatedEngine
from conserve_server.simulation.link import Link
from conserve_server.simulation.metrics import Clock, Metrics, metrics
from conserve_server.simulation.power import FleetEnergy, fleet_energy
from conserve_server.simulation.simulator import Outcome, Simulator
from conserve_server.simulation.standalone import Standalone
from conserve_server.simulation.timing_paper import KV_BYTES_PER_TOKEN, KV_CAPACITY_TOKENS, PaperTiming
from conserve_server.simulation.workload import Workload
from conserve_server.simulation.workloads.arrivals import poisson
from conserve_server.simulation.workloads.artifact import artifact_conversations

CONVERSATIONS, TURNS = 255, 5
HEADLINE_RATE = 1.634
RATES = (0.5, 0.75, 1.0, 1.25, 1.45, HEADLINE_RATE)
SEEDS = (1, 2, 3, 4, 5)

PAPER_LINK = Link(
    latency_s=5.27e-3 + 4e-3,
    bytes_per_s=KV_BYTES_PER_TOKEN / (0.985e-6 + 2 * 5e-6 / 16),
    short_tokens=1024,
    short_s=4.849e-3 + 4e-3 + 1024 * 2 * 5e-6 / 16,
)
"""The measured transfer with the KV bookkeeping of both sides in it: 2 x (2 ms + 5 µs a block)."""

_PREFILLS = EngineSettings(max_num_seqs=1024, max_num_batched_tokens=8192, schedules_by_priority=True)
_DECODES = EngineSettings(max_num_seqs=1024, max_num_batched_tokens=2944)


@dataclass(frozen=True, slots=True)
class Setting:
    """One cell: the fleet, the policy and how honest the clocks are.

    `policy`: `collocated` binds a conversation to one of four mixed engines at its first turn, as
    the paper's does; `ampd_emulated` has `wrong_share` of wrong turns. `stitching`: None runs
    everything that happens. `mode`: the reservation of ConServe and of the policies built on it.
    """

    policy: str
    rate_per_s: float = HEADLINE_RATE
    decoder_cap_w: float = 300.0
    wrong_share: float = 0.1
    clock: Clock = Clock.ARRIVAL
    stitching: Stitching | None = None
    mode: str = "oracle"
    prefillers: int = 1
    prefiller_kv: float = 1.0
    """The prefiller's KV, in times an A40's: what a tier of host memory would add."""
    is_sticky: bool = False
    """Whether full disaggregation returns to the engines of the turn before."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one seed of a setting gave."""

    setting: Setting
    metrics: Metrics
    energy: FleetEnergy
    outcome: Outcome

    def tokens_per_joule(self, joules: float) -> float:
        """As the paper counts: the whole context again on every turn."""
        return (self.metrics.prompt_tokens + self.metrics.output_tokens) / joules


def published(policy: str, rate_per_s: float = HEADLINE_RATE, **more: object) -> Setting:
    """The paper's own way to measure that policy."""
    setting = Setting(policy, rate_per_s, **more)  # type: ignore[arg-type]
    if policy == "full_disaggregation":
        return setting  # run as it is, every wait inside its clock
    is_stitched = policy in ("conserve", "ampd_emulated")
    return replace(setting, clock=Clock.ADMISSION, stitching=Stitching() if is_stitched else None)


def fleet(setting: Setting) -> Fleet:
    """4 x A40: the prefillers at 300 W, the others under the cap."""
    prefillers = 0 if setting.policy in ("collocated", "collocated_sticky") else setting.prefillers
    return Fleet(tuple(_engine(n, setting, is_prefiller=n < prefillers) for n in range(4)), PAPER_LINK)


def _engine(number: int, setting: Setting, *, is_prefiller: bool) -> SimulatedEngine:
    cap_w = 300.0 if is_prefiller else setting.decoder_cap_w
    return SimulatedEngine(
        name=f"{'p' if is_prefiller else 'd'}{number}",
        timing=PaperTiming(power_cap_w=cap_w),
        power=A40,
        power_cap_w=cap_w,
        takes_prefills=is_prefiller,
        takes_conversations=not is_prefiller,
        kv_capacity_tokens=round(KV_CAPACITY_TOKENS * (setting.prefiller_kv if is_prefiller else 1.0)),
        settings=_PREFILLS if is_prefiller else _DECODES,
    )


def _policy(setting: Setting) -> Policy:
    if setting.policy in ("conserve", "collocated"):
        return ConServe(ConServeConfig.model_validate({"mode": setting.mode}))
    if setting.policy == "ampd_emulated":
        conserve = ConServe(ConServeConfig.model_validate({"mode": setting.mode}))
        return AMPDEmulated(AMPDEmulatedConfig(wrong_share=setting.wrong_share), conserve)
    config = SchedulerConfig(full_disaggregation=FullDisaggregationConfig(is_sticky=setting.is_sticky))
    return POLICIES[setting.policy](config)


class Experiment:
    """The trace's conversations cut to `turns`, and each of them alone on an idle A40 at 300 W.

    `gap_s` and `appended_tokens` replace the trace's of later turns, where given.
    """

    def __init__(
        self, turns: int = TURNS, *, gap_s: float | None = None, appended_tokens: int | None = None
    ) -> None:
        changes: dict[str, float | int] = {}
        if gap_s is not None:
            changes["gap_s"] = gap_s
        if appended_tokens is not None:
            changes["appended_tokens"] = appended_tokens
        self.conversations = [
            replace(c, turns=(c.turns[0], *(replace(t, **changes) for t in c.turns[1:turns])))  # type: ignore[arg-type]
            for c in artifact_conversations()
            if len(c.turns) >= turns
        ]
        alone = Setting("collocated")
        self._alone = Standalone(_engine(0, alone, is_prefiller=False))

    def workload(self, setting: Setting, seed: int) -> Workload:
        return poisson(
            self.conversations, rate_per_s=setting.rate_per_s, count=CONVERSATIONS, seed=seed, name="artifact"
        )

    def run(self, setting: Setting, seed: int) -> Result:
        """One seed of the setting."""
        work, where = self.workload(setting, seed), fleet(setting)
        # An oracle may fill the KV, as in the artifact; reservations that grow need room to.
        budget = 1.0 if setting.mode == "oracle" else 0.9
        options = Options(is_replay=True, kv_budget_fraction=budget)
        policy = _policy(setting)
        if setting.stitching is None:
            outcome = Simulator(policy, where, options).run(work)
        else:
            outcome = StitchedSimulator(policy, where, options, setting.stitching).run(work)
        gaps = [engine.activity.gaps for engine in outcome.engines.values()]
        found = metrics(
            outcome.records, gaps, outcome.ends_s, clock=setting.clock, alone=self._alone.all_of(work)
        )
        return Result(setting, found, fleet_energy(where, outcome), outcome)
