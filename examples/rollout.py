"""Reinforcement learning's roll-outs: many conversations at once, several of each task, each with a reward.

python examples/rollout.py --base-url http://127.0.0.1:8000/v1 --conversations 64
"""

import asyncio
import statistics
from typing import Any

from openai import AsyncOpenAI

import conserve_sdk as conserve
from command_line import agent_arguments, print_result
from town import QUESTIONS, SYSTEM, search_notes

SAMPLES_OF_A_TASK = 4  # a group, whose mean reward is the baseline
AT_ONCE = 32
TURNS = 3


async def main() -> None:
    args = agent_arguments(__doc__)
    client = conserve.wrap(AsyncOpenAI(base_url=args.base_url, api_key="-"))
    room = asyncio.Semaphore(AT_ONCE)

    async def roll_out(number: int) -> tuple[float, conserve.ConversationReport]:
        """One episode: the model writes, the environment answers with what the notes hold."""
        task = number // SAMPLES_OF_A_TASK
        question = QUESTIONS[task % len(QUESTIONS)]
        messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        metadata = {"task": task, "sample": number % SAMPLES_OF_A_TASK}
        async with room, conserve.conversation(agent="policy", metadata=metadata) as conversation:
            for _ in range(TURNS):
                reply = await client.chat.completions.create(
                    model=args.model, messages=messages, temperature=1.0, max_tokens=24
                )
                action = reply.choices[0].message.content or ""
                with conversation.tool("environment"):
                    observed = search_notes(action.split()[0].lower() if action.split() else "ferry")
                messages.append({"role": "assistant", "content": action})
                messages.append({"role": "user", "content": observed})
        reward = 1.0 if any(word in action.lower() for word in question.lower().split()) else 0.0
        print_result(conversation.id, reward)
        return reward, await conversation.areport()

    done = await asyncio.gather(*(roll_out(number) for number in range(args.conversations)))
    ttfet_s = [report.ttfet_s for _, report in done if report.ttfet_s is not None]
    print(f"{len(done)} roll-outs, mean reward {statistics.mean(reward for reward, _ in done):.2f},")
    print(f"{sum(report.kv_transfers for _, report in done)} KV transfers,")
    print(f"median TTFET {statistics.median(ttfet_s) if ttfet_s else float('nan'):.3f} s")
    await client.close()


if __name__ == "__main__":
    conserve.instrument()
    asyncio.run(main())
