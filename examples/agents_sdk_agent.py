"""An agent of the OpenAI Agents SDK, served by the conversation: instrument() reports its tools.

python examples/agents_sdk_agent.py --base-url http://127.0.0.1:8000/v1
"""

import asyncio

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool
from agents.tracing import set_trace_processors
from openai import AsyncOpenAI

import conserve_sdk as conserve
from command_line import agent_arguments, print_result
from conserve_integrations.openai_agents import run_config
from town import QUESTIONS, SYSTEM, calculate, search_notes


async def main() -> None:
    args = agent_arguments(__doc__)
    async with conserve.wrap(AsyncOpenAI(base_url=args.base_url, api_key="-")) as client:
        model = OpenAIChatCompletionsModel(model=args.model, openai_client=client)
        tools = [function_tool(search_notes), function_tool(calculate)]
        agent = Agent("researcher", instructions=SYSTEM, model=model, tools=[*tools])
        for i in range(args.conversations):
            async with conserve.conversation(agent="researcher") as conversation:
                question = QUESTIONS[i % len(QUESTIONS)]
                result = await Runner.run(agent, question, run_config=run_config(conversation))
            print_result(conversation.id, result.final_output)


if __name__ == "__main__":
    set_trace_processors([])  # else the SDK would send its traces to OpenAI, given a key
    conserve.instrument()
    asyncio.run(main())
