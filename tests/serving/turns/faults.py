"""Faults on command: whatever stands behind them works, but for the call that they were told to fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from opentelemetry.trace import Span

T = TypeVar("T")


class Broken(Exception):
    """What a fault raises."""


@dataclass
class Faults:
    """Fails the `at`-th call (from 0) of all that it stands around, before or after it was carried out.

    One that `lasts` fails every later call of the same name as well.
    """

    at: int | None = None
    is_after: bool = False
    lasts: bool = False
    calls: list[str] = field(default_factory=list)
    failing: str | None = None

    def around(self, target: T, name: str, *, but: frozenset[str] = frozenset()) -> T:
        """The same, with faults in each method `but` those."""
        return cast(T, _Around(self, target, name, but))

    def call(self, name: str, run: Callable[[], Any], *, only_after: bool, only_before: bool) -> Any:
        """Carry the call out, unless it is to fail."""
        self.calls.append(name)
        fails = len(self.calls) - 1 == self.at or (self.lasts and name == self.failing)
        if fails:
            self.failing = name
        is_after = only_after or (self.is_after and not only_before)
        if fails and not is_after:
            raise Broken(name)
        result = run()
        if fails:
            raise Broken(name)
        return result


class _Around:
    def __init__(self, faults: Faults, target: object, name: str, but: frozenset[str]) -> None:
        self._faults = faults
        self._target = target
        self._name = name
        self._but = but

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value) or name in self._but:
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            # Who never hears of the end can't know it: what is tested is what becomes of the others.
            only_after = self._name.startswith("book ") and name == "ends"
            only_before = self._name == "scheduler"  # what it has decided must not be lost
            full = f"{self._name}.{name}"
            result = self._faults.call(
                full, lambda: value(*args, **kwargs), only_after=only_after, only_before=only_before
            )
            return self._faults.around(result, "span") if isinstance(result, Span) else result

        return call
