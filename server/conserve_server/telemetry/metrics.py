"""The gateway's Prometheus metrics. Labels name engines, paths and outcomes, never conversations."""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from conserve_sdk.protocol import TurnReport
from conserve_server.telemetry.energy_metrics import EnergyMetrics
from conserve_server.telemetry.summary import ConversationSummary

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SHARES = tuple(tenth / 10 for tenth in range(11))
_COUNTS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
_LONG_SECONDS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0)
_TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1.0)
_JOULES = (10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


_CONVERSATIONS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "turns": ("turns", "Turns of an ended conversation.", _COUNTS),
    "kv_transfers": ("kv_transfers", "KV transfers of an ended conversation.", (0, *_COUNTS)),
    "rebinds": ("rebinds", "Bindings of an ended conversation beyond its first.", (0, *_COUNTS)),
    "ttfet_s": ("ttfet_seconds", "Time to first effective token, tool time left out.", _SECONDS),
    "last_turn_tbt_s": ("last_turn_tbt_seconds", "Mean time between the last turn's tokens.", _TOKEN_SECONDS),
    "e2e_s": ("e2e_seconds", "First turn's arrival to the last turn's end.", _LONG_SECONDS),
    "cached_share": ("cached_share", "Share of all prompt tokens that were cached.", _SHARES),
    "energy_j": ("energy_joules", "Energy of an ended conversation, where metered.", _JOULES),
}
"""A field of the summary: its metric's name, its meaning and its buckets."""


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
        self._refused = Counter(
            "conserve_refused", "Requests refused for a limit.", ("reason",), registry=registry
        )
        self._book_errors = Counter(
            "conserve_book_errors", "Errors of those who keep account of turns.", ("book",), registry=registry
        )
        self._retries = Counter(
            "conserve_retries",
            "Turns placed again after an engine failed a leg.",
            ("leg",),
            registry=registry,
        )
        self._untraced = Counter("conserve_untraced_turns", "Turns without spans.", registry=registry)
        self._background = Counter(
            "conserve_background_failures", "Failures of the gateway's loops, which went on.", ("loop",),
            registry=registry,
        )  # fmt: skip
        self._rebinds = Counter(
            "conserve_rebinds", "Bindings of a conversation after its first.", ("cause",), registry=registry
        )
        self._waiting = Gauge("conserve_waiting_turns", "Turns that wait for room.", registry=registry)
        self._conversations = Gauge(
            "conserve_conversations", "Live conversations.", ("state",), registry=registry
        )
        self._of_engines(registry)
        self.energy = EnergyMetrics(registry)
        self._of_plugins(registry)
        self._of_conversations = {
            field: Histogram(f"conserve_conversation_{name}", text, buckets=buckets, registry=registry)
            for field, (name, text, buckets) in _CONVERSATIONS.items()
        }
        self._hold_labels()

    def _of_engines(self, registry: CollectorRegistry) -> None:
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

    def _of_plugins(self, registry: CollectorRegistry) -> None:
        self._kv_signals = Counter(
            "conserve_kv_signals", "Conversations that an engine's plugin was told of.",
            ("engine", "signal", "outcome"), registry=registry,
        )  # fmt: skip
        self._kv_fetched = Counter(
            "conserve_kv_fetched_tokens", "KV tokens back on the device, ahead of the turn, after a fetch.",
            ("engine",), registry=registry,
        )  # fmt: skip
        self._kv_plugin = Gauge(
            "conserve_engine_follows_conversations", "1 where the engine has conserve_vllm and it works.",
            ("engine",), registry=registry,
        )  # fmt: skip

    def conversation_ended(self, summary: ConversationSummary) -> None:
        """Count an ended conversation; what was not observed is left out."""
        for field, histogram in self._of_conversations.items():
            value = getattr(summary, field)
            if value is not None:
                histogram.observe(value)

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

    def retried(self, leg: str) -> None:
        """A turn is placed again, as this leg of it failed."""
        self._retries.labels(leg).inc()

    def refused(self, reason: str) -> None:
        """A request met a limit of the gateway."""
        self._refused.labels(reason).inc()

    def book_failed(self, book: str) -> None:
        """Somebody who keeps account of turns has raised an error."""
        self._book_errors.labels(book).inc()

    def background_failed(self, loop: str) -> None:
        """One of the gateway's loops failed, and is begun again."""
        self._background.labels(loop).inc()

    def kv_transferred(self) -> None:
        self._transfers.inc()

    def kv_signals(self, engine: str, signal: str, outcome: str, count: int) -> None:
        """So many conversations were told of, or a call failed."""
        self._kv_signals.labels(engine, signal, outcome).inc(count)

    def kv_fetched(self, engine: str, tokens: int) -> None:
        """So many tokens of conversations that waited are on the device again."""
        self._kv_fetched.labels(engine).inc(tokens)

    def set_kv_plugin(self, engine: str, *, has_it: bool) -> None:
        self._kv_plugin.labels(engine).set(has_it)

    def set_engine(self, engine: str, role: str, *, is_up: bool) -> None:
        self._up.labels(engine, role).set(is_up)

    def forget_engine(self, engine: str, role: str) -> None:
        """The engine has left: its gauges go with it."""
        self._up.remove(engine, role)
        for gauge in (self._reserved, self._budget, self._overcommitted, self._kv_plugin):
            gauge.remove(engine)

    def set_decoder(self, engine: str, *, reserved: int, budget: int, overcommitted: int) -> None:
        self._reserved.labels(engine).set(reserved)
        self._budget.labels(engine).set(budget)
        self._overcommitted.labels(engine).set(overcommitted)

    def rebound(self, cause: str) -> None:
        self._rebinds.labels(cause).inc()

    def set_queues(self, *, waiting: int, by_state: dict[str, int]) -> None:
        self._waiting.set(waiting)
        self._conversations.clear()
        for state, number in by_state.items():
            self._conversations.labels(state).set(number)

    def page(self) -> bytes:
        """The page that Prometheus scrapes."""
        return generate_latest(self._registry)
