"""Acting a fault out on the request that meets it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from conserve_server.core.clock import Clock
from conserve_server.engines.emulated.answer import OutputToken
from conserve_server.engines.emulated.faults import Fault
from conserve_server.engines.emulated.sequence import Sequence
from conserve_server.engines.emulated.wire import http_error


class ConnectionDropped(Exception):
    """The connection is to be dropped without another byte."""


@dataclass(frozen=True, slots=True)
class FaultActor:
    """`die` ends the engine; it may return, as the process may be the tests' own."""

    clock: Clock
    die: Callable[[], None]

    async def before(self, fault: Fault | None) -> None:
        """The fault's effect where it comes before anything is sent."""
        if fault is not None and not fault.after_tokens:
            await self._act(fault)

    async def tokens(self, sequence: Sequence, fault: Fault | None) -> AsyncIterator[OutputToken]:
        """The sequence's tokens, with the fault's effect among them."""
        sent = 0
        async for token in sequence:
            if fault is not None and fault.kind == "slow":
                await self.clock.sleep(fault.delay_s)
            elif fault is not None and fault.after_tokens and sent == fault.after_tokens:
                await self._act(fault)
            yield token
            sent += 1

    def spoil(self, sequence: Sequence, fault: Fault | None) -> None:
        """Make the transfer parameters useless where the fault wants that."""
        if fault is not None and fault.kind == "malformed_kv_params":
            sequence.transfer_params = {"do_remote_prefill": True, "do_remote_decode": False}

    def after(self, fault: Fault | None) -> None:
        """The fault's effect where it comes after the answer. Raises ConnectionDropped."""
        if fault is not None and fault.kind == "die_after_answer":
            self.die()
            raise ConnectionDropped

    async def _act(self, fault: Fault) -> None:
        match fault.kind:
            case "status":
                raise http_error(fault.status, "emulated fault: this status was asked for")
            case "hang":
                await self.clock.sleep(fault.delay_s)
            case "reset":
                raise ConnectionDropped
            case "die":
                self.die()
                raise ConnectionDropped
            case "slow" | "malformed_kv_params" | "die_after_answer":
                return
