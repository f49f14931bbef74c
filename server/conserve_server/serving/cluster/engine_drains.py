"""Engines that are to go: they take nothing new, and what is bound to them may end for a while."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from conserve_server.serving.cluster.cluster import Cluster
from conserve_server.serving.driving.coordinator import Coordinator

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Drain:
    since_s: float
    leaves: bool
    is_vacated: bool = False


class EngineDrains:
    """Which engines are draining, and which of those leave the cluster once they hold nothing.

    A stream is never cut: an engine has gone when its last turn has ended.
    """

    def __init__(self, cluster: Cluster, coordinator: Coordinator, *, timeout_s: float) -> None:
        self._cluster = cluster
        self._coordinator = coordinator
        self._timeout_s = timeout_s
        self._drains: dict[str, _Drain] = {}

    def begin(self, name: str, now_s: float, *, leaves: bool = False) -> None:
        """Nothing new goes there, and with `leaves` it is forgotten once it holds nothing."""
        drain = self._drains.setdefault(name, _Drain(now_s, leaves))
        drain.leaves = drain.leaves or leaves
        self._coordinator.engine_draining(name, is_draining=True)
        log.info("engine %s is draining", name)

    def stop(self, name: str) -> None:
        """It takes conversations again; nothing if it was not draining."""
        if self._drains.pop(name, None) is not None:
            self._coordinator.engine_draining(name, is_draining=False)
            log.info("engine %s takes conversations again", name)

    def is_draining(self, name: str) -> bool:
        return name in self._drains

    def is_leaving(self, name: str) -> bool:
        return name in self._drains and self._drains[name].leaves

    def is_drained(self, name: str) -> bool:
        """Whether a draining engine holds no conversation and runs no turn."""
        return self._coordinator.scheduler.pools.is_drained(name)

    def sweep(self, now_s: float) -> None:
        """Unbind what has stayed for too long, and forget the engines that have nothing left."""
        for name, drain in list(self._drains.items()):
            if not drain.is_vacated and now_s - drain.since_s >= self._timeout_s:
                drain.is_vacated = True
                self._coordinator.engine_vacated(name)
            if drain.leaves and self.is_drained(name) and not self._cluster.has_legs(name):
                del self._drains[name]
                self._cluster.remove(name)
                log.info("engine %s has left", name)
