"""A smolagents agent, served by the conversation: observe() reports its tools, turn() is its trace.

python examples/smolagents_agent.py --base-url http://127.0.0.1:8000/v1
"""

from smolagents import OpenAIModel, Tool, ToolCallingAgent

import conserve_sdk as conserve
from command_line import agent_arguments, print_result
from conserve_integrations.smolagents import observe
from town import QUESTIONS, search_notes


class SearchNotes(Tool):  # type: ignore[misc]
    name = "search_notes"
    description = "The lines of the town's notes that mention the topic."
    inputs = {"topic": {"type": "string", "description": "one word"}}  # noqa: RUF012
    output_type = "string"

    def forward(self, topic: str) -> str:
        return search_notes(topic)


def main() -> None:
    args = agent_arguments(__doc__)
    model = conserve.wrap(OpenAIModel(args.model, api_base=args.base_url, api_key="-"))
    for i in range(args.conversations):
        agent = observe(ToolCallingAgent([SearchNotes()], model, max_steps=6, verbosity_level=0))
        with conserve.conversation(agent="researcher") as conversation, conversation.turn():
            result = agent.run(QUESTIONS[i % len(QUESTIONS)])
        print_result(conversation.id, result)


if __name__ == "__main__":
    conserve.instrument()
    main()
