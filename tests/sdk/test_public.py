"""What the package promises: its names, its types and how little it loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import conserve_sdk

ROOT = Path(__file__).parents[2]

_USER = """
from collections.abc import AsyncIterator, Iterator

import conserve_sdk as conserve
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, AzureOpenAI, OpenAI

sync: OpenAI = conserve.wrap(OpenAI())
asynchronous: AsyncOpenAI = conserve.wrap(AsyncOpenAI(), base_url="http://localhost:8000/v1")
azure: AzureOpenAI = conserve.wrap(AzureOpenAI(base_url="http://localhost:8000/v1", api_version="1"))
ready = OpenAI(http_client=conserve.http_client("http://localhost:8000/v1", timeout=60.0))
ready_async = AsyncOpenAI(http_client=conserve.async_http_client("http://localhost:8000/v1"))
chat: ChatOpenAI = conserve.wrap(ChatOpenAI(model="m"))


@conserve.tool
def add(a: int, b: int) -> int:
    return a + b


@conserve.tool("lookup")
async def look_up(word: str) -> str:
    return word


@conserve.conversation(agent="a")
def answer(question: str) -> str:
    return question


@conserve.conversation("c", parent="p")
async def answer_async(question: str) -> str:
    return question


@conserve.conversation()
def stream(question: str) -> Iterator[str]:
    yield question


@conserve.conversation()
async def stream_async(question: str) -> AsyncIterator[str]:
    yield question


async def decorated() -> list[str]:
    words: list[str] = [answer("a"), await answer_async("b"), *stream("c")]
    return words + [word async for word in stream_async("d")]


def turn() -> float | None:
    metadata: dict[str, str | int] = {"tier": 2}
    with conserve.conversation("c", agent="a", metadata=metadata, keep_open=True) as conversation:
        with conversation.turn() as turn:
            turn.record(question="?", answer=None)
        index: int = turn.index
        print(index)
        with conversation.tool("search", call_id="1") as call:
            number: int = add(1, b=2)
        chat.invoke(str(number), conversation.langgraph_config())
    outcome: conserve.Outcome | None = call.outcome
    print(outcome, conversation.report().ttfet_s)
    return call.duration_s


async def turn_async(parent: conserve.Conversation) -> str:
    async with conserve.conversation(parent=parent) as conversation, conversation.tool("search"):
        print((await conversation.areport()).turns[0].decoder)
        return await look_up("x")


bound: int = conserve.bind_context(add)(1, 2)
current: conserve.Conversation | None = conserve.current_conversation()
"""

_MISUSE = """
import conserve_sdk as conserve


@conserve.tool
def add(a: int, b: int) -> int:
    return a + b


add("1", 2)
conserve.conversation(7)


@conserve.conversation()
def answer(question: str) -> str:
    return question


answer(2)
"""


def test_all_is_sorted_and_everything_in_it_exists() -> None:
    assert conserve_sdk.__all__ == sorted(conserve_sdk.__all__)
    assert all(hasattr(conserve_sdk, name) for name in conserve_sdk.__all__)


def test_every_public_name_is_listed() -> None:
    submodules = {path.stem for path in (ROOT / "conserve_sdk").iterdir()}
    public = {name for name in vars(conserve_sdk) if not name.startswith("_")} - submodules
    assert public == set(conserve_sdk.__all__) - {"__version__"}


def test_everything_public_says_what_it_is() -> None:
    for name in conserve_sdk.__all__:
        assert getattr(conserve_sdk, name).__doc__, name


@pytest.mark.slow
def test_the_import_loads_no_framework_and_no_http() -> None:
    program = "import sys, conserve_sdk; print(*{name.partition('.')[0] for name in sys.modules})"
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True, timeout=60
    )
    heavy = {"openai", "langchain_core", "opentelemetry", "httpx2", "rich", "tenacity", "asyncio"}
    assert heavy.isdisjoint(printed.stdout.split())


def type_check(source: str, folder: Path) -> str:
    file = folder / "user.py"
    file.write_text(source)
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout


@pytest.mark.slow
def test_users_code_type_checks_strictly(tmp_path: Path) -> None:
    assert type_check(_USER, tmp_path) == "Success: no issues found in 1 source file\n"


@pytest.mark.slow
def test_wrong_use_is_found_by_the_type_checker(tmp_path: Path) -> None:
    found = type_check(_MISUSE, tmp_path)
    assert 'Argument 1 to "add" has incompatible type "str"' in found
    assert 'Argument 1 to "conversation" has incompatible type "int"' in found
    assert 'Argument 1 to "answer" has incompatible type "int"' in found
