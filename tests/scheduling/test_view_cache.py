"""Views are made anew only where something changed; what a policy sees is the same as if all were."""

from __future__ import annotations

import pytest

from conserve_server.core.policy_config import SchedulerConfig
from conserve_server.core.turn import Placement, Turn
from conserve_server.scheduling.actions import Action
from conserve_server.scheduling.engine_state import EngineProfile
from conserve_server.scheduling.policies import POLICIES
from conserve_server.scheduling.policies.conserve import ConServe
from conserve_server.scheduling.policy import ClusterView, EngineView, Policy, TurnView
from conserve_server.scheduling.scheduler import Scheduler
from conserve_server.scheduling.view_cache import ViewCache
from tests.scheduling.virtual_cluster import Script, VirtualCluster

ENGINES = [
    EngineProfile("p0", takes_prefills=True),
    EngineProfile("d0", takes_conversations=True),
    EngineProfile("d1", takes_prefills=True, takes_conversations=True),
]


class Comparing(VirtualCluster):
    """After every event: the cached views are those that would be made now."""

    def _perform(self, actions: list[Action]) -> None:
        super()._perform(actions)
        pools = self.scheduler.pools
        seen = pools.views(self._now_s)
        assert seen == tuple(pools._view(view.name, self._now_s)[0] for view in seen)


class Twice:
    """Places each turn on the cluster as it is kept, and on one that sorts its engines for each question."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.placements = 0

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        placement = self._policy.place(turn, cluster)
        plain = ClusterView(
            engines=cluster.engines,
            now_s=cluster.now_s,
            mean_output_tokens=cluster.mean_output_tokens,
            first_turn_tokens_per_s=cluster.first_turn_tokens_per_s,
        )
        assert placement == self._policy.place(turn, plain)
        self.placements += 1
        return placement


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_kept_orders_are_those_that_sorting_anew_would_give(policy: str) -> None:
    scripts = [
        Script(f"c{n}", n * 0.4, (900 + n, 50, 3000, 20), (40, 200, 1, 90), gap_s=n % 5 * 4.0)
        for n in range(30)
    ]
    several = [
        *ENGINES,
        EngineProfile("d2", takes_conversations=True, prefill_tokens_per_s=2000.0, prefers="decode"),
        EngineProfile("b1", takes_prefills=True, takes_conversations=True, prefers="prefill"),
    ]
    twice = Twice(POLICIES[policy](SchedulerConfig()))
    log = VirtualCluster(twice, several, capacity=9000, reports_every_s=1.0).run(scripts)
    assert len(log.ends) == 120
    assert twice.placements >= 120


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_cached_views_equal_new_ones_at_every_event(policy: str) -> None:
    scripts = [
        Script(f"c{n}", n * 0.7, (900, 50, 3000, 20), (40, 200, 1, 90), gap_s=n % 5 * 9.0) for n in range(20)
    ]
    cluster = Comparing(POLICIES[policy](SchedulerConfig()), ENGINES, capacity=9000, reports_every_s=1.0)
    log = cluster.run(scripts)
    assert len(log.ends) == 80


def test_only_engines_that_changed_are_looked_at_again() -> None:
    made: list[str] = []

    def make(name: str, _now_s: float) -> tuple[EngineView, float]:
        made.append(name)
        return EngineView(name=name), 10.0 if name == "b" else float("inf")

    cache = ViewCache(make)
    cache.set_engines(["a", "b", "c"])
    assert [view.name for view in cache.at(0.0)] == ["a", "b", "c"]
    made.clear()
    cache.mark("c")
    cache.at(1.0)
    assert made == ["c"]
    cache.at(10.0)
    assert made == ["c", "b"]  # an observation left its window


def test_a_pinned_turn_looks_at_no_engine() -> None:
    class Watching(ConServe):
        def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
            self.cluster = cluster
            return super().place(turn, cluster)

    policy = Watching()
    scheduler = Scheduler(policy, engines=ENGINES[:2], kv_budget_fraction=1.0)
    for engine in ENGINES[:2]:
        scheduler.on_engine_up(engine.name, 10_000, 0.0)
    for turn_id in (1, 2):
        scheduler.on_turn(Turn(turn_id, "a", 100), float(turn_id))
        if turn_id == 1:
            scheduler.on_prefilled(1, 100, 1.0)
        scheduler.on_first_token(turn_id, float(turn_id))
        scheduler.on_turn_ended(turn_id, 110, float(turn_id))
    assert scheduler.pools._views._changed == {"p0", "d0"}  # still to be looked at
