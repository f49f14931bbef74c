"""The constants of the placement policies, one part a policy: each with its default and its reason.

Sources are named in `docs/policies.md`.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from conserve_server.core.config_part import Part, Seconds

Phase = Literal["prefill", "decode"]


class EstimatesConfig(Part):
    """How waits are estimated from what is observed, for every policy that weighs them."""

    window_s: Seconds = 30.0
    """How far back rates and latencies are averaged: several first turns at low load, still
    short against a change of load."""
    chunk_tokens: int = Field(default=2048, gt=0)
    """Prompt tokens that an engine prefills in one step: vLLM's default on large GPUs."""
    prefill_tokens_per_s: float = Field(default=8000.0, gt=0)
    """Prefill speed of an engine without a tier until it was observed: a small model on a
    mid-range GPU. What matters at first is that all engines start equal."""
    decode_step_s: Seconds = 0.03
    """Time of one decode step of an engine without a tier until it was observed."""
    speed_smoothing: float = Field(default=0.2, gt=0, le=1)
    """Weight of the newest observation of an engine's speed: the last five count for most."""
    min_speed_sample_tokens: int = Field(default=256, gt=0)
    """Shorter prefills tell the cost of a step rather than a speed, and are not counted."""
    fresh_smoothing: float = Field(default=0.1, gt=0, le=1)
    """Weight of the newest first turn in the share of a prompt that is not a shared prefix."""
    transfer_latency_s: float = Field(default=0.005, ge=0)
    """Fixed part of a KV transfer (5.27 ms between A40s in the paper's measurements)."""
    transfer_tokens_per_s: float = Field(default=1_000_000.0, gt=0)
    """Speed of a KV transfer (0.985 µs a token there, with a model of 0.6 B parameters)."""
    mean_output_tokens: int = Field(default=256, gt=0)
    """Length of an answer until one was observed; then the running mean of the past."""


class ConServeConfig(Part):
    """ConServe as published."""

    mode: Literal["grow", "oracle"] = "grow"
    """`grow` reserves the first turn's length and adds what turns append and produce. `oracle`
    reserves the conversation's total at admission, which only the replay of a trace knows."""


class ConServePlusConfig(Part):
    """ConServe+: spill, adaptive prefillers, growth room, long appends, priorities."""

    spill_wait_s: Seconds = 1.5
    """A prefiller whose wait is no longer than this is always used: half of a 3 s target."""
    load_weight: float = Field(default=3.0, ge=0)
    """Share of KV that one second of wait weighs when a decoder is chosen: KV fills slowly and
    stays, waits pass."""
    growth_outputs: float = Field(default=2.0, ge=0)
    """Mean answers of room beyond the prompt that a new conversation must find, so that those
    bound before it can grow."""
    adapts_prefillers: bool = True
    """Whether engines with both roles act as prefillers by observed load, or all of them do."""
    min_prefill_speedup: float = Field(default=1.5, ge=1)
    """An engine with both roles prefills for another only where it is so many times as fast.
    Simulated on equal H100s, it never paid to wait in its queue; 1 lets equals do it."""
    prefiller_slack: float = Field(default=0.35, ge=0)
    """Prefillers' worth of first-turn load that engines take beside conversations before one more
    of them does nothing else."""
    max_prefiller_share: float = Field(default=0.5, ge=0, le=1)
    """Most engines that may act as prefillers, as a share of all."""
    kv_headroom: float = Field(default=0.72, gt=0, le=1)
    """Share of all KV that bound conversations may fill before engines stop acting as
    prefillers: what a prefiller holds retains no conversation."""
    evicted_share: float = Field(default=0.7, gt=0, le=1)
    """Share of a later turn's own tokens that its decoder must have evicted for the turn to be placed
    anew: there is little left to stay for. Needs `conserve_vllm`, which reports what is left."""
    sends_long_appends: bool = True
    """Whether a later turn may be prefilled by a prefiller when its decoder would take longer."""
    long_append_tokens: int = Field(default=2048, gt=0)
    """Shorter appends stay: they fit one step, and a transfer costs as much."""
    append_gain: float = Field(default=1.5, ge=1)
    """How many times longer the decoder must take: estimates err, and a move can't be undone."""
    first_turn_priority: int | None = Field(default=None, ge=0)
    """vLLM priority of first turns; continuations have none, which counts as 0 and goes first.
    vLLM refuses the field unless it runs with `--scheduling-policy priority`. Unset: 10 for
    engines that `conserve up` starts, which then run so, and 0 (no field) for listed ones."""
    smallest_chunk_tokens: int = Field(default=256, ge=0)
    """Decode engines that `conserve up` starts with `conserve_vllm` prefill chunks of this size while
    there is time, and larger ones under load, up to vLLM's own `--max-num-batched-tokens`. 0: chunks of
    `decode_chunk_tokens`, as without the plugin."""
    decode_chunk_tokens: int = Field(default=512, ge=0)
    """`--max-num-batched-tokens` of those engines where chunks have one size: gaps between
    tokens stay short while a neighbour is prefilled. 0 leaves vLLM's choice."""
    decode_long_prefill_tokens: int = Field(default=384, ge=0)
    """`--long-prefill-token-threshold` beside it: a quarter of a step stays free for short
    appends beside a long prefill; half of one costs an eighth of the goodput. 0 leaves vLLM's choice."""


