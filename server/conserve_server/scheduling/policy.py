"""What a placement policy sees and what it answers.

Everything in a view could be observed at that instant: what the scheduler itself sent,
reserved and was told. Nothing is predicted, with one exception that its name admits:
`TurnView.total_tokens`, which only the replay of a trace can give. An
engine's view is a named tuple: some are made for every turn, and a frozen dataclass of so many
fields takes four times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

from conserve_server.core.policy_config import Phase
from conserve_server.core.turn import Placement


class EngineView(NamedTuple):
    """One engine that is up: what it may take, what it holds, and how fast it was seen to be.

    `budget_tokens` is what admission may reserve, `reserved_tokens` what bound conversations
    hold; `unaccounted_tokens` are KV that the engine reports beyond those. `queued_tokens` are
    uncached prompt tokens that were sent to it and are not prefilled yet. `running_turns` were
    sent to it for decoding; `unaccounted_turns` it reports beyond what was sent. `ttft_s` and
    `itl_s` are means over the window, None where nothing was observed in it. `prefers`: the phase
    that its tier is for, None where it is for both.
    """

    name: str
    takes_prefills: bool = False
    takes_conversations: bool = False
    kv_capacity_tokens: int | None = None
    budget_tokens: int = 0
    reserved_tokens: int = 0
    unaccounted_tokens: int = 0
    queued_tokens: int = 0
    running_turns: int = 0
    unaccounted_turns: int = 0
    prefill_tokens_per_s: float = 8000.0
    decode_step_s: float = 0.03
    ttft_s: float | None = None
    itl_s: float | None = None
    prefers: Phase | None = None

    @property
    def free_tokens(self) -> int:
        """Room for new conversations; negative after bound ones outgrew the budget."""
        return self.budget_tokens - self.reserved_tokens - self.unaccounted_tokens

    @property
    def kv_share(self) -> float:
        """Share of its KV that is spoken for; 0 where the engine reports no capacity."""
        if self.kv_capacity_tokens is None:
            return 0.0
        return (self.reserved_tokens + self.unaccounted_tokens) / self.kv_capacity_tokens

    @property
    def batch(self) -> int:
        """Turns that it decodes now, ours and others'."""
        return self.running_turns + self.unaccounted_turns


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """An order of the engines that `takes` lets in: the least `key` first, ties by the configuration.

    A key reads nothing but the engine. Make an order once and ask for that: clusters keep it sorted.
    """

    takes: Callable[[EngineView], bool]
    key: Callable[[EngineView], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """The engines that are up, in the order of the configuration, and what was learned of the load.

    `mean_output_tokens`: mean length of the answers so far. `first_turn_tokens_per_s`: uncached
    prompt tokens of first turns that arrived in a second, averaged over the window.
    """

    engines: tuple[EngineView, ...]
    now_s: float = 0.0
    mean_output_tokens: float = 0.0
    first_turn_tokens_per_s: float = 0.0

    @property
    def prefillers(self) -> tuple[EngineView, ...]:
        """Engines that may prefill for another."""
        return tuple(e for e in self.engines if e.takes_prefills)

    @property
    def decoders(self) -> tuple[EngineView, ...]:
        """Engines that may be bound to a conversation."""
        return tuple(e for e in self.engines if e.takes_conversations)

    def engine(self, name: str) -> EngineView | None:
        """The engine of that name while it is up, also one that takes nothing new."""
        return next((e for e in self.engines if e.name == name), None)

    def ordered(self, order: Order) -> Iterator[EngineView]:
        """The engines of the order, one after another."""
        return iter(sorted(filter(order.takes, self.engines), key=order.key))


class EngineViews(Protocol):
    """Views that are kept between decisions."""

    def at(self, now_s: float) -> tuple[EngineView, ...]: ...

    def find(self, name: str, now_s: float) -> EngineView | None: ...

    def ordered(self, order: Order, now_s: float) -> Iterator[EngineView]: ...


class LazyClusterView(ClusterView):
    """A cluster whose engines are looked at when a policy asks for them: most turns need none, or a few."""

    __slots__ = ("_kept",)

    _kept: EngineViews

    def __init__(
        self,
        kept: EngineViews,
        *,
        now_s: float = 0.0,
        mean_output_tokens: float = 0.0,
        first_turn_tokens_per_s: float = 0.0,
    ) -> None:
        set_field = partial(object.__setattr__, self)
        set_field("now_s", now_s)
        set_field("mean_output_tokens", mean_output_tokens)
        set_field("first_turn_tokens_per_s", first_turn_tokens_per_s)
        set_field("_kept", kept)

    @property
    def engines(self) -> tuple[EngineView, ...]:
        return self._kept.at(self.now_s)

    def engine(self, name: str) -> EngineView | None:
        return self._kept.find(name, self.now_s)

    def ordered(self, order: Order) -> Iterator[EngineView]:
        return self._kept.ordered(order, self.now_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnView:
    """The turn to place.

    `index` counts the conversation's turns from 0. `context_tokens` says how much of the
    conversation's context each engine has computed or received so far; it may have evicted
    it since. `shared_tokens` is the prefix that it shares with others, as its first turn's cache
    hit showed, until then as those of others did. `evicted_tokens` of its context are gone from
    the bound decoder, by its engine's own report. `hit_share` is the part of the expected cache
    hit that the bound decoder reported for the turn before, None where it reported none.
    `may_move` is False while another turn of the conversation runs, and its decoder must then stay.
    """

    conversation_id: str
    prompt_tokens: int
    index: int = 0
    arrived_s: float = 0.0
    bound_decoder: str | None = None
    last_prefiller: str | None = None
    context_tokens: Mapping[str, int] = field(default_factory=dict)
    shared_tokens: int = 0
    evicted_tokens: int = 0
    hit_share: float | None = None
    may_move: bool = True
    total_tokens: int | None = None

    def uncached_tokens(self, engine: str) -> int:
        """Prompt tokens that the engine has not seen; at least one is always computed."""
        return max(1, self.prompt_tokens - max(self.shared_tokens, self.context_tokens.get(engine, 0)))

    @property
    def own_tokens(self) -> int:
        """Prompt tokens that no other conversation holds: what it adds to the KV of an engine."""
        return max(1, self.prompt_tokens - self.shared_tokens)


class Policy(Protocol):
    """Places one turn. Ties break by the engines' order, so that runs repeat.

    Two promises: a turn with a bound decoder is always placed, and a turn without one is
    placed at the latest when every decoder is empty.
    """

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        """Where the turn runs now, or None to let it wait (first come, first served)."""
        ...
