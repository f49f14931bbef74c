"""Conversations alone on an idle engine: what their times are compared with."""

from __future__ import annotations

from dataclasses import replace

from conserve_server.scheduling.policies.collocated import Collocated
from conserve_server.simulation.fleet import Fleet, Options, SimulatedEngine
from conserve_server.simulation.metrics import Alone, conversation_times
from conserve_server.simulation.simulator import Simulator
from conserve_server.simulation.workload import Arrival, ConversationShape, Workload

_ALONE = Options(reports_every_s=None, kv_budget_fraction=1.0)


class Standalone:
    """Runs each conversation by itself, once, on an engine of the given kind."""

    def __init__(self, engine: SimulatedEngine) -> None:
        alone = replace(engine, name="alone", takes_prefills=False, takes_conversations=True)
        self._fleet = Fleet((alone,))
        self._known: dict[str, tuple[ConversationShape, Alone]] = {}

    def of(self, shape: ConversationShape) -> Alone:
        """The conversation's times alone."""
        known = self._known.get(shape.id)
        if known is None or known[0] != shape:
            known = self._known[shape.id] = shape, self._run(shape)
        return known[1]

    def all_of(self, workload: Workload) -> dict[int, Alone]:
        """Those of all conversations, by their number in the records of a run."""
        return {number: self.of(arrival.conversation) for number, arrival in enumerate(workload.arrivals)}

    def _run(self, shape: ConversationShape) -> Alone:
        workload = Workload("alone", (Arrival(0.0, shape),))
        outcome = Simulator(Collocated(), self._fleet, _ALONE).run(workload)
        times = conversation_times(outcome.records)
        tbt_s = float(times.last_tbt_s[0]) if shape.turns[-1].output_tokens > 1 else 0.0
        return Alone(float(times.ttfet_s[0]), tbt_s, float(times.e2e_s[0]))
