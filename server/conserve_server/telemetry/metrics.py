"""The gateway's Prometheus metrics. Labels name engines, paths and outcomes, never conversations."""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from conserve_sdk.protocol import TurnReport

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class GatewayMetrics:
    """One registry an app. Times in seconds, KV in tokens."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._turns = Counter("conserve_turns", "Turns that ended.", ("path", "outcome"), registry=registry)
        self._ttft = Histogram(
            "conserve_ttft_seconds", "Arrival of a turn to its first output token.", ("path",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._wait = Histogram(
            "conserve_admission_wait_seconds", "Arrival of a turn to its first leg.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._tokens = Counter("conserve_tokens", "Tokens of ended turns.", ("kind",), registry=registry)
        self._transfers = Counter(
            "conserve_kv_transfers", "KV transfers, prefiller to decoder.", registry=registry
        )
        self._untraced = Counter("conserve_untraced_turns", "Turns without spans.", registry=registry)
        self._rebinds = Counter("conserve_rebinds", "Bindings that replaced a lost one.", registry=registry)
        self._rebinds_seen = 0
        self._waiting = Gauge("conserve_waiting_turns", "Turns that wait for room.", registry=registry)
        self._conversations = Gauge(
            "conserve_conversations", "Live conversations.", ("state",), registry=registry
        )
        self._up = Gauge(
            "conserve_engine_up", "1 while the engine answers.", ("engine", "role"), registry=registry
        )
        self._reserved = Gauge(
            "conserve_reserved_kv_tokens", "KV tokens reserved on a decoder.", ("engine",), registry=registry
        )
        self._budget = Gauge(
            "conserve_kv_budget_tokens",
            "KV tokens that admission may reserve.",
            ("engine",),
            registry=registry,
        )
        self._overcommitted = Gauge(
            "conserve_overcommitted_kv_tokens", "Growth of bound conversations beyond the budget.",
            ("engine",), registry=registry,
        )  # fmt: skip

        self._kv_signals = Counter(
            "conserve_kv_signals", "Conversations that an engine's plugin was told of.",
            ("engine", "signal", "outcome"), registry=registry,
        )  # fmt: skip
        self._kv_plugin = Gauge(
            "conserve_engine_follows_conversations", "1 where the engine has conserve_vllm and it works.",
            ("engine",), registry=registry,
        )  # fmt: skip

        self._hold_labels()

    def _hold_labels(self) -> None:
        """Looking a label up costs more than counting."""
        self._turns_of = cache(self._turns.labels)
        self._ttft_of = cache(self._ttft.labels)
        self._tokens_of = cache(self._tokens.labels)
        for kind in ("prompt", "cached", "output"):
            self._tokens_of(kind)

    def turn_ended(self, report: TurnReport) -> None:
        """Count one turn; what was not observed is left out."""
        path = report.path or "none"
        self._turns_of(path, report.outcome).inc()
        if report.ttft_s is not None:
            self._ttft_of(path).observe(report.ttft_s)
        if report.wait_s is not None:
            self._wait.observe(report.wait_s)
        for kind, tokens in (
            ("prompt", report.prompt_tokens),
            ("cached", report.cached_tokens),
            ("output", report.completion_tokens),
        ):
            if tokens:
                self._tokens_of(kind).inc(tokens)

    def turn_untraced(self) -> None:
        """A turn had no spans, because too many came."""
        self._untraced.inc()

    def kv_transferred(self) -> None:
        self._transfers.inc()

    def kv_signals(self, engine: str, signal: str, outcome: str, count: int) -> None:
        """So many conversations were told of, or a call failed."""
        self._kv_signals.labels(engine, signal, outcome).inc(count)

    def set_kv_plugin(self, engine: str, *, has_it: bool) -> None:
        self._kv_plugin.labels(engine).set(has_it)

    def set_engine(self, engine: str, role: str, *, is_up: bool) -> None:
        self._up.labels(engine, role).set(is_up)

    def set_decoder(self, engine: str, *, reserved: int, budget: int, overcommitted: int) -> None:
        self._reserved.labels(engine).set(reserved)
        self._budget.labels(engine).set(budget)
        self._overcommitted.labels(engine).set(overcommitted)

    def set_queues(self, *, waiting: int, rebinds: int, by_state: dict[str, int]) -> None:
        self._waiting.set(waiting)
        self._rebinds.inc(rebinds - self._rebinds_seen)
        self._rebinds_seen = rebinds
        self._conversations.clear()
        for state, number in by_state.items():
            self._conversations.labels(state).set(number)

    def page(self) -> bytes:
        """The page that Prometheus scrapes."""
        return generate_latest(self._registry)
