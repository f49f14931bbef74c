"""The demo's report: what the gateway observed of each conversation, and what the engines counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from rich.console import Console

from conserve_sdk.protocol import ConversationReport, Outcome, conversation_path
from conserve_server.engines.engine import EngineSpec, Role
from conserve_server.engines.vllm_metrics import REQUESTS, TRANSFERS, total, wanted_samples

BLOCK_TOKENS: Final = 32
"""vLLM's KV block on the CPU: a prefix is cached in whole blocks."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What the engines themselves have counted, since they started."""

    kv_transfers: int
    prefill_requests: int


class Demo:
    """Looks at a running cluster before and after the agent."""

    def __init__(
        self,
        base_url: str,
        engines: Sequence[EngineSpec],
        session: aiohttp.ClientSession,
        kind: str,
        model: str,
    ) -> None:
        self._base_url = base_url
        self._engines = engines
        self._session = session
        self._kind = kind
        self._model = model
        self._before = Counters(0, 0)

    async def look_before(self) -> None:
        """Remember the engines' counters."""
        self._before = await self._counters()

    async def collect(self, conversation_ids: Sequence[str]) -> dict[str, Any]:
        """The report document; see the README for its fields."""
        reports = [await self._conversation(conversation_id) for conversation_id in conversation_ids]
        after = await self._counters()
        counted = Counters(
            after.kv_transfers - self._before.kv_transfers,
            after.prefill_requests - self._before.prefill_requests,
        )
        return {
            "engine": self._kind,
            "engine_version": await self._version(),
            "model": self._model,
            "conversations": [_entry(report) for report in reports],
            "checks": _checks(reports, counted),
        }

    async def _conversation(self, conversation_id: str) -> ConversationReport:
        async with self._session.get(self._base_url + conversation_path(conversation_id)) as response:
            response.raise_for_status()
            return ConversationReport.from_json(await response.json())

    async def _counters(self) -> Counters:
        pages = {spec: await self._page(spec.url + "/metrics") for spec in self._engines}
        return Counters(
            kv_transfers=sum(int(total(p, TRANSFERS)) for s, p in pages.items() if s.role is Role.DECODE),
            prefill_requests=sum(int(total(p, REQUESTS)) for s, p in pages.items() if s.role is Role.PREFILL),
        )

    async def _page(self, url: str) -> str:
        async with self._session.get(url) as response:
            response.raise_for_status()
            return await response.text()

    async def _version(self) -> str:
        return str(json.loads(await self._page(self._engines[0].url + "/version"))["version"])


async def turns_done(base_url: str, session: aiohttp.ClientSession) -> int:
    """How many turns the gateway has counted out so far."""
    async with session.get(f"{base_url}/metrics") as response:
        page = await response.text()
    return int(sum(s.value for s in wanted_samples(page, ("conserve_turns_total",))))


def _entry(report: ConversationReport) -> dict[str, Any]:
    turns = report.turns
    completed = all(turn.outcome is Outcome.COMPLETED for turn in turns)
    return {
        "id": report.id,
        "turns": len(turns),
        "kv_transfers": report.kv_transfers,
        "decoders": list(report.decoders),
        "prompt_tokens": [turn.prompt_tokens for turn in turns],
        "cached_tokens": [turn.cached_tokens for turn in turns],
        "output_tokens": [turn.completion_tokens for turn in turns],
        "ttft_s": [turn.ttft_s for turn in turns],
        "ttfet_s": report.ttfet_s,
        "tools": [{"name": tool.name, "duration_s": tool.duration_s} for tool in report.tools],
        "energy": report.energy,
        "emulated": report.emulated,
        "state": report.state,
        "reserved_kv_tokens": report.reserved_kv_tokens,
        "outcome": Outcome.COMPLETED if completed and turns else Outcome.FAILED,
    }


def _checks(reports: Sequence[ConversationReport], counted: Counters) -> dict[str, dict[str, Any]]:
    """What must hold, each with what was seen."""
    transfers = [report.kv_transfers for report in reports]
    reused = [_least_reuse(report) for report in reports]
    return {
        "every_turn_completed": _check(
            all(t.outcome is Outcome.COMPLETED for r in reports for t in r.turns) and bool(reports),
            [" ".join(turn.outcome for turn in report.turns) for report in reports],
        ),
        "one_kv_transfer_each": _check(all(n == 1 for n in transfers), transfers),
        "one_decoder_each": _check(
            all(len(r.decoders) == 1 for r in reports), [list(r.decoders) for r in reports]
        ),
        "decoders_counted_the_same_transfers": _check(
            counted.kv_transfers == len(reports), counted.kv_transfers
        ),
        "prefillers_served_first_turns_only": _check(
            counted.prefill_requests == len(reports), counted.prefill_requests
        ),
        "later_turns_reuse_the_previous_prompt": _check(
            all(share is None or share >= 0 for share in reused), reused
        ),
        "released_at_the_end": _check(
            all(r.state == "ended" and r.reserved_kv_tokens == 0 for r in reports), [r.state for r in reports]
        ),
    }


def _check(holds: bool, seen: object) -> dict[str, Any]:
    return {"holds": holds, "seen": seen}


def _least_reuse(report: ConversationReport) -> int | None:
    """Over the later turns, the least of: cached tokens − (the previous prompt − one block)."""
    pairs = zip(report.turns, report.turns[1:], strict=False)
    spare = [
        (later.cached_tokens or 0) - (before.prompt_tokens - BLOCK_TOKENS)
        for before, later in pairs
        if before.prompt_tokens is not None
    ]
    return min(spare, default=None)


def print_summary(report: dict[str, Any], traces: Path) -> None:
    """Each conversation's timeline, then the checks."""
    from conserve_server.telemetry.render import timeline_view
    from conserve_server.telemetry.spans_file import read_spans
    from conserve_server.telemetry.timeline import timeline

    console = Console()
    for entry in report["conversations"]:
        console.rule()
        spans = read_spans(traces, conversation_id=entry["id"])
        console.print(timeline_view(timeline(entry["id"], spans), console.width))
    console.rule()
    tokens = sum(t or 0 for e in report["conversations"] for t in e["cached_tokens"][1:])
    prompts = sum(t or 0 for e in report["conversations"] for t in e["prompt_tokens"][1:])
    kind = "real vLLM" if report["engine"] == "vllm" else "EMULATED engines"
    console.print(
        f"{len(report['conversations'])} conversations on {kind} {report['engine_version']}, "
        f"model {report['model']}: {tokens} of {prompts} prompt tokens of later turns came from the KV cache"
    )
    for name, check in report["checks"].items():
        console.print(f"  {'ok  ' if check['holds'] else 'FAIL'} {name.replace('_', ' ')}: {check['seen']}")
    console.print(f"see any of them again: CONSERVE_TRACE_DIR={traces} conserve trace CONVERSATION")


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write the report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    Console().print(f"report: {path}")
