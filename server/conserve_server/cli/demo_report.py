"""The demo's report: what the gateway observed of each conversation, and what the engines counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from conserve_sdk.protocol import ConversationReport, Outcome, conversation_path, joules_text
from conserve_server.cli.demo_checks import Counted, checks
from conserve_server.core.errors import ConserveError
from conserve_server.engines.engine import EngineSpec, Role
from conserve_server.engines.vllm_metrics import REQUESTS, TRANSFERS, total, wanted_samples

_SETTLE_LOOKS = 25
_SETTLE_PAUSE_S = 0.2


class Observer:
    """Looks at a running cluster before and after the agent. Raises ConserveError where it can't."""

    def __init__(self, base_url: str, engines: Sequence[EngineSpec], session: aiohttp.ClientSession) -> None:
        self._base_url = base_url
        self._engines = engines
        self._session = session

    async def version(self) -> str:
        """The engines' version, as they say it."""
        return str(json.loads(await self._page(f"{self._engines[0].url}/version"))["version"])

    async def counted(self) -> Counted:
        """The engines' counters now."""
        pages = [(spec.role, await self._page(f"{spec.url}/metrics")) for spec in self._engines]
        return Counted(
            kv_transfers=sum(int(total(page, TRANSFERS)) for role, page in pages if role is Role.DECODE),
            prefill_requests=sum(int(total(page, REQUESTS)) for role, page in pages if role is Role.PREFILL),
        )

    async def conversation(self, conversation_id: str) -> ConversationReport:
        """What the gateway observed of one conversation."""
        page = await self._page(self._base_url + conversation_path(conversation_id))
        return ConversationReport.from_json(json.loads(page))

    async def settled(self, conversation_id: str) -> ConversationReport:
        """The same once its joules are known, or after a while without."""
        for _ in range(_SETTLE_LOOKS):
            report = await self.conversation(conversation_id)
            if not report.energy.pending:
                break
            await asyncio.sleep(_SETTLE_PAUSE_S)
        return report

    async def progress(self) -> str:
        """A few words on what runs now."""
        page = await self._page(f"{self._base_url}/metrics")
        done = int(sum(s.value for s in wanted_samples(page, ("conserve_turns_total",))))
        engines = json.loads(await self._page(f"{self._base_url}/health"))["engines"]
        return f"{done} turns done; " + ", ".join(f"{e['name']} runs {e.get('running', 0)}" for e in engines)

    async def _page(self, url: str) -> str:
        try:
            async with self._session.get(url) as response:
                response.raise_for_status()
                return await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ConserveError(f"{url} can't be read: {error or type(error).__name__}") from error


def build_report(
    reports: Sequence[ConversationReport], counted: Counted, *, engine: str, version: str, model: str
) -> dict[str, Any]:
    """The document of `build/demo-report.json`.

    `engine` (`vllm` or `emulated`), `engine_version`, `model`, `conversations`, each with one
    figure a turn in its lists (null where it was not observed), and `checks`, each with
    whether it `holds` and a `summary` of what was seen.
    """
    return {
        "engine": engine,
        "engine_version": version,
        "model": model,
        "conversations": [_entry(report) for report in reports],
        "checks": {name: check.to_json() for name, check in checks(reports, counted).items()},
    }


def _entry(report: ConversationReport) -> dict[str, Any]:
    turns = report.turns
    completed = bool(turns) and all(turn.outcome is Outcome.COMPLETED for turn in turns)
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
        "energy": asdict(report.energy),
        "turn_j": [turn.energy.total_j for turn in turns],
        "emulated": report.emulated,
        "state": report.state,
        "reserved_kv_tokens": report.reserved_kv_tokens,
        "outcome": Outcome.COMPLETED if completed else Outcome.FAILED,
    }


def print_timelines(report: dict[str, Any], traces: Path, console: Console) -> None:
    """Each conversation, drawn from its spans."""
    from conserve_server.telemetry.render import timeline_view
    from conserve_server.telemetry.spans_file import read_spans
    from conserve_server.telemetry.timeline import timeline

    for entry in report["conversations"]:
        console.rule()
        spans = read_spans(traces, conversation_id=entry["id"])
        console.print(timeline_view(timeline(entry["id"], spans), console.width))
    console.rule()


def print_summary(report: dict[str, Any], console: Console) -> None:
    """What ran, how much of it came from the cache, and the checks."""
    conversations = report["conversations"]
    turns = sum(entry["turns"] for entry in conversations)
    cached, prompt = (
        sum(tokens or 0 for entry in conversations for tokens in entry[key][1:])
        for key in ("cached_tokens", "prompt_tokens")
    )
    share = f" ({cached / prompt:.0%})" if prompt else ""
    lines = [
        f"{len(conversations)} conversations, {turns} turns on {_engines(report)}, {report['model']}",
        f"{cached} of {prompt} prompt tokens of later turns{share} came from the KV cache",
        *_energy_lines(conversations),
        *_check_lines(report["checks"]),
    ]
    console.print("\n".join(lines), highlight=False, markup=False)


def _engines(report: dict[str, Any]) -> str:
    if report["engine"] == "emulated":
        return "EMULATED engines (modelled times)"
    return f"vLLM {report['engine_version']}"


def _energy_lines(conversations: Sequence[dict[str, Any]]) -> list[str]:
    """One line with all joules, and one more where some are not known."""
    energies = [entry["energy"] for entry in conversations if "energy" in entry]
    known = [energy for energy in energies if energy["total_j"] is not None]
    reasons = {energy["reason"] for energy in energies if energy["total_j"] is None}
    lines = [f"energy {reason}" for reason in sorted(reasons)]
    if known:
        total_j, gap_j = (sum(energy[key] or 0.0 for energy in known) for key in ("total_j", "gap_j"))
        sources = ", ".join(sorted({energy["source"] for energy in known}))
        lines.append(
            f"{joules_text(total_j)} ({sources}), {joules_text(gap_j)} of them for KV held between turns"
        )
    return lines


def _check_lines(found: dict[str, dict[str, Any]]) -> list[str]:
    width = max(map(len, found), default=0)
    return [
        f"  {'ok  ' if check['holds'] else 'FAIL'}  {_words(name):{width}}  {check['summary']}"
        for name, check in found.items()
    ]


def _words(name: str) -> str:
    return name.replace("_", " ").replace(" kv ", " KV ")


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write the report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
