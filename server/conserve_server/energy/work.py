"""What a turn makes a GPU do, in a handful of amounts, and what a unit of each is worth in joules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from conserve_server.energy.modelled import H100, GpuPower

AMOUNTS: Final = 6
"""How many kinds of work there are."""
Vector = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class Work:
    """Amounts of work. They add up, and may be fractions: work is spread over the time that it took.

    `prefill_context`: prefilled tokens times the tokens that each attends to; `decode_context`
    the same of decoded ones. `decode_steps`: decoded tokens over the batch that they were
    decoded in, for what a step costs however many share it. `transfer_tokens`: KV moved in.
    """

    prefill_tokens: float = 0.0
    prefill_context: float = 0.0
    transfer_tokens: float = 0.0
    decode_tokens: float = 0.0
    decode_steps: float = 0.0
    decode_context: float = 0.0

    @property
    def amounts(self) -> Vector:
        return (
            self.prefill_tokens,
            self.prefill_context,
            self.transfer_tokens,
            self.decode_tokens,
            self.decode_steps,
            self.decode_context,
        )


@dataclass(frozen=True, slots=True)
class Weights:
    """Marginal joules of one unit of each amount of `Work`, above what the GPU draws when idle.

    Only their relation decides how an interval's energy is split; their common scale does not.
    """

    prefill_token: float
    prefill_context: float
    transfer_token: float
    decode_token: float
    decode_step: float
    decode_context: float

    @property
    def vector(self) -> Vector:
        return (
            self.prefill_token,
            self.prefill_context,
            self.transfer_token,
            self.decode_token,
            self.decode_step,
            self.decode_context,
        )

    def prefill(self, work: Work) -> float:
        return self.prefill_token * work.prefill_tokens + self.prefill_context * work.prefill_context

    def transfer(self, work: Work) -> float:
        return self.transfer_token * work.transfer_tokens

    def decode(self, work: Work) -> float:
        return (
            self.decode_token * work.decode_tokens
            + self.decode_step * work.decode_steps
            + self.decode_context * work.decode_context
        )


@dataclass(frozen=True, slots=True)
class WorkTimes:
    """Marginal seconds of one unit of each amount, by a timing model.

    The defaults are a fit to AIConfigurator's kernel tables for Qwen3-8B in bfloat16 on one H100
    (prefill of 2, 13.5 and 19 thousand tokens; decode steps of 1, 8 and 16 sequences of 16
    thousand), plus 0.03 ms of host time a sequence. Other models and GPUs scale all of them by
    about the same, which changes no split.
    """

    prefill_token_s: float = 21.5e-6
    prefill_context_s: float = 0.726e-9
    decode_token_s: float = 0.03e-3
    decode_step_s: float = 6.5e-3
    decode_context_s: float = 49e-9

    def weights(self, power: GpuPower = H100) -> Weights:
        """In joules, with the watts that each phase draws beyond idle.

        A token's KV is read once to be moved, as by one decode step.
        """
        prefill_w, decode_w = power.prefill_w - power.idle_w, power.decode_w - power.idle_w
        return Weights(
            prefill_token=self.prefill_token_s * prefill_w,
            prefill_context=self.prefill_context_s * prefill_w,
            transfer_token=self.decode_context_s * decode_w,
            decode_token=self.decode_token_s * decode_w,
            decode_step=self.decode_step_s * decode_w,
            decode_context=self.decode_context_s * decode_w,
        )
