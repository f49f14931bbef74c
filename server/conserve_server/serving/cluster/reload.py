"""The configuration read again while the gateway serves: engines and tenants change, nothing else does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from conserve_server.core.config import Config, GatewayConfig
from conserve_server.core.errors import ConfigError
from conserve_server.core.pool_config import EngineRecord
from conserve_server.engines.access import Access, access_of
from conserve_server.engines.engine import Engine, EngineSpec, Role, free_name, pool_of, spec_of
from conserve_server.serving.asked.tenants import Tenants
from conserve_server.serving.cluster.cluster import Cluster
from conserve_server.serving.cluster.engine_drains import EngineDrains
from conserve_server.serving.cluster.engine_profiles import profile_of

_MAY_CHANGE: Final = (
    *(f"pools.{role}.{key}" for role in Role for key in ("engines", "api_key_file", "ca_file")),
    "tiers.",
    "gateway.tenants.",
    "gateway.admin_key",
)
"""Settings, or what they begin with."""
_OF_LISTED: Final = tuple(f"pools.{role}.tiers" for role in Role)
"""What may change beside these for engines that are listed; local ones were started with it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload changed. `leaving` engines drain first, `kept` ones serve as before; `tenants` are those
    whose keys or limits are others now, or that are new or gone.
    """

    added: list[str] = field(default_factory=list)
    leaving: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)


class Reload:
    """Applies a new configuration, or refuses all of it. Bindings and streams stay as they are.

    `on_tenants` hears of the gateway's part as it is now: tenants' limits are kept in several places.
    """

    def __init__(
        self,
        config: Config,
        load: Callable[[], Config] | None,
        *,
        cluster: Cluster,
        drains: EngineDrains,
        make_engine: Callable[[EngineSpec], Engine],
        tenants: Tenants,
        on_tenants: Callable[[GatewayConfig], None],
    ) -> None:
        self._config = config
        self._load = load
        self._cluster = cluster
        self._drains = drains
        self._make_engine = make_engine
        self._tenants = tenants
        self._on_tenants = on_tenants
        self._used_names = {engine.spec.name for engine in cluster.engines}

    def apply(self, now_s: float) -> Reloaded:
        """Read the configuration and apply it. Raises ConfigError, and has changed nothing then."""
        if self._load is None:
            raise ConfigError("this gateway was not started from a configuration file: there is none to read")
        config = self._load()
        accesses, tenants = self._checked(config)
        done = Reloaded(tenants=self._changed_tenants(config, tenants))
        for role in Role:
            self._apply_pool(config, role, accesses, done, now_s)
        self._tenants.become(tenants)
        self._on_tenants(config.gateway)
        self._config = config
        log.info(
            "configuration applied: %d engines added, %d leaving, %d kept, %d tenants changed",
            *map(len, (done.added, done.leaving, done.kept, done.tenants)),
        )
        return done

    # -- what can't change -----------------------------------------------------------------------

    def _checked(self, config: Config) -> tuple[dict[tuple[Role, str], Access], Tenants]:
        """All that is read from other files. Raises ConfigError with everything that is wrong."""
        problems = list(self._problems(config))
        accesses: dict[tuple[Role, str], Access] = {}
        for role in Role:
            for record in pool_of(config, role).records:
                try:
                    accesses[role, record.url] = access_of(record)
                except ConfigError as error:
                    problems.append(str(error))
        tenants = self._tenants
        try:
            tenants = Tenants.from_config(config.gateway)
        except ConfigError as error:
            problems.append(str(error))
        if problems:
            raise ConfigError("the configuration was not applied:\n" + "\n".join(f"  {p}" for p in problems))
        return accesses, tenants

    def _problems(self, config: Config) -> Iterator[str]:
        before, after = _flat(self._config.model_dump()), _flat(config.model_dump())
        may_change = _MAY_CHANGE if config.is_local else (*_MAY_CHANGE, *_OF_LISTED)
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key) and not key.startswith(may_change):
                yield f"{key} can't change while the gateway runs: restart it, or put the old value back"
        if bool(config.gateway.tenants) != self._tenants.needs_key:
            yield "gateway.tenants can't begin or end while the gateway runs: conversations belong to tenants"
        for role in Role:
            yield from self._problems_of_pool(config, role)

    def _problems_of_pool(self, config: Config, role: Role) -> Iterator[str]:
        known = {engine.spec.url: engine.spec for engine in self._cluster.engines_of(role)}
        names = {engine.spec.name: engine.spec.url for engine in self._cluster.engines}
        for record in pool_of(config, role).records:
            spec = known.get(record.url)
            if spec is not None and record.name not in (None, spec.name):
                yield f"pools.{role}.engines: {record.url} is {spec.name} already, and can't be renamed"
            if record.name is not None and names.get(record.name, record.url) != record.url:
                yield f"pools.{role}.engines: {record.name} is the name of {names[record.name]} already"
            if spec is not None and self._speed(self._config, spec.tier) != self._speed(config, record.tier):
                yield f"pools.{role}.tiers: the tier of {record.url} can't change while it serves"

    @staticmethod
    def _speed(config: Config, tier: str | None) -> object:
        found = config.tiers[tier] if tier is not None else None
        return (found.prefill_tokens_per_s, found.decode_step_s) if found is not None else (None, None)

    def _changed_tenants(self, config: Config, tenants: Tenants) -> list[str]:
        before, after = self._config.gateway.tenants, config.gateway.tenants
        settings = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        return sorted(settings | self._tenants.changed(tenants))

    # -- what can ----------------------------------------------------------------------------------

    def _apply_pool(
        self,
        config: Config,
        role: Role,
        accesses: Mapping[tuple[Role, str], Access],
        done: Reloaded,
        now_s: float,
    ) -> None:
        known = {engine.spec.url: engine.spec for engine in self._cluster.engines_of(role)}
        if config.is_local:  # started with the gateway, and no file's to list
            done.kept.extend(spec.name for spec in known.values())
            return
        records = pool_of(config, role).records
        for record in records:
            spec = known.get(record.url)
            if spec is None:
                done.added.append(self._add(config, role, record, accesses[role, record.url]))
                continue
            spec.access.take(accesses[role, record.url])
            if self._drains.is_leaving(spec.name):
                self._drains.stop(spec.name)
            done.kept.append(spec.name)
        listed = {record.url for record in records}
        for spec in known.values():
            if spec.url not in listed:
                self._drains.begin(spec.name, now_s, leaves=True)
                done.leaving.append(spec.name)

    def _add(self, config: Config, role: Role, record: EngineRecord, access: Access) -> str:
        """A new engine gets a name that none had before it: metrics and reports go on naming the old ones."""
        name = record.name or free_name(role, self._used_names)
        self._used_names.add(name)
        spec = spec_of(record, role, name, access)
        self._cluster.add(self._make_engine(spec), profile_of(config, spec))
        return name


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Every key of the document by its full name."""
    found: dict[str, object] = {}
    for key, value in document.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found
