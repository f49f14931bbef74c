"""LangChain's create_agent, served by the conversation: the middleware reports its tools.

python examples/langchain_agent.py --base-url http://127.0.0.1:8000/v1
"""

import asyncio
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

import conserve_sdk as conserve
from command_line import agent_arguments, print_result
from conserve_integrations.langchain import ConserveMiddleware
from town import QUESTIONS, SYSTEM, calculate, search_notes


async def main() -> None:
    args = agent_arguments(__doc__)
    llm = conserve.wrap(ChatOpenAI(model=args.model, base_url=args.base_url, api_key=lambda: "-"))
    tools: list[Any] = [search_notes, calculate]
    agent = create_agent(llm, tools, system_prompt=SYSTEM, middleware=[ConserveMiddleware()])
    for i in range(args.conversations):
        async with conserve.conversation(agent="researcher") as conversation:
            question = HumanMessage(QUESTIONS[i % len(QUESTIONS)])
            state = await agent.ainvoke({"messages": [question]}, conversation.langgraph_config())
        print_result(conversation.id, state["messages"][-1].content)


if __name__ == "__main__":
    conserve.instrument()
    asyncio.run(main())
