"""What a vLLM engine's Prometheus page says about its load and its KV cache.

Only the few wanted lines are parsed: a vLLM page has about a thousand, and it is read every
second. Names as of vLLM 0.31–0.33.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

RUNNING: Final = "vllm:num_requests_running"
WAITING: Final = "vllm:num_requests_waiting"
KV_USAGE: Final = "vllm:kv_cache_usage_perc"
CACHE_CONFIG: Final = "vllm:cache_config_info"
STARTED: Final = "process_start_time_seconds"
TRANSFERS: Final = "vllm:nixl_xfer_time_seconds_count"
TRANSFER_BYTES: Final = "vllm:nixl_bytes_transferred_sum"
REQUESTS: Final = "vllm:request_success_total"
_WANTED: Final = (RUNNING, WAITING, KV_USAGE, CACHE_CONFIG, STARTED)


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """Load and KV cache now. `kv_usage` is a share from 0 to 1; `generation` is the process's start time."""

    running: int
    waiting: int
    kv_usage: float
    kv_capacity_tokens: int | None
    generation: str


def read_metrics(page: str) -> EngineMetrics:
    """Read a `/metrics` page. Data-parallel ranks are summed; KV use is their highest."""
    samples = wanted_samples(page, _WANTED)
    usage = [s.value for s in samples if s.name == KV_USAGE]
    started = [s.value for s in samples if s.name == STARTED]
    return EngineMetrics(
        running=int(sum(s.value for s in samples if s.name == RUNNING)),
        waiting=int(sum(s.value for s in samples if s.name == WAITING)),
        kv_usage=max(usage, default=0.0),
        kv_capacity_tokens=_capacity_tokens(samples),
        generation=str(started[0]) if started else "",
    )


def wanted_samples(page: str, names: tuple[str, ...]) -> list[Sample]:
    """The samples of these names, in the page's order."""
    lines = [line for line in page.splitlines() if line.startswith(names)]
    families = text_string_to_metric_families("\n".join(lines) + "\n")
    return [s for family in families for s in family.samples if s.name in names]


def total(page: str, name: str) -> float:
    """The sum of a counter over its labels; 0 where the engine has not counted yet."""
    return sum(s.value for s in wanted_samples(page, (name,)))


def _capacity_tokens(samples: list[Sample]) -> int | None:
    ranks = [s.labels for s in samples if s.name == CACHE_CONFIG]
    try:
        tokens = sum(int(r["num_gpu_blocks"]) * int(r["block_size"]) for r in ranks)
    except (KeyError, ValueError):
        return None
    return tokens or None
