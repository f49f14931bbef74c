"""Prometheus metrics of energy. Labels name devices, pools and models, never conversations or tenants."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class EnergyMetrics:
    """Counters that are set to sums kept elsewhere: joules and seconds since the gateway's start.

    `hw_energy_joules` follows OpenTelemetry's hardware conventions (`hw.energy`).
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._metered = Counter(
            "hw_energy_joules", "Energy that a device was seen to draw.",
            ("hw_id", "hw_type", "hw_name", "source"), registry=registry,
        )  # fmt: skip
        self._up = Gauge(
            "conserve_energy_meter_up", "1 while the device's meter can be read.",
            ("hw_id", "how"), registry=registry,
        )  # fmt: skip
        self._limit = Gauge(
            "conserve_energy_power_limit_watts", "Power cap of a device at the gateway's start.",
            ("hw_id",), registry=registry,
        )  # fmt: skip
        self._charged = Counter(
            "conserve_energy_joules", "Energy charged to conversations.",
            ("phase", "model", "pool", "tier", "source"), registry=registry,
        )  # fmt: skip
        self._unallocated = Counter(
            "conserve_energy_unallocated_joules", "Metered energy that no conversation caused.",
            ("devices", "kind"), registry=registry,
        )  # fmt: skip
        self._dropped = Counter(
            "conserve_energy_dropped_seconds", "Time of intervals that no meter could tell the energy of.",
            ("devices",), registry=registry,
        )  # fmt: skip
        self._seen: dict[tuple[int, tuple[str, ...]], float] = {}

    def set_device(
        self, name: str, *, kind: str, label: str, source: str, how: str, metered_j: float, is_up: bool
    ) -> None:
        self._raise(self._metered, (name, kind, label, source), metered_j)
        self._up.labels(name, how).set(is_up)

    def set_limit(self, name: str, limit_w: float) -> None:
        self._limit.labels(name).set(limit_w)

    def set_charged(
        self, phase: str, *, model: str, pool: str, tier: str, source: str, joules: float
    ) -> None:
        self._raise(self._charged, (phase, model, pool, tier, source), joules)

    def set_unallocated(self, devices: str, *, idle_j: float, dynamic_j: float, dropped_s: float) -> None:
        self._raise(self._unallocated, (devices, "idle"), idle_j)
        self._raise(self._unallocated, (devices, "dynamic"), dynamic_j)
        self._raise(self._dropped, (devices,), dropped_s)

    def _raise(self, counter: Counter, labels: tuple[str, ...], total: float) -> None:
        """Bring a counter up to a sum; rounding below what it shows already is left out."""
        key = id(counter), labels
        more = total - self._seen.get(key, 0.0)
        counter.labels(*labels).inc(max(more, 0.0))
        self._seen[key] = max(total, self._seen.get(key, 0.0))
