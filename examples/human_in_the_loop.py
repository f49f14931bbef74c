"""A graph that stops for a person and goes on hours later, at the decoder that holds its KV cache.

python examples/human_in_the_loop.py --base-url http://127.0.0.1:8000/v1
"""

import asyncio
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

import conserve_sdk as conserve
from command_line import agent_arguments, print_result
from conserve_integrations.langgraph import run_config


def build_agent(llm: ChatOpenAI) -> Any:
    """Draft a letter, show it to a person, and write it anew as they say."""

    async def write(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await llm.ainvoke(state["messages"])]}

    async def review(state: MessagesState) -> dict[str, Any]:
        return {"messages": [HumanMessage(interrupt(state["messages"][-1].content))]}

    graph = StateGraph(MessagesState)
    graph.add_node("draft", write).add_node("review", review).add_node("final", write)
    graph.add_edge(START, "draft").add_edge("draft", "review").add_edge("review", "final")
    return graph.compile(checkpointer=InMemorySaver())  # a database's, where two processes take part


async def main() -> None:
    args = agent_arguments(__doc__)
    llm = ChatOpenAI(model=args.model, base_url=args.base_url, api_key=lambda: "-", max_completion_tokens=48)
    agent = build_agent(conserve.wrap(llm))
    for i in range(args.conversations):
        task = {"messages": [HumanMessage("Write a letter to the harbour master about the ferry.")]}
        async with conserve.conversation(f"letter-{i}", agent="writer", keep_open=True) as conversation:
            await agent.ainvoke(task, run_config(conversation))  # its KV cache stays where it is

        verdict = "Make it shorter."  # here a person thinks; the process may end meanwhile

        async with conserve.conversation(f"letter-{i}", agent="writer") as conversation:
            state = await agent.ainvoke(Command(resume=verdict), run_config(conversation))
        print_result(conversation.id, state["messages"][-1].content)
        print(await conversation.areport())


if __name__ == "__main__":
    conserve.instrument()
    asyncio.run(main())
