"""Errors on command: what an engine does wrong for its next requests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import ConfigDict

from conserve_server.core.errors import ConfigError
from conserve_server.engines.engine import Role

FaultKind = Literal["status", "reset", "hang", "die", "slow", "malformed_kv_params", "die_after_answer"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the next `count` requests of a leg (None: either), of those whose body has a text.

    `status` answers with that HTTP status. `reset` drops the connection, `hang` falls silent
    for `delay_s`, `die` ends the engine: each once `after_tokens` output tokens are out (0:
    before anything is sent). `slow` waits `delay_s` before every output token.
    `malformed_kv_params` takes the addresses out of a prefill leg's transfer parameters.
    `die_after_answer` ends the engine once an answer that is not streamed has been sent: what was
    prefilled is gone before it was pulled.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: FaultKind
    count: int = 1
    leg: Role | None = None
    after_tokens: int = 0
    status: int = 503
    delay_s: float = 3600.0
    text: str = ""

    def __post_init__(self) -> None:
        if self.count < 1 or self.after_tokens < 0 or self.delay_s < 0 or not 400 <= self.status <= 599:
            raise ConfigError(
                "a fault's count must be at least 1, after_tokens and delay_s at least 0, "
                f"status 400 to 599, got {self}"
            )


@dataclass(slots=True)
class FaultBook:
    """The faults still to happen, in the order in which they were asked for."""

    _left: list[tuple[Fault, int]] = field(default_factory=list)

    @classmethod
    def of(cls, faults: Iterable[Fault]) -> FaultBook:
        book = cls()
        for fault in faults:
            book.add(fault)
        return book

    def add(self, fault: Fault) -> None:
        self._left.append((fault, fault.count))

    def clear(self) -> None:
        self._left.clear()

    def take(self, leg: Role, body: bytes = b"") -> Fault | None:
        """The fault that a request of `leg` meets; it counts as happened."""
        for index, (fault, left) in enumerate(self._left):
            if fault.leg in (None, leg) and fault.text.encode() in body:
                self._left[index : index + 1] = [(fault, left - 1)] if left > 1 else []
                return fault
        return None
