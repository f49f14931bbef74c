"""Chunks that follow the load, on real vLLM: small beside a decode, whole prompts alone."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from conserve_server.engines.engine import Role
from tests.processes import wait_for
from tests.real.cluster import MODEL, LocalEngines, local_engines
from tests.real.kv_engine import KvEngine, token_ids

pytestmark = pytest.mark.real

LIMIT_S = 120.0
PROMPT_TOKENS = 1_900
LARGEST = 256
"""Chunks of 64 tokens have doubled twice by then, which takes a prompt that has waited for two seconds."""
STEP = re.compile(r"(\d+) context requests, (\d+) context tokens, (\d+) generation requests")


@pytest.fixture(scope="module")
def paced(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngines]:
    """An engine whose smallest chunks have 64 tokens, and which logs each of its steps."""
    folder = tmp_path_factory.mktemp("chunks")
    env = '{ CONSERVE_SMALLEST_CHUNK = "64" }'
    flags = '["--enable-logging-iteration-details"]'
    with local_engines(folder, vllm_python, env=env, flags=flags) as engines:
        yield engines


@pytest.fixture
async def engine(paced: LocalEngines) -> AsyncIterator[KvEngine]:
    async with httpx2.AsyncClient(timeout=LIMIT_S) as client:
        yield KvEngine(paced.url(Role.DECODE), MODEL, client)


class Steps:
    """The prompt tokens and the decodes of each step that an engine logged since the last look."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._seen = 0

    def look(self, prompt_tokens: int) -> list[tuple[int, int]]:
        """Steps that prefilled, once they account for so many tokens."""
        found: list[tuple[int, int]] = []

        def are_complete() -> bool:
            steps = STEP.findall(self._log.read_text(errors="replace"))[self._seen :]
            found[:] = [(int(tokens), int(decodes)) for _, tokens, decodes in steps]
            return sum(tokens for tokens, _ in found) >= prompt_tokens

        wait_for(are_complete, "steps in the engine's log", limit_s=30.0)
        self._seen += len(found)
        return [step for step in found if step[0]]


async def test_a_prompt_is_taken_whole_alone_and_in_small_chunks_beside_a_decode(
    paced: LocalEngines, engine: KvEngine
) -> None:
    steps = Steps(Path(paced.config.launcher.run_dir) / "logs" / "decode-0.log")
    await engine.turn("alone", token_ids(PROMPT_TOKENS, 1))
    assert max(steps.look(PROMPT_TOKENS)) == (PROMPT_TOKENS, 0)

    decode = asyncio.create_task(engine.turn("decodes", token_ids(50, 2), max_tokens=1500))
    await asyncio.sleep(0.5)
    steps.look(50)
    answer = await engine.turn("beside", token_ids(PROMPT_TOKENS, 3))
    assert not decode.done(), "the decode ended before the prompt did: nothing was shown"
    chunks = steps.look(PROMPT_TOKENS)
    assert sum(tokens for tokens, _ in chunks) == PROMPT_TOKENS
    assert chunks[0] == (48, 1)  # three quarters of a chunk for one prompt
    assert all(tokens <= LARGEST and decodes == 1 for tokens, decodes in chunks)
    assert len(answer.tokens) == 8
    assert len((await asyncio.wait_for(decode, LIMIT_S)).tokens) == 1500
