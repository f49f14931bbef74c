"""Watts of a GPU by phase, where there is no meter to read. Pure; whatever comes of it is `modelled`.

| GPU | limit | idle | decode | prefill | source |
| --- | --- | --- | --- | --- | --- |
| A100 80 GB | 400 W | 63 W | 250 W | 400 W | splitwise-sim (MIT) |
| H100 80 GB | 700 W | 75 W | 380 W | 700 W | splitwise-sim (MIT) |
| H100, Qwen3-8B | 700 W | 75 W | 288 + 40.6·log2(batch) W, ±20 W | 700 W | fit to ML.ENERGY's leaderboard |
| L40S, A40 | 350 W, 300 W | A100's shares of the limit | | | an assumption: no phase split is published |

The fit holds for batches of 8 to 256: smaller ones follow the same line, larger ones stay at its
end. The model errs by about 7.5 %, so a comparison that rests on it is made at both ends of
`power_range` too: it can claim a sign, and no third digit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

_FIT_BATCH: Final = 256
"""The largest batch that the fit covers."""


@dataclass(frozen=True, slots=True)
class GpuPower:
    """Watts of one GPU that idles, decodes or prefills.

    `limit_w`: its power limit. `decode_w` is that of a usual batch; with `decode_doubling_w` it
    is that of a batch of one, and each doubling adds so much. `is_assumed`: scaled from another
    GPU, nothing published.
    """

    name: str
    limit_w: float
    idle_w: float
    decode_w: float
    prefill_w: float
    decode_doubling_w: float = 0.0
    is_assumed: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.idle_w <= self.limit_w:
            raise ValueError(
                f"{self.name}: idle_w must be from 0 to limit_w ({self.limit_w:g} W), got {self.idle_w:g}"
            )

    def decode_at_w(self, batch: float) -> float:
        """Watts while `batch` sequences decode (a mean may be fractional), never above the limit."""
        doublings = math.log2(min(max(batch, 1.0), _FIT_BATCH))
        return min(self.decode_w + self.decode_doubling_w * doublings, self.limit_w)

    def capped(self, cap_w: float) -> GpuPower:
        """The same GPU under a power cap: no phase draws more. How much slower it then is, is not said.

        A cap above the GPU's own limit changes nothing.
        """
        limit_w = min(cap_w, self.limit_w)
        return replace(
            self,
            limit_w=limit_w,
            idle_w=min(self.idle_w, limit_w),
            decode_w=min(self.decode_w, limit_w),
            prefill_w=min(self.prefill_w, limit_w),
        )


@dataclass(frozen=True, slots=True)
class PhaseEnergy:
    """Modelled joules of one GPU over an interval, by what it did."""

    idle_j: float = 0.0
    decode_j: float = 0.0
    prefill_j: float = 0.0

    @property
    def total_j(self) -> float:
        return self.idle_j + self.decode_j + self.prefill_j

    def __add__(self, other: PhaseEnergy) -> PhaseEnergy:
        return PhaseEnergy(
            self.idle_j + other.idle_j, self.decode_j + other.decode_j, self.prefill_j + other.prefill_j
        )


def interval_energy(
    power: GpuPower, *, idle_s: float, prefill_s: float, decode_s: float, batch: float = 1.0
) -> PhaseEnergy:
    """Joules of an interval in which the GPU idled, prefilled and decoded for so many seconds.

    The three do not overlap: a step that prefills and decodes counts as prefill, whose watts the
    GPU draws. `batch`: mean sequences of the decoding seconds; where it varies much, add the
    energies of its pieces, as watts grow with its logarithm.
    """
    return PhaseEnergy(
        idle_j=power.idle_w * idle_s,
        decode_j=power.decode_at_w(batch) * decode_s,
        prefill_j=power.prefill_w * prefill_s,
    )


def power_range(power: GpuPower) -> tuple[GpuPower, GpuPower]:
    """The least and the most that the GPU may draw, between which a modelled claim must hold.

    Idle 60 to 120 W, decode 0.4 to 0.9 and prefill 0.9 to 1.0 of the power limit, at any batch.
    """
    return _at(power, idle_w=60.0, decode=0.4, prefill=0.9), _at(power, idle_w=120.0, decode=0.9, prefill=1.0)


def _at(power: GpuPower, *, idle_w: float, decode: float, prefill: float) -> GpuPower:
    return GpuPower(
        name=power.name,
        limit_w=power.limit_w,
        idle_w=min(idle_w, power.limit_w),
        decode_w=decode * power.limit_w,
        prefill_w=prefill * power.limit_w,
        is_assumed=True,
    )


A100: Final = GpuPower("a100", limit_w=400, idle_w=63, decode_w=250, prefill_w=400)
H100: Final = GpuPower("h100", limit_w=700, idle_w=75, decode_w=380, prefill_w=700)
H100_QWEN3_8B: Final = replace(H100, name="h100-qwen3-8b", decode_w=288, decode_doubling_w=40.6)


def scaled(power: GpuPower, name: str, limit_w: float) -> GpuPower:
    """A GPU of which only the power limit is known, with the same shares of it: an assumption."""
    share = limit_w / power.limit_w
    return GpuPower(
        name,
        limit_w=limit_w,
        idle_w=power.idle_w * share,
        decode_w=power.decode_w * share,
        prefill_w=power.prefill_w * share,
        decode_doubling_w=power.decode_doubling_w * share,
        is_assumed=True,
    )


L40S: Final = scaled(A100, "l40s", 350)
A40: Final = scaled(A100, "a40", 300)

GPU_POWER: Final[Mapping[str, GpuPower]] = {gpu.name: gpu for gpu in (A100, H100, H100_QWEN3_8B, L40S, A40)}
"""By the name that configurations use."""


def gpu_power(name: str) -> GpuPower | None:
    """The GPU by its name here, its driver's ("NVIDIA H100 80GB HBM3") or a table's ("h100_sxm").

    None if it is not one of these.
    """
    lowered = name.lower()
    if lowered in GPU_POWER:
        return GPU_POWER[lowered]
    words = re.split(r"[^a-z0-9]+", lowered)
    return next((GPU_POWER[word] for word in words if word in GPU_POWER), None)
