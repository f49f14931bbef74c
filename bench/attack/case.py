"""What an attack is: a function that does one wrong thing to a running gateway and says what should be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.attack.ground import Ground, Setup


class Fell(Exception):
    """The gateway did not do what is right; the message says what it did instead."""


def expect(holds: bool, otherwise: str) -> None:
    """Raise Fell unless the condition holds."""
    if not holds:
        raise Fell(otherwise)


@dataclass(frozen=True, slots=True)
class Case:
    """One attack and the ground that it needs. Raises Fell (or anything else) where the gateway fell.

    `growth_bytes` bounds what the gateway's resident memory may grow by. `on_real`: it also runs
    against real vLLM.
    """

    attack: Callable[[Ground], Awaitable[None]]
    setup: Setup
    growth_bytes: int = 48 * 1024 * 1024
    on_real: bool = False

    @property
    def name(self) -> str:
        return self.attack.__name__

    @property
    def what(self) -> str:
        return (self.attack.__doc__ or "").splitlines()[0]


def cases(
    setup: Setup,
    *attacks: Callable[[Ground], Awaitable[None]],
    on_real: bool = False,
    growth_bytes: int = 48 * 1024 * 1024,
) -> tuple[Case, ...]:
    """Several attacks that need the same ground."""
    return tuple(Case(each, setup, growth_bytes, on_real) for each in attacks)
