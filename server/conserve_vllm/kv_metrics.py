"""What the routes add to the engine's own Prometheus page."""

from __future__ import annotations

from typing import Any, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_COUNTS: Final = {
    "released": "KV blocks freed because their conversation ended.",
    "kept": "KV blocks protected by a keep, counted again with each keep.",
    "evicted_while_kept": "KV blocks taken although they were kept: nothing else was free.",
    "offloaded": "KV blocks put first in line because the host has a copy.",
    "fetched": "KV blocks brought back from the host before their turn came.",
    "host_released": "Host copies put first in line because their conversation ended.",
}


class KvMetrics:
    """Counters in `registry`: vLLM's page shows the default one."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._blocks = {
            name: Counter(f"conserve_kv_blocks_{name}", text, registry=registry)
            for name, text in _COUNTS.items()
        }
        self._calls = Histogram(
            "conserve_kv_call_seconds",
            "Calls on conversations, the wait for the engine's running step included.",
            ("call", "outcome"),
            buckets=_BUCKETS,
            registry=registry,
        )

    def add(self, counts: dict[str, Any]) -> None:
        """Blocks since the engine was last asked."""
        for name, number in counts.items():
            self._blocks[name].inc(number)

    def called(self, call: str, outcome: str, duration_s: float) -> None:
        self._calls.labels(call, outcome).observe(duration_s)
