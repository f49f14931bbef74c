"""What the scheduler tells its driver to do. Each names the turn that it is for.

`rebind` says why the placement binds the conversation once more, None where it does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from conserve_sdk.protocol import RebindCause
from conserve_server.core.turn import Placement


@dataclass(frozen=True, slots=True)
class StartPrefill:
    """Send the prefill leg to `placement.prefiller`, then report `on_prefilled`."""

    turn_id: int
    placement: Placement
    rebind: RebindCause | None = None


@dataclass(frozen=True, slots=True)
class StartDecode:
    """Send the decode leg (or a later turn's only leg) to `placement.decoder`."""

    turn_id: int
    placement: Placement
    rebind: RebindCause | None = None


@dataclass(frozen=True, slots=True)
class PlacementFailed:
    """End the turn, which runs nowhere: the policy raised `error` when it was asked about it."""

    turn_id: int
    error: Exception


Start = StartPrefill | StartDecode
Action = Start | PlacementFailed
