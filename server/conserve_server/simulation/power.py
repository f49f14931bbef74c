"""Joules of a simulated fleet: what its engines did, times the modelled watts of their GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from conserve_server.energy.modelled import GpuPower, PhaseEnergy, interval_energy, power_range
from conserve_server.simulation.activity import Activity
from conserve_server.simulation.fleet import Fleet
from conserve_server.simulation.simulator import Outcome


@dataclass(frozen=True, slots=True)
class FleetEnergy:
    """Modelled joules of all engines. `least` and `most`: the ends of the range that the model errs in."""

    modelled: PhaseEnergy
    least: PhaseEnergy
    most: PhaseEnergy


def fleet_energy(fleet: Fleet, outcome: Outcome) -> FleetEnergy:
    """What the fleet drew from the first event to the last."""
    return FleetEnergy(
        _total(fleet, outcome, lambda power: power),
        _total(fleet, outcome, lambda power: power_range(power)[0]),
        _total(fleet, outcome, lambda power: power_range(power)[1]),
    )


def _total(fleet: Fleet, outcome: Outcome, watts: Callable[[GpuPower], GpuPower]) -> PhaseEnergy:
    each = (
        _energy(outcome.engines[e.name].activity, e.capped(watts(e.power)), outcome.ends_s)
        for e in fleet.engines
    )
    return sum(each, PhaseEnergy())


def _energy(activity: Activity, power: GpuPower, elapsed_s: float) -> PhaseEnergy:
    return interval_energy(
        power,
        idle_s=max(0.0, elapsed_s - activity.busy_s),
        prefill_s=activity.prefill_s,
        decode_s=activity.decode_s,
        batch=activity.mean_batch,
    )
