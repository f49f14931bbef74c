"""A LangGraph supervisor's chat on real vLLM and NIXL: KV moves once an agent, then every turn is pinned.

The model is random: who is asked next is the graph's to say, what is asked and answered is real.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

import conserve_sdk as conserve
from conserve_sdk.protocol import ConversationReport
from conserve_sdk.protocol import Path as TurnPath
from conserve_server.engines.engine import Role
from conserve_server.engines.vllm_metrics import TRANSFERS, total
from tests.real.cluster import RealCluster, gateway_over

pytestmark = pytest.mark.real

AGENTS = ("math", "research")
MESSAGES = 5
LIMIT_S = 120.0


@dataclass
class Gateway:
    """The gateway process over the real engines."""

    url: str
    cluster: RealCluster
    client: httpx2.AsyncClient

    def model(self) -> ChatOpenAI:
        return conserve.wrap(
            ChatOpenAI(
                model=self.cluster.model,
                base_url=f"{self.url}/v1",
                api_key=lambda: "-",
                temperature=0,
                max_completion_tokens=6,
                timeout=LIMIT_S,
                max_retries=0,
            )
        )

    async def transfers(self) -> int:
        """KV transfers, as the decoders count them."""
        urls = [spec.url for spec in self.cluster.engines.specs if spec.role is Role.DECODE]
        pages = [(await self.client.get(f"{url}/metrics")).text for url in urls]
        return int(sum(total(page, TRANSFERS) for page in pages))

    async def report(self, name: str) -> ConversationReport:
        path = f"/v1/conversations/{name.replace('/', '%2F')}"
        return ConversationReport.from_json((await self.client.get(self.url + path)).json())


@pytest.fixture
async def gateway(real_cluster: RealCluster, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with (
        gateway_over(real_cluster.engines, tmp_path) as url,
        httpx2.AsyncClient(timeout=LIMIT_S) as client,
    ):
        yield Gateway(url, real_cluster, client)


def agent(model: ChatOpenAI, name: str) -> Any:
    """An agent as a graph of its own, which begins each prompt with what it is."""

    async def think(state: MessagesState) -> dict[str, Any]:
        system = SystemMessage(f"You are {name}. " + f"{name} minds its rules. " * 12)
        return {"messages": [await model.ainvoke([system, *state["messages"]])]}

    return StateGraph(MessagesState).add_node("think", think).add_edge(START, "think").compile()


def supervisor(model: ChatOpenAI, asked: Callable[[MessagesState], str]) -> Any:
    """For each message: the supervisor, one of its agents, and the supervisor again."""
    graph: Any = StateGraph(MessagesState).add_node("supervisor", agent(model, "supervisor"))
    for name in AGENTS:
        graph.add_node(name, agent(model, name))
        graph.add_edge(name, "supervisor")
    graph.add_edge(START, "supervisor")
    graph.add_conditional_edges("supervisor", asked, [*AGENTS, END])
    return graph.compile(checkpointer=InMemorySaver())


def in_turn(state: MessagesState) -> str:
    """After a person's message and the supervisor's first words one agent, then another; else nobody."""
    messages = state["messages"]
    people = sum(message.type == "human" for message in messages)
    has_just_begun = messages[-2].type == "human"
    return AGENTS[people % len(AGENTS)] if has_just_begun else END


async def test_a_supervisors_chat_moves_its_kv_once_an_agent(gateway: Gateway) -> None:
    graph = supervisor(gateway.model(), in_turn)
    before = await gateway.transfers()
    thread = f"chat-{uuid.uuid4().hex[:8]}"
    async with asyncio.timeout(LIMIT_S), conserve.conversation(thread) as conversation:
        for number in range(MESSAGES):
            message = HumanMessage(f"Question {number}: when does the ferry sail?")
            await graph.ainvoke({"messages": [message]}, conversation.langgraph_config())
        report = await conversation.areport()
    assert await gateway.transfers() - before == len(AGENTS) + 1
    totals = report.with_branches
    assert totals is not None
    assert (totals.turns, totals.kv_transfers, totals.rebinds) == (3 * MESSAGES, len(AGENTS) + 1, 0)
    branches = [await gateway.report(name) for name in report.children]
    assert sorted(branch.id for branch in branches) == sorted(
        f"{thread}/{name}" for name in (*AGENTS, "supervisor")
    )
    for branch in branches:
        first, *later = [turn.path for turn in branch.turns]
        assert (first, {*later}) == (TurnPath.REMOTE_PREFILL, {TurnPath.PINNED})
        assert branch.state == "ended"
