"""The demo's agent as a process of its own, as a user would run it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from conserve_server.cli.process_log import begin_log, failed_with_log

if TYPE_CHECKING:
    from conserve_server.engines.engine_process import EngineProcess

STOP_TIMEOUT_S: Final = 2.0
"""What an agent that is not wanted any more may take to end by itself."""


@dataclass(frozen=True, slots=True)
class Result:
    """What the agent printed of one conversation."""

    conversation_id: str
    answer: str


async def run_agent(
    agent: Path, arguments: Sequence[str], env: Mapping[str, str], log: Path, *, timeout_s: float
) -> list[Result]:
    """Run the agent to its end: the conversations that it printed as JSON lines.

    Raises ConserveError with the end of its log if it fails or takes too long; nothing that
    it started is left running either way.
    """
    from conserve_server.engines.engine_process import running

    argv = (sys.executable, str(agent), *arguments)
    begin_log(log, argv)
    async with running(argv, env, log, STOP_TIMEOUT_S) as process:
        status = await _status(process, agent, log, timeout_s)
    if status != 0:
        raise failed_with_log(f"{agent} failed with exit status {status}", log)
    return _results(log)


async def _status(process: EngineProcess, agent: Path, log: Path, timeout_s: float) -> int:
    try:
        async with asyncio.timeout(timeout_s):
            return await process.wait()
    except TimeoutError as error:
        raise failed_with_log(f"{agent} was not done within {timeout_s:g} s", log) from error


def _results(log: Path) -> list[Result]:
    output = log.read_text(errors="replace").splitlines()
    lines = [line for line in output if line.startswith('{"conversation"')]
    documents = [json.loads(line) for line in lines]
    return [Result(str(d["conversation"]), str(d.get("answer", ""))) for d in documents]
