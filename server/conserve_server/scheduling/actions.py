"""What the scheduler tells its driver to do. Each names the turn that it is for."""

from __future__ import annotations

from dataclasses import dataclass

from conserve_server.core.turn import Placement


@dataclass(frozen=True, slots=True)
class StartPrefill:
    """Send the prefill leg to `placement.prefiller`, then report `on_prefilled`."""

    turn_id: int
    placement: Placement


@dataclass(frozen=True, slots=True)
class StartDecode:
    """Send the decode leg (or a later turn's only leg) to `placement.decoder`."""

    turn_id: int
    placement: Placement


Action = StartPrefill | StartDecode
