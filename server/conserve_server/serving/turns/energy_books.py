"""Energy in the gateway: the books, the meters that fill them, and what is told of both."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, Final, Self

from opentelemetry.util.types import AttributeValue

from conserve_sdk.protocol import EnergyReport
from conserve_server.core.clock import Clock
from conserve_server.core.config import Config
from conserve_server.energy.accounts import ConversationAccount, Factors, TurnAccount
from conserve_server.energy.ledger import EnergyLedger
from conserve_server.energy.metering import DomainMeter, Metering
from conserve_server.energy.meters import Engines, MeterPlan, plan_meters
from conserve_server.energy.totals import Use, Used, summed
from conserve_server.engines.engine import EngineSpec
from conserve_server.serving.turns.live import LiveTurn
from conserve_server.serving.turns.turn_energy import TurnEnergy
from conserve_server.telemetry import names
from conserve_server.telemetry.energy_metrics import EnergyMetrics
from conserve_server.telemetry.spans import TurnTrace

_PHASES: Final = ("prefill", "transfer", "decode", "idle_held", "idle_gap")
_Traced = tuple[TurnTrace, int, int]
"""A turn's trace, and when the turn began and ended, in nanoseconds since the epoch."""
log = logging.getLogger(__name__)


class GatewayEnergy:
    """One gateway's energy. Built before the application starts, so that what is wrong is known then."""

    def __init__(self, config: Config, engines: Sequence[EngineSpec], plan: MeterPlan, clock: Clock) -> None:
        part = config.energy
        self.factors = Factors(part.carbon_g_per_kwh, part.price_per_kwh, part.currency)
        self._ledger = EnergyLedger(
            {domain.name: domain.engines for domain in plan.domains},
            clock.now_s(),
            fits_weights=part.fits_weights,
            patience_s=part.patience_s,
            why_unmetered=plan.why_unmetered,
        )
        self._ledger.on_settled = self._write_span
        if plan.modelled is not None:
            self._ledger.on_activity = plan.modelled.does
        self._metering = Metering(plan, self._ledger, clock, part)
        self._plan = plan
        self._clock = clock
        self._roles = {spec.name: spec.role for spec in engines}
        self._tiers = tiers_of(engines)
        self._caps_w = {e: cap_w for e, t in self._tiers.items() if (cap_w := config.tiers[t].power_cap_w)}
        self._traces: dict[TurnAccount, _Traced] = {}

    @classmethod
    def from_config(cls, config: Config, engines: Sequence[EngineSpec], clock: Clock) -> Self:
        """Look at the meters that the configuration means. Raises ConfigError where it must."""
        return cls(
            config, engines, plan_meters(config.energy, found_engines(config, engines), clock.now_s()), clock
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """The meters can be read inside; they are closed at its end."""
        for line in self._described():
            log.info("energy: %s", line)
        try:
            yield
        finally:
            await self._metering.close()

    async def run(self) -> None:
        """Read the meters for ever; it may be run again after it failed."""
        await self._metering.run()

    # -- conversations and their turns ---------------------------------------------------------

    def turn_began(self, conversation: ConversationAccount, now_s: float) -> TurnEnergy:
        return TurnEnergy(self._ledger, conversation, now_s)

    def conversation_ended(self, conversation: ConversationAccount) -> None:
        """It holds no KV any more."""
        self._ledger.release_all(conversation, self._clock.now_s())

    def engine_lost(self, engine: str) -> None:
        """The engine is gone, and what was held there."""
        self._ledger.engine_lost(engine, self._clock.now_s())

    def turn_ended(self, live: LiveTurn, now_s: float) -> None:
        """Close the turn's account. Its joules are known later, and get a span of their own then."""
        if live.energy is None:
            return
        end_ns = time.time_ns()
        start_ns = end_ns - round((now_s - live.arrived_s) * 1e9)
        self._traces[live.energy.account] = live.trace, start_ns, end_ns
        live.energy.ends(
            now_s,
            live.usage,
            has_answered=live.first_output_s is not None,
            is_over=live.record.ended_as is not None,
            moved_kv=live.moved_kv,
            transfer_s=live.transfer_s,
            first_token_s=live.first_token_s,
        )

    def _write_span(self, turn: TurnAccount) -> None:
        traced, report = self._traces.pop(turn, None), turn.report(self.factors)
        if traced is not None and report.total_j is not None:
            trace, start_ns, end_ns = traced
            trace.past_step(names.SPAN_ENERGY, start_ns, end_ns, energy_attributes(report))

    # -- what is told --------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """How energy is known here, and what became of it."""
        return {
            "reason": self._plan.reason,
            "unmetered": dict(self._plan.unmetered),
            "domains": [self._domain(domain) for domain in self._metering.domains],
        }

    def totals(self, tenant: str | None) -> dict[str, Any]:
        """What was charged since the start, of one tenant or (None) of all."""
        uses = {
            use: used
            for use, used in self._ledger.totals.uses.items()
            if tenant is None or use.tenant == tenant
        }
        by: dict[str, Callable[[Use], str]] = {
            "tenants": lambda use: use.tenant,
            "models": lambda use: use.model,
            "pools": lambda use: str(self._roles[use.engine]),
            "tiers": lambda use: self._tiers.get(use.engine, "none"),
            "sources": lambda use: str(use.source),
        }
        return {
            "object": "energy",
            "reason": self._plan.reason,
            **_used_document(summed(uses.values())),
            **{
                name: [
                    {"name": key, **_used_document(used)} for key, used in sorted(_grouped(uses, of).items())
                ]
                for name, of in by.items()
            },
        }

    def scrape(self, metrics: EnergyMetrics) -> None:
        """Bring the Prometheus metrics up to now."""
        for domain in self._metering.domains:
            for counter in domain.counters:
                device = counter.device
                metrics.set_device(
                    device.name,
                    kind="cpu" if device.how.startswith("RAPL") else "gpu",
                    label=device.label,
                    source=device.source,
                    how=device.how,
                    metered_j=counter.metered_j,
                    is_up=counter.problem is None,
                )
                if device.limit_w is not None:
                    metrics.set_limit(device.name, device.limit_w)
            books = self._ledger.domains[domain.plan.name].totals
            metrics.set_unallocated(
                domain.plan.name,
                idle_j=books.unallocated_idle_j,
                dynamic_j=books.unallocated_dynamic_j,
                dropped_s=books.dropped_s,
            )
        for (model, pool, tier, source), used in self._by_engine().items():
            energy = used.energy
            joules = (energy.prefill_j, energy.transfer_j, energy.decode_j, energy.idle_j, used.gap_j)
            for phase, phase_j in zip(_PHASES, joules, strict=True):
                metrics.set_charged(phase, model=model, pool=pool, tier=tier, source=source, joules=phase_j)

    def _by_engine(self) -> dict[tuple[str, str, str, str], Used]:
        found: dict[tuple[str, str, str, str], Used] = {}
        for use, used in self._ledger.totals.uses.items():
            key = (
                use.model,
                str(self._roles[use.engine]),
                self._tiers.get(use.engine, "none"),
                str(use.source),
            )
            found.setdefault(key, Used()).add(used)
        return found

    def _domain(self, domain: DomainMeter) -> dict[str, Any]:
        return {
            "engines": list(domain.plan.engines),
            "tiers": {e: self._tiers[e] for e in domain.plan.engines if e in self._tiers},
            "source": domain.source,
            "idle_w": domain.idle.watts,
            "idle_w_is": domain.idle.how,
            "problems": domain.problems,
            "devices": [
                {
                    "name": device.name,
                    "label": device.label,
                    "how": device.how,
                    "power_limit_w": device.limit_w,
                    "note": device.note,
                }
                for device in domain.plan.devices
            ],
            **asdict(self._ledger.domains[domain.plan.name].totals),
        }

    def _described(self) -> Iterable[str]:
        """What was found at the start, a line each."""
        for domain in self._plan.domains:
            for device in domain.devices:
                cap = "" if device.limit_w is None else f", power cap {device.limit_w:g} W"
                note = "" if device.note is None else f" ({device.note})"
                engines = ", ".join(domain.engines)
                yield f"{engines} on {device.name}, {device.label}{cap}: {device.source}, {device.how}{note}"
        yield from self._caps_that_differ()
        for engine, reason in self._plan.unmetered.items():
            yield f"{engine} is not measured: {reason}"

    def _caps_that_differ(self) -> Iterable[str]:
        """Devices whose power cap is not what their engine's tier says."""
        for domain in self._plan.domains:
            for engine in domain.engines:
                wanted_w = self._caps_w.get(engine)
                for device in domain.devices:
                    seen_w = device.limit_w
                    if wanted_w is not None and seen_w is not None and wanted_w != seen_w:
                        yield f"{engine}: {device.name} has a cap of {seen_w:g} W, its tier of {wanted_w:g} W"


def found_engines(config: Config, engines: Sequence[EngineSpec]) -> Engines:
    """What the meters may know of the engines."""
    gpus = {spec.name: spec.gpus for spec in engines}
    tiers = {engine: config.tiers[tier] for engine, tier in tiers_of(engines).items()}
    if not config.is_local:
        return Engines("listed", gpus, tiers=tiers)
    if config.launcher.engine == "emulated":
        return Engines("emulated", gpus, tiers=tiers)
    return Engines("local", gpus, are_on_cpus=not any(gpus.values()), tiers=tiers)


def tiers_of(engines: Sequence[EngineSpec]) -> dict[str, str]:
    """The tier of each engine that has one."""
    return {spec.name: spec.tier for spec in engines if spec.tier is not None}


def energy_attributes(report: EnergyReport) -> dict[str, AttributeValue]:
    """A settled turn's joules as attributes of a span."""
    found: dict[str, AttributeValue | None] = {
        names.ENERGY_SOURCE: report.source,
        names.ENERGY_J: report.total_j,
        names.ENERGY_PREFILL_J: report.prefill_j,
        names.ENERGY_TRANSFER_J: report.transfer_j,
        names.ENERGY_DECODE_J: report.decode_j,
        names.ENERGY_IDLE_J: report.idle_j,
    }
    return {name: value for name, value in found.items() if value is not None}


def _grouped(uses: dict[Use, Used], key: Callable[[Use], str]) -> dict[str, Used]:
    found: dict[str, Used] = {}
    for use, used in uses.items():
        found.setdefault(key(use), Used()).add(used)
    return found


def _used_document(used: Used) -> dict[str, Any]:
    energy = used.energy
    return {
        "total_j": used.total_j,
        "prefill_j": energy.prefill_j,
        "transfer_j": energy.transfer_j,
        "decode_j": energy.decode_j,
        "idle_j": energy.idle_j,
        "gap_j": used.gap_j,
        "output_tokens": used.output_tokens,
        "context_tokens": used.context_tokens,
        "j_per_output_token": used.total_j / used.output_tokens if used.output_tokens else None,
        "output_tokens_per_j": used.output_tokens / used.total_j if used.total_j else None,
        "context_tokens_per_j": used.context_tokens / used.total_j if used.total_j else None,
    }
