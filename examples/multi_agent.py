"""A lead and its helpers: each helper is a child conversation with a decoder and a KV cache of its own.

python examples/multi_agent.py --base-url http://127.0.0.1:8000/v1
"""

import asyncio
from typing import Any

from openai import AsyncOpenAI

import conserve_sdk as conserve
from command_line import agent_arguments, print_result
from town import search_notes

TOPICS = ("ferry", "lighthouse", "observatory")


async def main() -> None:
    args = agent_arguments(__doc__)
    client = conserve.wrap(AsyncOpenAI(base_url=args.base_url, api_key="-"))

    async def ask(*texts: str) -> str:
        messages: list[Any] = [{"role": "user", "content": text} for text in texts]
        reply = await client.chat.completions.create(model=args.model, messages=messages, max_tokens=48)
        return reply.choices[0].message.content or ""

    @conserve.tool
    async def read(topic: str) -> str:
        return search_notes(topic)

    @conserve.conversation(agent="helper")  # a conversation for each call, a child of the one around it
    async def help_with(topic: str) -> str:
        await ask(f"Which lines do you need to describe the {topic}?")
        return await ask(f"Describe the {topic} in one sentence.", await read(topic))

    for _ in range(args.conversations):
        async with conserve.conversation(agent="lead") as lead, lead.turn():
            plan = await ask("You lead three helpers. Say what they should look for in the town's notes.")
            found = await asyncio.gather(*(help_with(topic) for topic in TOPICS))
            print_result(lead.id, await ask(plan, "Sum up what your helpers found.", *found))
        print(await lead.areport())
    await client.close()


if __name__ == "__main__":
    conserve.instrument()
    asyncio.run(main())
