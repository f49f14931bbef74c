"""One engine that is up: what was sent to it, what it holds, and how fast it was seen to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from conserve_server.core.policy_config import EstimatesConfig, Phase
from conserve_server.scheduling.ledger import DecoderLedger
from conserve_server.scheduling.observations import Smoothed, Window
from conserve_server.scheduling.policy import EngineView


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """What the configuration says of an engine. Names are unique.

    `takes_prefills`: it may prefill for another; `takes_conversations`: it may be bound to
    one. Speeds are None where they are to be observed. `prefers`: the phase that its tier is for.
    """

    name: str
    takes_prefills: bool = False
    takes_conversations: bool = False
    prefill_tokens_per_s: float | None = None
    decode_step_s: float | None = None
    prefers: Phase | None = None


class EngineState:
    """An engine's queue, running turns, ledger and observed speeds, from its start to its end.

    `changed` is called whenever its view is no longer what it was.
    """

    def __init__(
        self,
        profile: EngineProfile,
        ledger: DecoderLedger | None,
        config: EstimatesConfig,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._changed = changed
        self.profile = profile
        self.ledger = ledger
        self._min_sample_tokens = config.min_speed_sample_tokens
        self._queued: dict[int, int] = {}
        self._queued_tokens = 0
        self._running: dict[int, str] = {}
        self._unaccounted_turns = 0
        self._ttft = Window(config.window_s)
        self._itl = Window(config.window_s)
        self._prefill_speed = Smoothed(config.prefill_tokens_per_s, config.speed_smoothing)
        self._step_s = Smoothed(config.decode_step_s, config.speed_smoothing)
        self._last_prefill_s: float | None = None

    # -- what was sent -------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether nothing that was sent to it runs."""
        return not self._queued and not self._running

    def queue(self, turn_id: int, uncached_tokens: int) -> None:
        """A prefill was sent to it."""
        self.unqueue(turn_id)
        self._queued[turn_id] = uncached_tokens
        self._queued_tokens += uncached_tokens
        self._changed()

    def unqueue(self, turn_id: int) -> int | None:
        """The prefill is over, however it ended: its tokens, None if it was over before."""
        tokens = self._queued.pop(turn_id, None)
        if tokens is not None:
            self._queued_tokens -= tokens
            self._changed()
        return tokens

    def run(self, turn_id: int, conversation_id: str) -> None:
        """A turn was sent to it for decoding."""
        self._running[turn_id] = conversation_id
        self._changed()

    def stop(self, turn_id: int) -> None:
        """The turn has left it, however it ended."""
        if self._running.pop(turn_id, None) is not None:
            self._changed()
        self.unqueue(turn_id)

    # -- what was observed ---------------------------------------------------------------------

    def prefilled(self, tokens: int, sent_s: float, now_s: float) -> None:
        """A prefill of so many tokens ended; first come, first served, it had the engine since the last."""
        started_s = sent_s if self._last_prefill_s is None else max(sent_s, self._last_prefill_s)
        self._last_prefill_s = now_s
        if tokens >= self._min_sample_tokens and now_s > started_s:
            self._prefill_speed.add(tokens / (now_s - started_s))
            self._changed()

    def first_token(self, ttft_s: float, now_s: float) -> None:
        """A turn that was prefilled here had its first token after so long."""
        self._ttft.add(now_s, ttft_s)
        self._changed()

    def tokens(self, count: int, elapsed_s: float, now_s: float) -> None:
        """A turn got `count` more tokens in `elapsed_s`."""
        self._itl.add(now_s, elapsed_s, count)
        self._step_s.add(elapsed_s / count)
        self._changed()

    def load_reported(self, kv_tokens: int | None, turns: int) -> None:
        """What the engine says of itself: KV tokens in use (None if unknown), turns running and waiting.

        What goes beyond our own books belongs to others, or is not settled yet.
        """
        self._changed()
        self._unaccounted_turns = max(0, turns - len(self._running.keys() | self._queued.keys()))
        if self.ledger is not None and kv_tokens is not None:
            self.ledger.reconcile(kv_tokens, set(self._running.values()))

    # -- what a policy sees --------------------------------------------------------------------

    @property
    def view_changes_s(self) -> float:
        """When time alone changes the view, as observations leave their windows."""
        return min(self._ttft.changes_s, self._itl.changes_s)

    def view(self, now_s: float, *, takes_new: bool) -> EngineView:
        profile, ledger = self.profile, self.ledger
        return EngineView(
            name=profile.name,
            takes_prefills=profile.takes_prefills and takes_new,
            takes_conversations=profile.takes_conversations and takes_new,
            kv_capacity_tokens=ledger.capacity_tokens if ledger else None,
            budget_tokens=ledger.budget_tokens if ledger else 0,
            reserved_tokens=ledger.reserved_tokens if ledger else 0,
            unaccounted_tokens=ledger.unaccounted_tokens if ledger else 0,
            queued_tokens=self._queued_tokens,
            running_turns=len(self._running),
            unaccounted_turns=self._unaccounted_turns,
            prefill_tokens_per_s=profile.prefill_tokens_per_s or self._prefill_speed.value,
            decode_step_s=profile.decode_step_s or self._step_s.value,
            ttft_s=self._ttft.mean(now_s),
            itl_s=self._itl.mean(now_s),
            prefers=profile.prefers,
        )
