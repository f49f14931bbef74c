"""What an engine computes between two of its events: one step, or many decode steps in a row.

While the batch stays the same, each decode step reads one more token per request than the one
before, and step times are near linear in that. So the times of `steps` steps are taken from the
first and the last one, and the line between them: exact where the timing is linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

from conserve_server.simulation.request import Request


@dataclass(slots=True)
class Run:
    """`steps` steps from `started_s`: the first takes `step_s`, each later one `slope_s` longer.

    `chunks` are the prefills of a run of one step, with the tokens of each, `prefill_tokens` in
    all. `decode_s` is the part of a step's time that decoding alone would take.
    """

    started_s: float
    steps: int
    step_s: float
    slope_s: float
    decode_s: float
    chunks: list[tuple[Request, int]]
    prefill_tokens: int = 0

    def after_s(self, steps: int) -> float:
        """Seconds from the start to the end of so many steps."""
        return self.step_s * steps + self.slope_s * (steps * (steps - 1) / 2)

    @property
    def ends_s(self) -> float:
        return self.started_s + self.after_s(self.steps)

    def shorten(self, now_s: float) -> bool:
        """End the run with the step that is in flight now; whether that changed it."""
        steps = min(self.steps, self._steps_begun(now_s - self.started_s))
        is_shorter = steps < self.steps
        self.steps = steps
        return is_shorter

    def _steps_begun(self, elapsed_s: float) -> int:
        """Steps whose last one ends at that time or later, and the one before it earlier."""
        steps = max(1, ceil(self._steps_at(elapsed_s)))
        while steps > 1 and self.after_s(steps - 1) >= elapsed_s:
            steps -= 1
        while self.after_s(steps) < elapsed_s:
            steps += 1
        return steps

    def _steps_at(self, elapsed_s: float) -> float:
        if self.slope_s <= 1e-15:
            return elapsed_s / self.step_s
        half, first_s = self.slope_s / 2, self.step_s - self.slope_s / 2
        return (sqrt(first_s * first_s + 4 * half * elapsed_s) - first_s) / (2 * half)
