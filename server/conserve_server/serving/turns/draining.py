"""The end of the gateway: nothing new is begun, what runs may end, what is left is told so."""

from __future__ import annotations

from conserve_server.core.errors import NoCapacity
from conserve_server.serving.cluster.cutoff import Cutoff

RETRY_AFTER_S = 5.0
"""What a balancer needs to see `/health` and send the client elsewhere."""


class Draining:
    """Which turns run, and whether the gateway was told to stop."""

    def __init__(self) -> None:
        self._turns: set[Cutoff[None]] = set()
        self.has_begun = False

    @property
    def running_turns(self) -> int:
        """Turns that run or wait."""
        return len(self._turns)

    def begin(self) -> None:
        """From now on no conversation begins; live ones go on."""
        self.has_begun = True

    def check_new(self) -> None:
        """Raises NoCapacity (503) for a conversation that would begin now."""
        if self.has_begun:
            raise NoCapacity(
                "this gateway is stopping and begins no conversation: try again, another one answers then",
                code="gateway_draining",
                retry_after_s=RETRY_AFTER_S,
            )

    def turn(self) -> Cutoff[None]:
        """One turn's block. Raises NoCapacity when it has been cut off."""
        return Cutoff(None, self._turns, stopped)

    def cut(self) -> None:
        """The time is over: every turn that still runs fails, and its client is told."""
        for turn in self._turns:
            turn.cut()


def stopped() -> NoCapacity:
    """The gateway ended before a turn did."""
    return NoCapacity(
        "the gateway was stopped before this turn had ended: send it again",
        code="gateway_stopped",
        retry_after_s=RETRY_AFTER_S,
    )
