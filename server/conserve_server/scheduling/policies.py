"""The policies by name. A new policy is one new file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from conserve_server.core.errors import ConfigError
from conserve_server.scheduling.conserve import ConServe
from conserve_server.scheduling.policy import Policy

POLICIES: Final[Mapping[str, Callable[[], Policy]]] = {
    "conserve": ConServe,
}


def policy_named(name: str) -> Policy:
    """The policy of that name. Raises ConfigError listing the known ones."""
    try:
        return POLICIES[name]()
    except KeyError:
        known = ", ".join(sorted(POLICIES))
        raise ConfigError(f"scheduler.policy must be one of {known}, got {name!r}") from None
