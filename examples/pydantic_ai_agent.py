"""A Pydantic AI agent, served by the conversation: instrument() traces it and reports its tools.

python examples/pydantic_ai_agent.py --base-url http://127.0.0.1:8000/v1
"""

import asyncio

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

import conserve_sdk as conserve
from command_line import agent_arguments, print_result
from town import QUESTIONS, SYSTEM, calculate, search_notes


async def main() -> None:
    args = agent_arguments(__doc__)
    async with AsyncOpenAI(base_url=args.base_url, api_key="-") as client:
        model = conserve.wrap(OpenAIChatModel(args.model, provider=OpenAIProvider(openai_client=client)))
        agent = Agent(model, name="researcher", instructions=SYSTEM, tools=[search_notes, calculate])
        for i in range(args.conversations):
            async with conserve.conversation(agent="researcher") as conversation:
                result = await agent.run(QUESTIONS[i % len(QUESTIONS)], conversation_id=conversation.id)
            print_result(conversation.id, result.output)


if __name__ == "__main__":
    conserve.instrument()
    asyncio.run(main())
