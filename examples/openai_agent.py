"""A plain OpenAI-client tool loop, served by the conversation.

python examples/openai_agent.py --base-url http://127.0.0.1:8000/v1
"""

import json
from collections.abc import Callable
from typing import Any

from openai import OpenAI

import conserve_sdk as conserve
from command_line import agent_arguments, print_result
from town import ANSWER, PLAN, QUESTIONS, SYSTEM, calculate, search_notes

TOOLS: dict[str, Callable[..., str]] = {"search_notes": search_notes, "calculate": calculate}


def answer(client: OpenAI, model: str, question: str, conversation: conserve.Conversation) -> str:
    """Ask, use the tool, ask again. A JSON schema holds each choice of the small model (town.py)."""
    messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    for step, (name, schema) in enumerate(PLAN):
        content = ask(client, model, messages, response_format=schema)
        with conversation.tool(name, call_id=f"call_{step}"):
            result = TOOLS[name](**json.loads(content))
        function = {"name": name, "arguments": content}
        call = {"id": f"call_{step}", "type": "function", "function": function}
        messages.append({"role": "assistant", "content": content, "tool_calls": [call]})
        messages.append({"role": "tool", "content": result, "tool_call_id": f"call_{step}"})
    return ask(client, model, [*messages, {"role": "user", "content": ANSWER}])


def ask(client: OpenAI, model: str, messages: list[Any], **constraint: Any) -> str:
    limits: dict[str, Any] = {"temperature": 0, "max_completion_tokens": 48, **constraint}
    reply = client.chat.completions.create(model=model, messages=messages, **limits)
    return reply.choices[0].message.content or "{}"


if __name__ == "__main__":
    conserve.instrument()
    args = agent_arguments(__doc__)
    client = conserve.wrap(OpenAI(base_url=args.base_url, api_key="-"))
    for i in range(args.conversations):
        with conserve.conversation(agent="researcher") as conversation:
            text = answer(client, args.model, QUESTIONS[i % len(QUESTIONS)], conversation)
        print_result(conversation.id, text)
        print(conversation.report())
