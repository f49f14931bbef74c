"""The published experiment's way to replay ConServe and its AMPD: first turns are stitched on.

In the artifact a decoder never receives a first turn: it starts with filler KV, after the time
that the prefill takes on an idle prefiller. The prefiller works the same prompt off in its own
queue, which nobody but AMPD's wrong turns waits in. A wrong turn carries its context to the
prefiller and back at the measured costs, and the context of the first turn is counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from conserve_server.core.turn import Placement
from conserve_server.scheduling.policy import Policy
from conserve_server.simulation.engine_model import EngineModel
from conserve_server.simulation.fleet import Fleet, Options
from conserve_server.simulation.live_turns import TurnLegs
from conserve_server.simulation.request import Request
from conserve_server.simulation.simulator import Simulator
from conserve_server.simulation.timing import Step
from conserve_server.simulation.timing_paper import bookkeeping_s, transfer_s

_NOBODY = 0
"""The turn of prefills that nobody waits for; turns count from 1."""


@dataclass(frozen=True, slots=True)
class Stitching:
    """Which of the artifact's choices are made.

    `skips_queue`: first turns do not wait in the prefiller's queue. `moves_wrong_turns`: a wrong
    turn's context is carried to the prefiller, as the artifact has it; stock vLLM computes it
    there again. `doubles_context`: that context has the first turn's tokens twice.
    `wrong_turns_overtake` lets wrong turns go before first turns in the prefiller's queue, which
    the artifact does not do: it tells how much of AMPD's loss is that queue.
    """

    skips_queue: bool = True
    moves_wrong_turns: bool = True
    doubles_context: bool = True
    wrong_turns_overtake: bool = False


class StitchedSimulator(Simulator):
    """The simulator with the artifact's choices."""

    def __init__(self, policy: Policy, fleet: Fleet, options: Options, stitching: Stitching) -> None:
        super().__init__(policy, fleet, options)
        self._stitching = stitching

    def _prefill(self, state: TurnLegs, placement: Placement) -> None:
        if state.live.index == 0 and self._stitching.skips_queue:
            self._stitch(state, placement)
        elif state.live.index and self._stitching.moves_wrong_turns:
            self._carry(state, placement)
        else:
            super()._prefill(state, placement)

    def _stitch(self, state: TurnLegs, placement: Placement) -> None:
        """The turn goes on when an idle prefiller would be done; the prefiller works it off for nobody."""
        name = placement.prefiller or ""
        state.leg_engine, state.leg_started_s = name, self._now_s
        shadow = self._request(state, placement, output_tokens=1)
        shadow.turn_id = _NOBODY
        engine = self._engines[name]
        engine.submit(shadow)
        self._disturb(engine)
        self._at(self._now_s + alone_s(engine, state.live.prompt_tokens), self._prefilled, state, shadow)

    def _carry(self, state: TurnLegs, placement: Placement) -> None:
        """The wrong turn's context is carried to the prefiller, which computes what was appended."""
        state.leg_engine, state.leg_started_s = placement.prefiller or "", self._now_s
        leg = self._request(state, placement, output_tokens=1, is_leased=True, is_pulled=True)
        if self._stitching.doubles_context:
            leg.prompt_tokens += state.conversation.shape.turns[0].appended_tokens
        if self._stitching.wrong_turns_overtake:
            leg.priority = -1
        state.leg = leg
        self._submit(state.leg_engine, leg, state)

    def _pull(self, engine: EngineModel, request: Request) -> None:
        state = self._turns[request.turn_id]
        if request.is_leased:
            tokens = request.prompt_tokens - state.appended_tokens
            self._at(self._now_s + _moved_s(tokens), self._carried, engine, request, state)
        elif state.live.index == 0 and self._stitching.skips_queue:
            self._at(self._now_s + _moved_s(request.prompt_tokens), self._filled, engine, request)
        else:
            super()._pull(engine, request)

    def _carried(self, engine: EngineModel, request: Request, state: TurnLegs) -> None:
        engine.received(request, left_tokens=state.appended_tokens)
        self._disturb(engine)

    def _filled(self, engine: EngineModel, request: Request) -> None:
        engine.received(request)
        self._disturb(engine)


def alone_s(engine: EngineModel, tokens: int) -> float:
    """Seconds of a prefill on that engine while it does nothing else."""
    budget, done, seconds = engine.settings.max_num_batched_tokens, 0, 0.0
    while done < tokens:
        chunk = min(budget, tokens - done)
        seconds += engine.timing.step_s(Step(1, chunk, done))
        done += chunk
    return seconds


def _moved_s(tokens: int) -> float:
    return transfer_s(tokens) + bookkeeping_s(tokens)
