"""Every example runs as it is, against a gateway over emulated engines, and stays short."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from conserve_server.engines.emulated import Rule, ScriptedCall
from conserve_server.engines.engine import Role
from conserve_server.telemetry.spans_file import read_spans
from tests.gateway.conftest import MODEL, Served, engine_config, served
from tests.processes import LIMIT_S

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
AGENTS = ("openai_agent.py", "langgraph_agent.py")
"""They plan which tool comes next, so they need no model that can choose one."""
FRAMEWORKS = (
    "agents_sdk_agent.py",
    "langchain_agent.py",
    "litellm_agent.py",
    "pydantic_ai_agent.py",
    "smolagents_agent.py",
)
"""They give the model their tools: here a script chooses one, then answers."""
PATTERNS = ("human_in_the_loop.py", "multi_agent.py", "rollout.py")
SCRIPT = (
    Rule(match="Observation", tool_calls=(ScriptedCall("final_answer", {"answer": "240 a day"}),)),
    Rule(match="How many", tool_calls=(ScriptedCall("search_notes", {"topic": "ferry"}),)),
    Rule(reply="240 a day"),
)
MAX_LINES = 60
PROGRAM_LIMIT_S = 4 * LIMIT_S
"""Frameworks take many seconds to be imported on a busy machine."""


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_fits_one_screen(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_every_example_that_can_be_run_is_run_here() -> None:
    programs = [path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text()]
    assert sorted((*AGENTS, *FRAMEWORKS, *PATTERNS)) == sorted(programs)


def test_the_readmes_code_compiles() -> None:
    found = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found
    for number, code in enumerate(found):
        compile(code, f"README.md, block {number + 1}", "exec")


@pytest.fixture
async def gateway() -> AsyncIterator[Served]:
    async with served() as found:
        yield found


async def run(agent: str, gateway: Served, traces: Path, *, conversations: int) -> str:
    """What the example printed, once it has ended well."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / agent), "--base-url", f"{gateway.url}/v1", "--model", MODEL),
        *("--conversations", str(conversations)),
        cwd=traces.parent,
        env={**os.environ, "CONSERVE_TRACE_DIR": str(traces), "OTEL_TRACES_EXPORTER": "otlp_json_file"},
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(PROGRAM_LIMIT_S):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, errors.decode()) == (0, "")
    return output.decode()


