"""What a program costs, wrapped and as it is: two runs, each on a gateway and engines of its own."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx2
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI

import conserve_sdk as conserve
from conserve_server.engines.emulated import Rule, ScriptedCall
from conserve_server.engines.engine import Role
from tests.gateway.conftest import MODEL, Served, engine_config, served

LIMIT_S: Final = 60.0
PAGE: Final = Path(__file__).parents[2] / "docs" / "how-to" / "wrap-your-agent.md"
_TRANSFERS: Final = "vllm:nixl_xfer_time_seconds_count"
_COMPUTED: Final = 'vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="local_compute"}'

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What the engines counted: KV moved between them, and prompt tokens that had to be computed."""

    transfers: int
    computed_tokens: int


@dataclass(frozen=True)
class Place:
    """Where a program runs: it makes its clients and opens its conversation here."""

    url: str
    http: httpx2.AsyncClient
    is_wrapped: bool

    def wrapped(self, client: T) -> T:
        return conserve.wrap(client) if self.is_wrapped else client

    def client(self) -> AsyncOpenAI:
        client = AsyncOpenAI(base_url=f"{self.url}/v1", api_key="-", http_client=self.http, max_retries=0)
        return self.wrapped(client)

    def chat_model(self) -> ChatOpenAI:
        """LangChain's."""
        return self.wrapped(
            ChatOpenAI(
                model=MODEL, base_url=f"{self.url}/v1", api_key=lambda: "-", http_async_client=self.http
            )
        )

    @asynccontextmanager
    async def conversation(
        self, name: str | None = None, **options: Any
    ) -> AsyncIterator[conserve.Conversation | None]:
        """The block that a wrapped program adds."""
        if not self.is_wrapped:
            yield None
            return
        async with conserve.conversation(name, **options) as conversation:
            yield conversation


Program = Callable[[Place], Awaitable[object]]


async def cost_of(program: Program, rules: Sequence[Rule], *, is_wrapped: bool) -> Cost:
    """Run it on 1 prefill and 2 decode engines that answer by these rules."""
    decode = [engine_config(Role.DECODE, name, script=tuple(rules)) for name in ("decode-0", "decode-1")]
    async with served(decode=decode) as gateway, httpx2.AsyncClient(timeout=LIMIT_S) as http:
        async with asyncio.timeout(LIMIT_S):
            await program(Place(gateway.url, http, is_wrapped))
        return Cost(await _sum(gateway, _TRANSFERS), await _sum(gateway, _COMPUTED))


async def _sum(gateway: Served, line: str) -> int:
    return int(sum([await gateway.engine_metric(name, line) for name in gateway.engines]))


async def turns_of(program: Program, rules: Sequence[Rule]) -> dict[str, int]:
    """The turns of each conversation of a wrapped program, by id, as the gateway reports them."""
    decode = [engine_config(Role.DECODE, "decode-0", script=tuple(rules))]
    async with served(decode=decode) as gateway, httpx2.AsyncClient(timeout=LIMIT_S) as http:
        async with asyncio.timeout(LIMIT_S):
            await program(Place(gateway.url, http, is_wrapped=True))
        listed = (await gateway.client.get("/v1/conversations")).json()["data"]
    return {each["id"]: each["turn_count"] for each in listed}


async def both_costs(program: Program, rules: Sequence[Rule]) -> tuple[Cost, Cost]:
    """Wrapped, and as it is."""
    wrapped = await cost_of(program, rules, is_wrapped=True)
    return wrapped, await cost_of(program, rules, is_wrapped=False)


async def assert_no_worse_off(
    program: Program, rules: Sequence[Rule], *, agents: int, name: str = ""
) -> None:
    """The law: wrapped, it moves no more KV and computes no more prompt, and moves it once an agent.

    `name` is the program's in the page's table, if it is there: its figures are these.
    """
    wrapped, plain = await both_costs(program, rules)
    if (stated := transfers_stated().get(name)) is not None:
        assert (wrapped.transfers, plain.transfers) == stated
    assert wrapped.transfers <= plain.transfers, (wrapped, plain)
    assert wrapped.computed_tokens <= plain.computed_tokens, (wrapped, plain)
    assert 0 < wrapped.transfers <= agents + 1, (wrapped, plain)


@functools.cache
def transfers_stated() -> dict[str, tuple[int, int]]:
    """What the page on agents says of each program: KV transfers wrapped, and as it is."""
    table = PAGE.read_text().partition("<!-- costs table -->\n")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {name: (int(wrapped), int(plain)) for name, _, wrapped, plain in rows}


def says(match: str, reply: str) -> Rule:
    return Rule(match=match, reply=reply)


def calls(match: str, *tools: str, **arguments: object) -> Rule:
    """A rule by which the model calls each of these tools, with the same arguments."""
    return Rule(match=match, tool_calls=tuple(ScriptedCall(tool, arguments) for tool in tools))


def prompt(agent: str) -> str:
    """A system prompt of some length that begins as no other agent's does."""
    return f"You are {agent}. " + " ".join(f"{agent} minds rule {number}." for number in range(40))


def questions(text: str, count: int = 5) -> list[str]:
    return [f"{text} number {number}, please" for number in range(count)]
