"""A LangGraph agent with two real tools, served by the conversation.

python examples/langgraph_agent.py --base-url http://127.0.0.1:8000/v1 --conversations 3
"""

import asyncio
import json
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

import conserve_sdk as conserve
from command_line import agent_arguments, print_result
from conserve_integrations.langgraph import run_config
from town import ANSWER, PLAN, QUESTIONS, SYSTEM, calculate, search_notes


def build_agent(llm: ChatOpenAI) -> Any:
    """Think, use a tool, think again. A JSON schema holds each choice of the small model (town.py)."""

    async def think(state: MessagesState) -> dict[str, list[AIMessage]]:
        done = sum(message.type == "tool" for message in state["messages"])
        if done == len(PLAN):
            return {"messages": [await llm.ainvoke([*state["messages"], HumanMessage(ANSWER)])]}
        name, schema = PLAN[done]
        reply = await llm.bind(response_format=schema).ainvoke(state["messages"])
        call = {"name": name, "args": json.loads(str(reply.content)), "id": f"call_{done}"}
        return {"messages": [AIMessage(content=reply.content, tool_calls=[call])]}

    graph = StateGraph(MessagesState).add_node("think", think)
    graph.add_node("tools", ToolNode([tool(search_notes), tool(calculate)]))
    graph.add_edge(START, "think").add_conditional_edges("think", tools_condition).add_edge("tools", "think")
    return graph.compile()


async def main() -> None:
    args = agent_arguments(__doc__)
    limits: dict[str, Any] = {"temperature": 0, "max_completion_tokens": 48, "streaming": True}
    llm = ChatOpenAI(model=args.model, base_url=args.base_url, api_key=lambda: "-", **limits)
    agent = build_agent(conserve.wrap(llm))

    async def converse(question: str) -> None:
        async with conserve.conversation(agent="researcher") as conversation:
            messages = [SystemMessage(SYSTEM), HumanMessage(question)]
            state = await agent.ainvoke({"messages": messages}, config=run_config(conversation))
        print_result(conversation.id, state["messages"][-1].content)

    await asyncio.gather(*(converse(QUESTIONS[i % len(QUESTIONS)]) for i in range(args.conversations)))


if __name__ == "__main__":
    conserve.instrument()
    asyncio.run(main())
