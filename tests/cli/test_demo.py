"""`conserve demo`: what it prints and writes, and that it leaves nothing running whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conserve_server.cli.demo import heartbeat
from conserve_server.cli.demo_report import print_summary
from conserve_server.cli.main import main
from conserve_server.core.errors import ConserveError
from tests.processes import LIMIT_S, eventually, pids_in, wait_for, wait_gone

ROOT = Path(__file__).parents[2]
ENTRY = {
    *("id", "turns", "kv_transfers", "decoders", "prompt_tokens", "cached_tokens", "output_tokens"),
    *("ttft_s", "ttfet_s", "tools", "energy", "turn_j", "emulated", "state", "reserved_kv_tokens", "outcome"),
}
# An agent that writes its pid, starts a child that ignores SIGTERM, and does not end.
HANGS = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"])
pathlib.Path(__file__).with_suffix(".pids").write_text(f"{os.getpid()}\\n{child.pid}\\n")
print("an agent that hangs", flush=True)
time.sleep(3600)
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "conserve.toml"
    text = (ROOT / "examples" / "config" / "emulated.toml").read_text()
    path.write_text(f'{text}run_dir = "{tmp_path}/run"\n')
    return path


def agent(folder: Path, program: str) -> Path:
    path = folder / "agent.py"
    path.write_text(program)
    return path


@contextmanager
def demo(config: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A running `conserve demo` on emulated engines, its report beside the configuration."""
    report = config.parent / "build" / "demo-report.json"
    command = (
        *(sys.executable, "-m", "conserve_server.cli.main", "demo", "--engine", "emulated"),
        *("--config", str(config), "--report", str(report), *arguments),
    )
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "80", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(config: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    with demo(config, *arguments, **environment) as process:
        output, errors = process.communicate(timeout=2 * LIMIT_S)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def engine_pids(config: Path) -> list[int]:
    record = json.loads((config.parent / "run" / "pool.json").read_text())
    return [engine["pid"] for engine in record["engines"]]


def assert_plausible(entry: dict[str, Any]) -> None:
    assert set(entry) == ENTRY
    assert (entry["turns"], entry["kv_transfers"], len(entry["decoders"])) == (5, 1, 1)
    assert entry["prompt_tokens"] == sorted(entry["prompt_tokens"])
    assert all(
        cached < prompt for cached, prompt in zip(entry["cached_tokens"], entry["prompt_tokens"], strict=True)
    )
    assert len(entry["output_tokens"]) == len(entry["ttft_s"]) == 5
    assert 0 < min(entry["ttft_s"]) < entry["ttfet_s"] < LIMIT_S
    names = ["search_notes", "search_notes", "calculate", "calculate"]
    assert [tool["name"] for tool in entry["tools"]] == names
    assert all(0 < tool["duration_s"] < LIMIT_S for tool in entry["tools"])
    assert (entry["outcome"], entry["state"], entry["reserved_kv_tokens"]) == ("completed", "ended", 0)
    assert entry["emulated"] is True
    assert (entry["energy"]["source"], entry["energy"]["pending"]) == ("modelled", False)
    assert 0 < sum(entry["turn_j"]) <= entry["energy"]["total_j"] + 1e-6


@pytest.mark.slow
def test_a_demo_on_emulated_engines_is_reported_checked_and_drawn(config: Path) -> None:
    # What a user has set for another collector does not take the demo's spans away.
    ended = run(config, "--conversations", "2", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)
    report = json.loads((config.parent / "build" / "demo-report.json").read_text())
    assert set(report) == {"engine", "engine_version", "model", "conversations", "checks"}
    head = (report["engine"], report["engine_version"], report["model"])
    assert head == ("emulated", "emulated", "smollm2-135m")
    assert len({entry["id"] for entry in report["conversations"]}) == 2
    for entry in report["conversations"]:
        assert_plausible(entry)
        assert f"conversation {entry['id']}" in ended.stdout
    assert all(check["holds"] for check in report["checks"].values())
    assert len(report["checks"]) == 7
    assert "2 conversations, 10 turns on EMULATED engines (modelled times), smollm2-135m" in ended.stdout
    assert "  ok    later turns reuse the previous prompt  8 of 8" in ended.stdout
    assert ended.stdout.count("◆") == 2 * 5 + 2  # each turn's first token, and the two legends
    assert ended.stderr.endswith("engines stopped\n")


@pytest.mark.slow
def test_a_check_that_does_not_hold_is_exit_status_1(config: Path) -> None:
    one_turn = """
import json, sys
import conserve_sdk as conserve
from openai import OpenAI
base_url, model = sys.argv[2], sys.argv[4]
client = conserve.wrap(OpenAI(base_url=base_url, api_key="-"))
with conserve.conversation(keep_open=True) as conversation:
    client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}])
print(json.dumps({"conversation": conversation.id, "answer": ""}))
"""
    ended = run(config, "--conversations", "1", "--agent", str(agent(config.parent, one_turn)))
    assert ended.returncode == 1
    assert "  FAIL  later turns reuse the previous prompt  0 of 0" in ended.stdout
    assert "  FAIL  released at the end                    0 of 1" in ended.stdout
    report = json.loads((config.parent / "build" / "demo-report.json").read_text())
    assert report["checks"]["released_at_the_end"] == {"holds": False, "summary": "0 of 1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("raise ValueError('no such tool')", "agent.py failed with exit status 1; the end of"),
        ("print('hello')", "agent.py printed the results of 0 conversations, not of 3"),
        (
            """print('{"conversation": "x", "answer": ""}\\n' * 3)""",
            "/v1/conversations/x can't be read: 404",
        ),
    ],
)
def test_an_agent_that_does_not_do_its_part_is_a_clear_error(
    config: Path, program: str, message: str
) -> None:
    ended = run(config, "--agent", str(agent(config.parent, program)))
    assert ended.returncode == 1
    assert message in ended.stderr
    assert ("ValueError: no such tool" in ended.stderr) == ("ValueError" in program)
    assert "engines stopped\nconserve demo: " in ended.stderr


