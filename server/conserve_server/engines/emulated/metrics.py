"""The engine's Prometheus metrics, under vLLM's names and labels."""

from __future__ import annotations

import time
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from conserve_server.engines.emulated.config import EmulatedConfig

_LABELS: Final = ("model_name", "engine")
_XFER_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 5.0)
_BYTES_BUCKETS: Final = tuple(2 ** (10 + i) for i in range(1, 25, 2))
_LATENCY_BUCKETS: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 40, 160, 640)
_FINISH_REASONS: Final = ("stop", "length", "abort", "error")


class Load(Protocol):
    """What the gauges show when they are read."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def kv_usage(self) -> float: ...


class EngineMetrics:
    """One engine's counters in a registry of its own."""

    def __init__(self, config: EmulatedConfig) -> None:
        self._registry = CollectorRegistry()
        self._values = (config.model, "0")
        self._prefix_queries = self._counter("vllm:prefix_cache_queries")
        self._prefix_hits = self._counter("vllm:prefix_cache_hits")
        self._external_queries = self._counter("vllm:external_prefix_cache_queries")
        self._external_hits = self._counter("vllm:external_prefix_cache_hits")
        self._prompt = self._counter("vllm:prompt_tokens")
        self._prompt_cached = self._counter("vllm:prompt_tokens_cached")
        self._generation = self._counter("vllm:generation_tokens")
        self._failed_transfers = self._counter("vllm:nixl_num_failed_transfers")
        self._expired = self._counter("vllm:nixl_num_kv_expired_reqs")
        self._xfer_s = self._histogram("vllm:nixl_xfer_time_seconds", _XFER_BUCKETS)
        self._xfer_bytes = self._histogram("vllm:nixl_bytes_transferred", _BYTES_BUCKETS)
        self._ttft_s = self._histogram("vllm:time_to_first_token_seconds", _LATENCY_BUCKETS)
        self._queue_s = self._histogram("vllm:request_queue_time_seconds", _LATENCY_BUCKETS)
        self._e2e_s = self._histogram("vllm:e2e_request_latency_seconds", _LATENCY_BUCKETS)
        self._by_source = self._labelled_counter("vllm:prompt_tokens_by_source", "source")
        self._success = self._labelled_counter("vllm:request_success", "finished_reason")
        for reason in _FINISH_REASONS:
            self._success.labels(*self._values, reason)
        self._constants(config)

    def show(self, load: Load) -> None:
        """Let the gauges read `load` whenever the metrics are asked for."""
        self._gauge("vllm:num_requests_running").set_function(lambda: load.running)
        self._gauge("vllm:num_requests_waiting").set_function(lambda: load.waiting)
        self._gauge("vllm:kv_cache_usage_perc").set_function(lambda: load.kv_usage)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def placed(self, prompt_tokens: int, cached_tokens: int) -> None:
        """A request looked for its prompt in this engine's prefix cache."""
        self._prefix_queries.inc(prompt_tokens)
        self._prefix_hits.inc(cached_tokens)

    def prefilled(self, local_tokens: int, external_tokens: int, computed_tokens: int) -> None:
        """A prompt is all there; where its tokens' KV came from."""
        sources = {
            "local_cache_hit": local_tokens,
            "external_kv_transfer": external_tokens,
            "local_compute": computed_tokens,
        }
        for source, tokens in sources.items():
            self._by_source.labels(*self._values, source).inc(tokens)
        self._prompt.inc(sum(sources.values()))
        self._prompt_cached.inc(local_tokens + external_tokens)

    def transferred(self, tokens: int, duration_s: float, moved_bytes: int) -> None:
        self._external_hits.inc(tokens)
        self._xfer_s.observe(duration_s)
        self._xfer_bytes.observe(moved_bytes)

    def transfer_asked(self, tokens: int) -> None:
        self._external_queries.inc(tokens)

    def transfer_failed(self) -> None:
        self._failed_transfers.inc()

    def lease_expired(self) -> None:
        self._expired.inc()

    def generated(self) -> None:
        self._generation.inc()

    def first_token(self, ttft_s: float, queue_s: float) -> None:
        self._ttft_s.observe(ttft_s)
        self._queue_s.observe(queue_s)

    def finished(self, reason: str, e2e_s: float) -> None:
        self._success.labels(*self._values, "stop" if reason == "tool_calls" else reason).inc()
        self._e2e_s.observe(e2e_s)

    def _constants(self, config: EmulatedConfig) -> None:
        info = {"block_size": config.block_size, "engine": "0", "num_gpu_blocks": config.kv_blocks}
        gauge = Gauge("vllm:cache_config_info", "The KV cache's size.", tuple(info), registry=self._registry)
        gauge.labels(*info.values()).set(1)
        Gauge("conserve_emulated", "1: every figure here is emulated.", registry=self._registry).set(1)
        started = Gauge("process_start_time_seconds", "When this engine started.", registry=self._registry)
        started.set(time.time())

    def _gauge(self, name: str) -> Gauge:
        return Gauge(name, f"Emulated {name}.", _LABELS, registry=self._registry).labels(*self._values)

    def _counter(self, name: str) -> Counter:
        return Counter(name, f"Emulated {name}.", _LABELS, registry=self._registry).labels(*self._values)

    def _labelled_counter(self, name: str, label: str) -> Counter:
        return Counter(name, f"Emulated {name}.", (*_LABELS, label), registry=self._registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(name, f"Emulated {name}.", _LABELS, registry=self._registry, buckets=buckets)
        return made.labels(*self._values)