def results(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
async def test_an_agents_conversations_are_served_by_the_conversation(
    agent: str, gateway: Served, tmp_path: Path
) -> None:
    output = await run(agent, gateway, tmp_path / "traces", conversations=2)
    printed = results(output)
    assert len({result["conversation"] for result in printed}) == 2
    assert all(set(result) == {"conversation", "answer"} and result["answer"] for result in printed)
    for result in printed:
        report: Any = await gateway.report(result["conversation"])
        assert (report["agent"], report["state"], report["reserved_kv_tokens"]) == ("researcher", "ended", 0)
        assert (report["kv_transfers"], len(report["decoders"])) == (1, 1)
        assert len(report["turns"]) >= 5
        assert {turn["outcome"] for turn in report["turns"]} == {"completed"}
        assert [tool["name"] for tool in report["tools"]] == ["search_notes"] * 2 + ["calculate"] * 2
        assert all(tool["duration_s"] > 0 and tool["outcome"] == "completed" for tool in report["tools"])
    assert await gateway.engine_metric("prefill-0", "vllm:request_success_total") == 2


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
async def test_an_agents_own_spans_and_the_gateways_are_one_tree(
    agent: str, gateway: Served, tmp_path: Path
) -> None:
    (result,) = results(await run(agent, gateway, tmp_path / "traces", conversations=1))
    spans = list(read_spans(tmp_path / "traces", conversation_id=result["conversation"]))
    chats = {span.span_id for span in spans if span.name.startswith("chat")}
    tools = [span for span in spans if span.name.startswith("execute_tool")]
    turns = [span for span in gateway.spans if span.name == "conserve.turn"]
    assert len(chats) == 5
    assert len(tools) == 4  # one each, though the SDK and an instrumentation both know of tools
    assert {format(turn.parent.span_id, "016x") for turn in turns if turn.parent} == chats


@pytest.mark.slow
async def test_the_plain_agent_prints_its_report(gateway: Served, tmp_path: Path) -> None:
    output = await run("openai_agent.py", gateway, tmp_path / "traces", conversations=1)
    (result,) = results(output)
    assert f"conversation {result['conversation']} (emulated engine): ended, 5 turns, 4 tool calls" in output


# -- frameworks --------------------------------------------------------------------------


@pytest.fixture
async def scripted() -> AsyncIterator[Served]:
    """A gateway whose model uses a tool when it is asked "How many", then answers."""
    decode = [engine_config(Role.DECODE, name, script=SCRIPT) for name in ("decode-0", "decode-1")]
    async with served(decode=decode) as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("agent", FRAMEWORKS)
async def test_a_frameworks_conversation_is_served_whole_and_traced_as_one_tree(
    agent: str, scripted: Served, tmp_path: Path
) -> None:
    (result,) = results(await run(agent, scripted, tmp_path / "traces", conversations=1))
    assert result["answer"] == "240 a day"
    report: Any = await scripted.report(result["conversation"])
    assert (report["agent"], report["state"], report["kv_transfers"]) == ("researcher", "ended", 1)
    assert [turn["path"] for turn in report["turns"]] == ["remote-prefill", "pinned"]
    assert [(tool["name"], tool["outcome"]) for tool in report["tools"]] == [("search_notes", "completed")]
    spans = list(read_spans(tmp_path / "traces", conversation_id=result["conversation"]))
    # LiteLLM posts below the methods that the instrumentation wraps: its turns stand under the agent.
    calls = "invoke_agent" if agent == "litellm_agent.py" else "chat"
    chats = {span.span_id for span in spans if span.name.startswith(calls)}
    turns = [span for span in scripted.spans if span.name == "conserve.turn"]
    assert {format(turn.parent.span_id, "016x") for turn in turns if turn.parent} == chats
    known = {span.span_id for span in spans}
    assert len([span for span in spans if span.parent_id not in known]) == 1  # one root
    assert len([span for span in spans if span.name.startswith("execute_tool")]) == 1


# -- patterns ----------------------------------------------------------------------------


@pytest.mark.slow
async def test_helpers_are_children_of_their_lead(gateway: Served, tmp_path: Path) -> None:
    (result,) = results(await run("multi_agent.py", gateway, tmp_path / "traces", conversations=1))
    listed: Any = (await gateway.client.get("/v1/conversations")).json()
    helpers = [each for each in listed["data"] if each["parent_id"] == result["conversation"]]
    assert [helper["agent"] for helper in helpers] == ["helper"] * 3
    assert all(
        (each["turn_count"], each["tool_count"], each["kv_transfers"]) == (2, 1, 1) for each in helpers
    )


@pytest.mark.slow
async def test_a_person_is_waited_for_at_the_conversations_decoder(gateway: Served, tmp_path: Path) -> None:
    output = await run("human_in_the_loop.py", gateway, tmp_path / "traces", conversations=1)
    (result,) = results(output)
    report: Any = await gateway.report(result["conversation"])
    assert (report["kv_transfers"], len(report["decoders"]), report["state"]) == (1, 1, "ended")
    assert [turn["path"] for turn in report["turns"]] == ["remote-prefill", "pinned"]


@pytest.mark.slow
async def test_many_roll_outs_move_their_kv_once_each(gateway: Served, tmp_path: Path) -> None:
    output = await run("rollout.py", gateway, tmp_path / "traces", conversations=24)
    assert len({result["conversation"] for result in results(output)}) == 24
    assert "24 roll-outs" in output
    assert "24 KV transfers" in output
    assert await gateway.engine_metric("prefill-0", "vllm:request_success_total") == 24