@pytest.mark.slow
def test_an_agent_that_hangs_is_stopped_with_all_that_it_started(config: Path) -> None:
    hanging = agent(config.parent, HANGS)
    ended = run(config, "--agent", str(hanging), "--timeout", "1")
    assert ended.returncode == 1
    assert "agent.py was not done within 1 s; the end of" in ended.stderr
    assert "an agent that hangs" in ended.stderr
    pids = pids_in(hanging.with_suffix(".pids"))
    assert len(pids) == 2
    wait_gone(pids)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_ended_by_a_signal_it_leaves_nothing_running(
    config: Path, number: signal.Signals, status: int
) -> None:
    hanging = agent(config.parent, HANGS)
    pids_file = hanging.with_suffix(".pids")
    with demo(config, "--agent", str(hanging)) as process:
        wait_for(lambda: len(pids_in(pids_file)) == 2 or process.poll() is not None, "the agent")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        pids = [*engine_pids(config), *pids_in(pids_file), *map(int, children)]
        process.send_signal(number)
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == status
    assert "Traceback" not in errors
    # 3 engines, the agent and its child, and the guardians of the engines, the gateway and the agent.
    assert len(pids) == 3 + 2 + 5
    wait_gone(pids)


def test_an_agent_that_is_not_there_is_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--engine", "emulated", "--agent", "no/such/agent.py"]) == 2
    assert "no agent at no/such/agent.py: run conserve demo in a checkout" in capsys.readouterr().err


def test_no_conversation_is_nothing_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--agent", __file__, "--conversations", "0"]
    assert main(["demo", "--engine", "emulated", *arguments]) == 2
    assert "--conversations must be at least 1, got 0" in capsys.readouterr().err


def test_listed_engines_are_nothing_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    remote = ROOT / "examples" / "config" / "remote.toml"
    assert main(["demo", "--agent", __file__, "--config", str(remote)]) == 2
    assert "starts no engines: pools.decode.count must be at least 1" in capsys.readouterr().err


def test_a_summary_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"turns": 5, "cached_tokens": [0, 99999], "prompt_tokens": [1, 100000]}
    report = {
        "engine": "vllm",
        "engine_version": "0.32.0+cpu",
        "model": "smollm2-135m",
        "conversations": [entry] * 12,
        "checks": {
            "later_turns_reuse_the_previous_prompt": {"holds": True, "summary": "48 of 48"},
            "one_kv_transfer_each": {"holds": False, "summary": "11 of 12"},
        },
    }
    print_summary(report, Console(width=80))
    assert capsys.readouterr().out.splitlines() == [
        "12 conversations, 60 turns on vLLM 0.32.0+cpu, smollm2-135m",
        "1199988 of 1200000 prompt tokens of later turns (100%) came from the KV cache",
        "  ok    later turns reuse the previous prompt  48 of 48",
        "  FAIL  one KV transfer each                   11 of 12",
    ]


async def test_a_heartbeat_says_what_is_under_way(capsys: pytest.CaptureFixture[str]) -> None:
    looks = asyncio.Queue[str]()
    printed: list[str] = []

    def has_printed(text: str) -> bool:
        printed.append(capsys.readouterr().out)
        return text in "".join(printed)

    async def broken() -> str:
        raise ConserveError("the gateway is gone")

    async with heartbeat(interval_s=0.01) as doing:
        doing("starting")
        await eventually(lambda: has_printed("[   0 s] starting\n"), "a line without details")
        doing("the agent runs", looks.get)
        looks.put_nowait("3 turns done")
        await eventually(lambda: has_printed("the agent runs: 3 turns done\n"), "a line with details")
    async with heartbeat(interval_s=0.01) as doing:
        doing("the agent runs", broken)
        await eventually(lambda: has_printed("the agent runs: the gateway is gone\n"), "the failed look")
    assert capsys.readouterr().out.count("[") <= 5  # it has stopped
