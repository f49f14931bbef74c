"""The summary of a conversation that has ended, as a span of its own and in the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from opentelemetry.trace import Tracer

from conserve_server.core.clock import Clock
from conserve_server.serving.asked.identity import DEFAULT_TENANT
from conserve_server.serving.records.branch_totals import with_branches
from conserve_server.serving.records.record import MAX_LINKS, ConversationRecord
from conserve_server.telemetry import names
from conserve_server.telemetry.metrics import GatewayMetrics
from conserve_server.telemetry.spans import Attributes, write_conversation_span
from conserve_server.telemetry.summary import ConversationSummary


class Endings:
    """Told once a conversation has ended and its last turn, and its branches', are over.

    One that goes on after its end is summed up again, whole, when it ends again.
    """

    def __init__(
        self,
        tracer: Tracer,
        metrics: GatewayMetrics,
        clock: Clock,
        *,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._tracer = tracer
        self._metrics = metrics
        self._clock = clock
        self._wall_clock_ns = wall_clock_ns

    def ended(self, record: ConversationRecord, branches: Sequence[ConversationRecord]) -> None:
        """Write the summary; nothing where neither the conversation nor a branch of it had a turn.

        One that had none itself runs as long as its branches, and links to their turns. It is not
        counted in the metrics, which count its branches.
        """
        timed = [record] if record.turns else branches
        ends_s = [each.last_end_s for each in timed if each.turns and each.last_end_s is not None]
        if not ends_s:
            return
        last_end_s = max(ends_s)
        totals = with_branches(record, branches)
        report = record.report(state=record.ended_as or "", reserved_kv_tokens=0, with_branches=totals)
        e2e_s = last_end_s - record.first_arrival_s
        summary = ConversationSummary.of(
            report, record.sums, e2e_s=e2e_s, rebinds=len(record.rebinds), energy_j=report.energy.total_j
        )
        if record.turns:
            self._metrics.conversation_ended(summary)
        end_ns = self._wall_clock_ns() - round((self._clock.now_s() - last_end_s) * 1e9)
        write_conversation_span(
            self._tracer,
            record.identity.conversation_id,
            {**_who(record, is_emulated=report.emulated), **summary.attributes()},
            turns=[context for each in timed for context in each.turn_spans][-MAX_LINKS:],
            start_ns=end_ns - round(e2e_s * 1e9),
            end_ns=end_ns,
        )


def _who(record: ConversationRecord, *, is_emulated: bool) -> Attributes:
    identity = record.identity
    found: dict[str, str | bool | None] = {
        names.CONVERSATION_ENDED_AS: record.ended_as,
        names.AGENT_NAME: identity.agent,
        names.REQUEST_MODEL: identity.model,
        names.PARENT_CONVERSATION_ID: identity.parent_id,
        names.SYNTHETIC: identity.is_synthetic,
        names.DECODER: record.decoders[-1] if record.decoders else None,
        names.TENANT: None if identity.tenant == DEFAULT_TENANT else identity.tenant,
        names.EMULATED: is_emulated or None,
    }
    return {name: value for name, value in found.items() if value is not None}
