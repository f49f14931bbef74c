"""Programs of the other frameworks: wrapped, none moves more KV or computes more than as it is."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence

import pytest

from conserve_server.engines.emulated import Rule
from tests.gateway.conftest import MODEL
from tests.integrations import framework_programs as programs
from tests.integrations.costs import Place, assert_no_worse_off, calls, questions, says, turns_of

Chat = Callable[[Place, Sequence[str]], Awaitable[None]]

WELL = says(".", "well")
LOOKS = (calls("^look", "lookup"), WELL)
HANDS_OVER = (
    calls("^sum", "transfer_to_research"),
    calls("^find", "transfer_to_math"),
    says("assistant", "I am here"),
    WELL,
)
ASKS = (
    calls("^sum", "ask_math", input="add up"),
    calls("^find", "ask_research", input="seek"),
    calls("^add up", "add"),
    WELL,
)
ASKS_TWICE = (Rule(match="^sum", tool_calls=calls("", "ask_math", input="go").tool_calls * 2), WELL)
DELEGATES = (calls("^sum", "ask_math", request="go on"), WELL)
MANAGES = (
    calls("sum number", "helper", task="help out", additional_args={}),
    calls("help out", "final_answer", answer="helped"),
    calls(".", "final_answer", answer="done"),
)
SUMS = questions("sum", 3)
BOTH = [text for pair in zip(SUMS, questions("find", 3), strict=True) for text in pair]
_QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteLLM's import asks the network for prices, else."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chat", "texts", "rules", "agents"),
    [
        pytest.param(programs.plain_loop, questions("say"), (WELL,), 0, id="plain OpenAI loop"),
        pytest.param(programs.langchain_agent, questions("look"), LOOKS, 0, id="create_agent"),
        pytest.param(programs.handing_over, ["hello", *BOTH], HANDS_OVER, 1, id="Agents SDK, hand-offs"),
        pytest.param(programs.agents_as_tools, BOTH, ASKS, 2, id="Agents SDK, agents as tools"),
        pytest.param(programs.delegating, SUMS, DELEGATES, 1, id="Pydantic AI, delegation"),
        pytest.param(programs.managed, SUMS, MANAGES, 1, id="smolagents, managed"),
        pytest.param(
            programs.litellm_loop,
            questions("say"),
            (WELL,),
            0,
            id="LiteLLM",
            marks=[pytest.mark.slow, _QUIET],
        ),
    ],
)
async def test_a_wrapped_program_costs_no_more_than_the_same_one_unwrapped(
    chat: Chat, texts: list[str], rules: tuple[Rule, ...], agents: int, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    await assert_no_worse_off(functools.partial(_with, chat, texts), rules, agents=agents, name=name)


async def _with(chat: Chat, texts: Sequence[str], place: Place) -> None:
    await chat(place, texts)


async def test_an_agent_that_is_a_tool_is_one_branch_however_often_it_is_called() -> None:
    program = functools.partial(_with, programs.agents_as_tools, BOTH)
    turns = await turns_of(program, ASKS)
    assert turns == {"run": 12, "run/ask_math": 6, "run/ask_research": 3}


async def test_calls_of_one_agent_at_once_are_kept_apart_and_found_again() -> None:
    program = functools.partial(_with, programs.agents_as_tools, SUMS)
    turns = await turns_of(program, ASKS_TWICE)
    assert turns == {"run": 6, "run/ask_math": 3, "run/ask_math#2": 3}


async def test_agents_that_hand_over_share_one_conversation() -> None:
    program = functools.partial(_with, programs.handing_over, ["hello", *BOTH])
    assert list(await turns_of(program, HANDS_OVER)) == ["run"]


async def test_a_branch_is_known_where_the_agents_sdks_tracing_is_disabled() -> None:
    import agents

    program = functools.partial(_with, programs.agents_as_tools, BOTH)
    agents.set_tracing_disabled(True)
    try:
        turns = await turns_of(program, ASKS)
    finally:
        agents.set_tracing_disabled(False)
    assert turns == {"run": 12, "run/ask_math": 6, "run/ask_research": 3}


async def test_a_conversation_that_is_opened_inside_a_tool_is_no_branch() -> None:
    import agents

    import conserve_sdk as conserve

    async def program(place: Place) -> None:
        client = place.client()

        @agents.function_tool
        async def ask_math(input: str) -> str:  # noqa: A002 - what the script calls it
            async with conserve.conversation("inner"):
                await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": input}]
                )
            return "done"

        model = agents.OpenAIChatCompletionsModel(model=MODEL, openai_client=client)
        async with place.conversation("outer"):
            await agents.Runner.run(agents.Agent("lead", model=model, tools=[ask_math]), "sum")

    assert await turns_of(program, ASKS) == {"outer": 2, "inner": 1}
