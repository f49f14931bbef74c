"""Programs of the other frameworks, each a chat of some messages in one conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import agents
import pydantic_ai
from agents import OpenAIChatCompletionsModel, Runner, function_tool
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.gateway.conftest import MODEL
from tests.integrations.costs import Place, prompt
from tests.integrations.langgraph_programs import add, lookup, tool


async def plain_loop(place: Place, texts: Sequence[str]) -> None:
    """The OpenAI client, and a list of messages that grows."""
    client = place.client()
    messages: list[Any] = [{"role": "system", "content": prompt("plain")}]
    async with place.conversation():
        for text in texts:
            messages.append({"role": "user", "content": text})
            answer = await client.chat.completions.create(model=MODEL, messages=messages)
            messages.append({"role": "assistant", "content": answer.choices[0].message.content})


async def langchain_agent(place: Place, texts: Sequence[str]) -> None:
    agent = create_agent(place.chat_model(), [tool(lookup)], system_prompt=prompt("lone"))
    state: Any = {"messages": []}
    async with place.conversation("chain") as conversation:
        config = conversation.langgraph_config() if conversation is not None else None
        for text in texts:
            state = await agent.ainvoke({"messages": [*state["messages"], HumanMessage(text)]}, config)


def _openai_model(place: Place) -> OpenAIChatCompletionsModel:
    return OpenAIChatCompletionsModel(model=MODEL, openai_client=place.client())


async def _run_agents(place: Place, agent: agents.Agent[Any], texts: Sequence[str]) -> None:
    items: list[Any] = []
    async with place.conversation("run"):
        for text in texts:
            result = await Runner.run(agent, [*items, {"role": "user", "content": text}])
            items, agent = result.to_input_list(), result.last_agent


async def handing_over(place: Place, texts: Sequence[str]) -> None:
    """Agents of the OpenAI Agents SDK that hand over to one another."""
    model = _openai_model(place)
    research: agents.Agent[Any] = agents.Agent("research", model=model, instructions=prompt("research"))
    math = agents.Agent("math", model=model, instructions=prompt("math"), handoffs=[research])
    research.handoffs.append(math)
    await _run_agents(place, math, texts)


async def agents_as_tools(place: Place, texts: Sequence[str]) -> None:
    model = _openai_model(place)
    math = agents.Agent("math", model=model, instructions=prompt("math"), tools=[function_tool(add)])
    research = agents.Agent("research", model=model, instructions=prompt("research"))
    tools: list[Any] = [
        math.as_tool("ask_math", "Asks math"),
        research.as_tool("ask_research", "Asks research"),
    ]
    lead = agents.Agent("lead", model=model, instructions=prompt("lead"), tools=tools)
    await _run_agents(place, lead, texts)


async def delegating(place: Place, texts: Sequence[str]) -> None:
    """Agents of Pydantic AI, of which one runs the other in a tool."""
    client = place.client()
    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client))
    math = pydantic_ai.Agent(model, name="math", instructions=prompt("math"))
    lead = pydantic_ai.Agent(model, name="lead", instructions=prompt("lead"))

    @lead.tool_plain
    async def ask_math(request: str) -> str:
        return str((await math.run(request)).output)

    history: Any = None
    async with place.conversation():
        for text in texts:
            history = (await lead.run(text, message_history=history)).all_messages()


async def managed(place: Place, texts: Sequence[str]) -> None:
    """An agent of smolagents and one that it manages."""
    from smolagents import OpenAIModel, ToolCallingAgent

    from conserve_integrations.smolagents import observe

    def run() -> None:
        model = place.wrapped(OpenAIModel(MODEL, api_base=f"{place.url}/v1", api_key="-"))
        options: dict[str, Any] = {"model": model, "max_steps": 4, "verbosity_level": 0, "tools": []}
        helper = ToolCallingAgent(
            **options, name="helper", description="helps", instructions=prompt("helper")
        )
        lead = ToolCallingAgent(**options, managed_agents=[helper], instructions=prompt("lead"))
        if place.is_wrapped:
            observe(lead)
        with model.client:
            for index, text in enumerate(texts):
                lead.run(text, reset=index == 0)

    async with place.conversation():
        await asyncio.to_thread(run)


async def litellm_loop(place: Place, texts: Sequence[str]) -> None:
    import litellm

    client = place.client()
    messages: list[Any] = [{"role": "system", "content": prompt("lite")}]
    async with place.conversation():
        for text in texts:
            messages.append({"role": "user", "content": text})
            answer = await litellm.acompletion(model=f"openai/{MODEL}", messages=messages, client=client)
            messages.append({"role": "assistant", "content": answer.choices[0].message.content})
