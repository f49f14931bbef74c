"""Policies that other packages bring: entry points of the group `conserve.policies`.

The entry point's object is called with the options of `[scheduler.options]` by name, and gives the policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from conserve_server.core.errors import ConfigError
from conserve_server.scheduling.policy import Policy

GROUP: Final = "conserve.policies"


def installed() -> dict[str, EntryPoint]:
    """The policies that installed packages bring, by name."""
    return {each.name: each for each in entry_points(group=GROUP)}


def load(entry: EntryPoint, options: Mapping[str, object]) -> Policy:
    """The policy, made with these options. Raises ConfigError, with the package's name, where it can't be."""
    whose = f"scheduler.policy {entry.name!r} ({entry.value}, of {_package(entry)})"
    try:
        make = entry.load()
    except Exception as error:
        raise ConfigError(f"{whose} can't be loaded: {type(error).__name__}: {error}") from error
    try:
        policy: Policy = make(**options)
    except Exception as error:
        raise ConfigError(
            f"{whose} can't be made of scheduler.options ({', '.join(sorted(options)) or 'none'}): "
            f"{type(error).__name__}: {error}"
        ) from error
    if not callable(getattr(policy, "place", None)):
        raise ConfigError(f"{whose} gives a {type(policy).__name__}, which has no place(turn, cluster)")
    return policy


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "an unknown package"
