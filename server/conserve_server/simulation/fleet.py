"""What is simulated besides the workload: the engines, what connects them, and what happens to them."""

from __future__ import annotations

from dataclasses import dataclass, field

from conserve_server.core.policy_config import EstimatesConfig
from conserve_server.energy.modelled import GpuPower
from conserve_server.scheduling.engine_state import EngineProfile
from conserve_server.simulation.engine_model import EngineModel, EngineSettings
from conserve_server.simulation.host_tier import HostMemory
from conserve_server.simulation.link import Link
from conserve_server.simulation.timing import EngineTiming

NVLINK_OR_RDMA = Link(latency_s=0.005, bytes_per_s=40e9)
"""400 Gbit/s RDMA at four fifths of its rate, and NIXL's handshake of some milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedEngine:
    """One engine: its roles, its model's timing on its GPU, its settings, its watts.

    `power_cap_w` bounds the watts; that it also slows the engine is for `timing` to say (`CappedTiming`).
    Speeds are None where the scheduler is to observe them (`tiers` in a configuration).
    """

    name: str
    timing: EngineTiming
    power: GpuPower
    settings: EngineSettings = field(default_factory=EngineSettings)
    takes_prefills: bool = False
    takes_conversations: bool = False
    kv_capacity_tokens: int | None = None
    host: HostMemory | None = None
    prefill_tokens_per_s: float | None = None
    decode_step_s: float | None = None
    power_cap_w: float | None = None

    def capped(self, power: GpuPower) -> GpuPower:
        """Those watts under the engine's cap."""
        return power if self.power_cap_w is None else power.capped(self.power_cap_w)

    @property
    def profile(self) -> EngineProfile:
        return EngineProfile(
            self.name,
            self.takes_prefills,
            self.takes_conversations,
            self.prefill_tokens_per_s,
            self.decode_step_s,
        )

    def model(self) -> EngineModel:
        """A new engine, idle and empty."""
        return EngineModel(
            self.name,
            self.timing,
            self.settings,
            kv_capacity_tokens=self.kv_capacity_tokens,
            host=self.host,
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """An engine dies and comes back empty."""

    at_s: float
    engine: str
    down_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the run is driven. Defaults are those of the gateway.

    `is_replay`: turns tell their conversation's total, as `conserve.mode = "oracle"` needs.
    `first_turn_priority`: priority of first turns that the policy gave none. `releases_kv`:
    engines free a conversation's KV when it ends, and `tells_resident`: they tell what they still hold of a
    conversation at rest (stock vLLM does neither, `conserve_vllm` both). `reports_every_s`: how
    often engines report their load; None never. `fetch_lead_s`: how long before a turn its tool
    has ended and its KV is fetched from a host tier; None: the turn loads it itself.
    """

    kv_budget_fraction: float = 0.9
    estimates: EstimatesConfig = field(default_factory=EstimatesConfig)
    is_replay: bool = False
    first_turn_priority: int | None = None
    releases_kv: bool = False
    tells_resident: bool = False
    reports_every_s: float | None = 1.0
    fetch_lead_s: float | None = None
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Fleet:
    """Engines in the order of their configuration."""

    engines: tuple[SimulatedEngine, ...]
    link: Link = NVLINK_OR_RDMA
