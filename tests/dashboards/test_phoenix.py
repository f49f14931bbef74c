"""Conversations in a real Phoenix: started by the demo, read back through its API, looked at in Chromium."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conserve_server.telemetry import names
from tests.processes import LIMIT_S

from .serving import EXAMPLES, ROOT, START_S, awaited, fetched

pytestmark = pytest.mark.slow


@contextmanager
def demo(python: Path, folder: Path, agent: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A demo with a dashboard: its sessions page's address, and the conversations of its report."""
    config = folder / "conserve.toml"
    config.write_text((EXAMPLES / "config" / "emulated.toml").read_text() + f'run_dir = "{folder}/run"\n')
    report = folder / "build" / "demo-report.json"
    command = (
        *(sys.executable, "-m", "conserve_server.cli.main", "demo", "--engine", "emulated"),
        *("--config", str(config), "--report", str(report), "--conversations", "2"),
        *("--dashboard", "phoenix", "--agent", str(EXAMPLES / agent), "--timeout", str(START_S)),
    )
    environment = {**os.environ, "CONSERVE_PHOENIX_PYTHON": str(python)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = (line for line in process.stdout if line.startswith("dashboard: "))
            address = next(lines, "no dashboard").split()[1]
            yield address, json.loads(report.read_text())["conversations"]
            process.send_signal(signal.SIGINT)
            assert process.wait(2 * LIMIT_S) in (0, 130)
        finally:
            process.kill()


def spans_of(base_url: str, session: str) -> list[dict[str, Any]]:
    found = fetched(f"{base_url}/v1/projects/conserve/spans?limit=1000")["data"]
    return [span for span in found if span["attributes"].get(names.SESSION_ID) == session]


def sessions(base_url: str) -> dict[str, dict[str, Any]]:
    found = fetched(f"{base_url}/v1/projects/conserve/sessions")["data"]
    return {each["session_id"]: each for each in found}


@pytest.mark.parametrize("agent", ["langgraph_agent.py", "openai_agent.py"])
def test_each_conversation_is_a_session_with_its_turns_tools_and_tokens(
    agent: str, phoenix_python_path: Path, tmp_path: Path
) -> None:
    with demo(phoenix_python_path, tmp_path, agent) as (address, conversations):
        base_url = address.partition("/projects/")[0]
        for each in conversations:
            shown = awaited(
                lambda session=each["id"]: sessions(base_url).get(session),  # type: ignore[misc]
                "Phoenix to show the session",
            )
            counted = (shown["token_count_prompt"], shown["token_count_completion"])
            assert counted == (sum(each["prompt_tokens"]), sum(each["output_tokens"]))
            assert_tree(spans_of(base_url, each["id"]), is_graph=agent.startswith("langgraph"))
        if (chromium := shutil.which("chromium")) is not None:
            picture = ROOT / "build" / f"phoenix-{agent.partition('_')[0]}.png"
            screenshot(chromium, address, picture)
            assert picture.stat().st_size > 20_000


def assert_tree(spans: list[dict[str, Any]], *, is_graph: bool) -> None:
    """Every turn of the gateway below the model call that it served, with what it cost and where it ran."""
    found = Counter(span["name"] for span in spans)
    assert found[names.SPAN_TURN] == 5
    assert found[names.SPAN_PREFILL] == found[names.SPAN_TRANSFER] == 1
    assert found["execute_tool search_notes"] == found["execute_tool calculate"] == 2
    by_id = {span["context"]["span_id"]: span for span in spans}
    for turn in (span for span in spans if span["name"] == names.SPAN_TURN):
        assert by_id[turn["parent_id"]]["name"].startswith("chat ")
        assert turn["attributes"][names.DECODER].startswith("decode-")
        assert turn["attributes"][names.TURN_OUTCOME] == "completed"
    roots = {span["name"] for span in spans if span["parent_id"] is None}
    assert any(name.startswith("invoke_workflow") for name in roots) is is_graph


def screenshot(chromium: str, address: str, to: Path) -> None:
    """The page as a person sees it, for a person to look at."""
    to.parent.mkdir(exist_ok=True)
    window = ("--window-size=1500,900", "--virtual-time-budget=15000", f"--screenshot={to}")
    command = (chromium, "--headless=new", "--no-sandbox", "--disable-gpu", *window, address)
    subprocess.run(command, timeout=START_S, check=True, capture_output=True)
