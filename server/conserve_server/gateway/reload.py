"""The configuration read again while the gateway serves: engines come and go, nothing else changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from conserve_server.core.config import Config
from conserve_server.core.errors import ConfigError
from conserve_server.engines.engine import Engine, EngineSpec, Role
from conserve_server.gateway.cluster import Cluster
from conserve_server.gateway.engine_drains import EngineDrains
from conserve_server.gateway.engine_profiles import profile_at

_MAY_CHANGE: Final = frozenset(f"pools.{role}.{key}" for role in Role for key in ("engines", "tiers"))

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload changed, by engine name. `leaving` ones drain first, `kept` ones serve as before."""

    added: list[str] = field(default_factory=list)
    leaving: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


class Reload:
    """Applies a new configuration, or refuses all of it. Bindings and streams stay as they are."""

    def __init__(
        self,
        config: Config,
        load: Callable[[], Config] | None,
        *,
        cluster: Cluster,
        drains: EngineDrains,
        make_engine: Callable[[EngineSpec], Engine],
    ) -> None:
        self._config = config
        self._load = load
        self._cluster = cluster
        self._drains = drains
        self._make_engine = make_engine
        self._used_names = {engine.spec.name for engine in cluster.engines}

    def apply(self, now_s: float) -> Reloaded:
        """Read the configuration and apply it. Raises ConfigError, and has changed nothing then."""
        if self._load is None:
            raise ConfigError("this gateway was not started from a configuration file: there is none to read")
        config = self._load()
        problems = list(self._problems(config))
        if problems:
            raise ConfigError("the configuration was not applied:\n" + "\n".join(f"  {p}" for p in problems))
        done = Reloaded()
        for role in Role:
            self._apply_pool(config, role, done, now_s)
        self._config = config
        log.info(
            "configuration applied: %d engines added, %d leaving, %d kept",
            *map(len, (done.added, done.leaving, done.kept)),
        )
        return done

    # -- what can't change -----------------------------------------------------------------------

    def _problems(self, config: Config) -> Iterator[str]:
        before, after = _flat(self._config.model_dump()), _flat(config.model_dump())
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key) and key not in _MAY_CHANGE and not key.startswith("tiers."):
                yield f"{key} can't change while the gateway runs: restart it, or put the old value back"
        for role in Role:
            for url in _urls(config, role):
                if url in _urls(self._config, role) and _speed(config, role, url) != _speed(
                    self._config, role, url
                ):
                    yield f"pools.{role}.tiers: the tier of {url} can't change while it serves"

    # -- what can ----------------------------------------------------------------------------------

    def _apply_pool(self, config: Config, role: Role, done: Reloaded, now_s: float) -> None:
        known = {engine.spec.url: engine.spec.name for engine in self._cluster.engines_of(role)}
        for url in _urls(config, role):
            if url not in known:
                done.added.append(self._add(config, role, url))
                continue
            if self._drains.is_leaving(known[url]):
                self._drains.stop(known[url])
            done.kept.append(known[url])
        for url, name in known.items():
            if url not in _urls(config, role):
                self._drains.begin(name, now_s, leaves=True)
                done.leaving.append(name)

    def _add(self, config: Config, role: Role, url: str) -> str:
        """A new engine gets a name that none had before it: metrics and reports go on naming the old ones."""
        number = 0
        while (name := f"{role}-{number}") in self._used_names:
            number += 1
        self._used_names.add(name)
        spec = EngineSpec(name, role, url)
        self._cluster.add(self._make_engine(spec), profile_at(config, spec, _urls(config, role).index(url)))
        return name


def _urls(config: Config, role: Role) -> tuple[str, ...]:
    return (config.pools.prefill if role is Role.PREFILL else config.pools.decode).engines


def _speed(config: Config, role: Role, url: str) -> object:
    profile = profile_at(config, EngineSpec("", role, url), _urls(config, role).index(url))
    return profile.prefill_tokens_per_s, profile.decode_step_s


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Every key of the document by its full name."""
    found: dict[str, object] = {}
    for key, value in document.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found