class CollocatedStickyConfig(Part):
    """Collocated, sticky: SMetric's rule."""

    max_load_ratio: float = Field(default=2.0, ge=1)
    """Times the mean load at which a conversation leaves its engine."""
    min_hit_share: float = Field(default=0.9, ge=0, le=1)
    """Share of the expected cache hit under which it leaves: its KV is being evicted there."""
    min_load_turns: int = Field(default=4, ge=1)
    """Turns that must run on an engine before its load is compared: ratios of small numbers
    mean nothing."""


class FullDisaggregationConfig(Part):
    """Every turn through a prefiller."""

    is_sticky: bool = False
    """Whether later turns return to the engines of the turn before, so that both sides hit
    their caches. Off, as in the routers that this stands for."""


class ConditionalConfig(Part):
    """Remote prefill by uncached length."""

    threshold_tokens: int = Field(default=512, ge=0)
    """Turns with fewer uncached tokens are prefilled locally: vllm-router's default."""
    max_local_share: float = Field(default=1.0, gt=0, le=1)
    """A turn is local only while uncached tokens are at most this share of its prompt. 1 asks
    for length alone; NVIDIA Dynamo: 2,048 tokens and 0.7."""


class PPDConfig(Part):
    """PPD: first turns remote, later turns by score."""

    short_append_tokens: int = Field(default=512, ge=0)
    """Shorter appends stay local without a score."""
    ttft_weight: float = Field(default=1.0, ge=0)
    """Weight of the relative gain in time to first token."""
    tpot_weight: float = Field(default=1.0, ge=0)
    """Weight of the relative loss in time per output token."""


class AMPDConfig(Part):
    """AMPD: local or remote by live slack."""

    ttft_slo_s: Seconds = 3.0
    """Target of the time to first token: a person's patience with a first turn."""
    itl_slo_s: Seconds = 0.04
    """Target of the gap between output tokens."""
    min_slack: float = Field(default=0.1, ge=0, lt=1)
    """Share of a target that must be left before a side counts as having room."""
    reorders_prefills: bool = False
    """Whether prefill legs carry their deadline as vLLM priority. Needs engines that run with
    `--scheduling-policy priority`."""


class AMPDEmulatedConfig(Part):
    """AMPD as ConServe's authors emulate it."""

    wrong_share: float = Field(default=0.1, ge=0, le=1)
    """Share of later turns that are sent through a prefiller by mistake."""
    seed: int = 42
    """Which turns those are: the same for the same conversations, turns and seed."""


class TierConfig(Part):
    """What engines of one kind are, as far as it is known beforehand."""

    prefill_tokens_per_s: float | None = Field(default=None, gt=0)
    """Prompt tokens prefilled in a second by an engine that does nothing else; None: observed."""
    decode_step_s: Seconds | None = None
    """Time of one decode step at a usual batch; None: observed."""
    prefers: Phase | None = None
    """The phase that these engines should do before others do: fast ones prefill, capped ones decode."""
    gpu: str | None = None
    """Their GPU, for modelled energy; None: `energy.gpu`."""
    power_cap_w: float | None = Field(default=None, gt=0)
    """The power cap that they are meant to run under: modelled so, and compared with what a meter sees."""


KV_BUDGET_FRACTION: Final = 0.9
CONSERVE_PLUS_KV_BUDGET_FRACTION: Final = 2.0
"""It follows what is evicted of whom, and coding sessions wait otherwise for room that nobody uses."""


class SchedulerConfig(Part):
    """Which policy places conversations, its budget, and the constants of each policy."""

    policy: str = "conserve"
    kv_budget_fraction: float | None = Field(default=None, gt=0, le=2)
    """Share of a decoder's KV tokens that reservations may fill at admission; None: the policy's own.
    The rest is room for bound conversations to grow. Above 1 counts on conversations that wait for a
    tool or a person: what is cached of them can be evicted, and is computed again."""
    options: dict[str, Any] = Field(default_factory=dict)
    """For a policy of another package alone: what it is made with, by name."""
    estimates: EstimatesConfig = EstimatesConfig()
    conserve: ConServeConfig = ConServeConfig()
    conserve_plus: ConServePlusConfig = ConServePlusConfig()
    collocated_sticky: CollocatedStickyConfig = CollocatedStickyConfig()
    full_disaggregation: FullDisaggregationConfig = FullDisaggregationConfig()
    conditional: ConditionalConfig = ConditionalConfig()
    ppd: PPDConfig = PPDConfig()
    ampd: AMPDConfig = AMPDConfig()
    ampd_emulated: AMPDEmulatedConfig = AMPDEmulatedConfig()

    @property
    def budget_fraction(self) -> float:
        """The KV budget as configured, or else the policy's."""
        if self.kv_budget_fraction is not None:
            return self.kv_budget_fraction
        is_plus = self.policy == "conserve_plus"
        return CONSERVE_PLUS_KV_BUDGET_FRACTION if is_plus else KV_BUDGET_FRACTION
