"""The engines: which are known, which are up, which are draining, and the view of them all."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from conserve_server.core.policy_config import EstimatesConfig
from conserve_server.scheduling.engine_state import EngineProfile, EngineState
from conserve_server.scheduling.ledger import DecoderLedger
from conserve_server.scheduling.policy import EngineView, EngineViews
from conserve_server.scheduling.shares import Shares
from conserve_server.scheduling.view_cache import ViewCache


class EnginePools:
    """Engines are known by name before they are up, and serve nothing until then."""

    def __init__(
        self, profiles: Iterable[EngineProfile], kv_budget_fraction: float, estimates: EstimatesConfig
    ) -> None:
        self._budget_fraction = kv_budget_fraction
        self._estimates = estimates
        self._profiles: dict[str, EngineProfile] = {}
        self._draining: set[str] = set()
        self.shares = Shares()
        self._doubted: set[str] = set()
        self._up: dict[str, EngineState] = {}
        self.ledgers: dict[str, DecoderLedger] = {}
        """Reservations of each engine that is up and may hold conversations."""
        self._holders: dict[str, set[str]] = {}
        self._views = ViewCache(self._view)
        for profile in profiles:
            self.add(profile)

    # -- the engines that are known ------------------------------------------------------------

    def add(self, profile: EngineProfile) -> None:
        """Know one more engine. Raises ValueError for a name that is taken."""
        if profile.name in self._profiles:
            raise ValueError(f"engine {profile.name!r} is known already: remove it first")
        self._profiles[profile.name] = profile

    def remove(self, name: str) -> tuple[str, ...]:
        """Forget the engine for good; the conversations that held KV on it."""
        lost = self.down(name)
        self._profiles.pop(name, None)
        self._draining.discard(name)
        return lost

    def set_draining(self, name: str, is_draining: bool) -> None:
        """Whether the engine takes nothing new. Survives its restart."""
        self._known(name)
        (self._draining.add if is_draining else self._draining.discard)(name)
        self._views.mark(name)

    def takes_new(self, name: str) -> bool:
        """Whether conversations may be placed there now."""
        return name in self._up and name not in self._draining and name not in self._doubted

    def is_drained(self, name: str) -> bool:
        """Whether a draining engine holds and runs nothing any more, so that it may go."""
        state = self._up.get(name)
        if name not in self._draining or state is None:
            return name in self._draining
        return state.is_idle and not (state.ledger and state.ledger.conversations)

    # -- the engines that are up ---------------------------------------------------------------

    def up(self, name: str, capacity_tokens: int | None) -> None:
        """The engine serves from now on; one that is up already gets its capacity corrected."""
        profile = self._known(name)
        if name in self._doubted:
            self._doubted.discard(name)
            self._views.mark(name)
        if name not in self._up:
            changed = self._views.marker(name)
            if profile.takes_conversations:
                self.ledgers[name] = DecoderLedger(
                    capacity_tokens,
                    self._budget_fraction,
                    changed,
                    partial(self._holds, name),
                    self.shares.changed,
                )
            self._up[name] = EngineState(profile, self.ledgers.get(name), self._estimates, changed)
            self._views.set_engines(each for each in self._profiles if each in self._up)
        elif name in self.ledgers:
            self.ledgers[name].capacity_tokens = capacity_tokens
            self._views.mark(name)

    def down(self, name: str) -> tuple[str, ...]:
        """Forget what the engine held; the conversations that held KV on it."""
        self._doubted.discard(name)
        if self._up.pop(name, None) is not None:
            self._views.set_engines(each for each in self._profiles if each in self._up)
        ledger = self.ledgers.pop(name, None)
        if ledger is None:
            return ()
        lost = ledger.conversations
        for conversation_id in lost:
            ledger.release(conversation_id)
        return lost

    def doubt(self, name: str) -> None:
        """The engine could not be reached just now: it takes nothing new until it is reported up again."""
        if name in self._up:
            self._doubted.add(name)
            self._views.mark(name)

    def find(self, name: str | None) -> EngineState | None:
        """The state of that engine while it is up."""
        return self._up.get(name) if name is not None else None

    def release(self, conversation_id: str) -> None:
        """Free what the conversation holds, wherever that is."""
        for engine in self._holders.pop(conversation_id, ()):
            if engine in self.ledgers:
                self.ledgers[engine].release(conversation_id)

    def held(self, conversation_id: str) -> int:
        """KV tokens that are reserved for the conversation, wherever that is."""
        engines = self._holders.get(conversation_id, ())
        return sum(self.ledgers[engine].held(conversation_id) for engine in engines if engine in self.ledgers)

    @property
    def overcommitted_tokens(self) -> int:
        """Tokens by which growth of bound conversations exceeds the budgets, over all engines."""
        return sum(ledger.overcommitted_tokens for ledger in self.ledgers.values())

    @property
    def kept_views(self) -> EngineViews:
        """The views of the engines that are up, for policies."""
        return self._views

    def views(self, now_s: float) -> tuple[EngineView, ...]:
        """The engines that are up, in the order in which they became known."""
        return self._views.at(now_s)

    def _view(self, name: str, now_s: float) -> tuple[EngineView, float]:
        """The engine's view, and when time alone will change it."""
        state = self._up[name]
        takes_new = name not in self._draining and name not in self._doubted
        return state.view(now_s, takes_new=takes_new), state.view_changes_s

    def _holds(self, engine: str, conversation_id: str) -> None:
        self._holders.setdefault(conversation_id, set()).add(engine)

    def _known(self, name: str) -> EngineProfile:
        if name not in self._profiles:
            raise KeyError(f"engine {name!r} is in no pool")
        return self._profiles[name]
