"""A tool loop over LiteLLM, served by the conversation: LiteLLM is given a wrapped client.

python examples/litellm_agent.py --base-url http://127.0.0.1:8000/v1
"""

import json
import os
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # its import asks the network for prices

import litellm
from openai import OpenAI

import conserve_sdk as conserve
from command_line import agent_arguments, print_result
from town import QUESTIONS, SYSTEM, search_notes

TOPIC = {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]}
TOOLS = [{"type": "function", "function": {"name": "search_notes", "parameters": TOPIC}}]


def answer(ask: Any, question: str, conversation: conserve.Conversation) -> str:
    """Ask until the model has no more tool calls to make, six times at most."""
    messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    for _ in range(6):
        reply = ask(messages).choices[0].message
        messages.append(reply.model_dump())
        if not reply.tool_calls:
            break
        for call in reply.tool_calls:
            with conversation.tool(call.function.name, call_id=call.id):
                result = search_notes(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return str(messages[-1]["content"])


def main() -> None:
    args = agent_arguments(__doc__)
    with conserve.wrap(OpenAI(base_url=args.base_url, api_key="-")) as client:

        def ask(messages: list[Any]) -> Any:
            model = f"openai/{args.model}"
            return litellm.completion(model=model, messages=messages, tools=TOOLS, client=client)

        for i in range(args.conversations):
            with conserve.conversation(agent="researcher") as conversation, conversation.turn():
                text = answer(ask, QUESTIONS[i % len(QUESTIONS)], conversation)
            print_result(conversation.id, text)


if __name__ == "__main__":
    conserve.instrument()
    main()
